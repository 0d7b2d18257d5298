//! What a filter keeps for itself from one phase of a stream to the next.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use smallvec::SmallVec;

/// One value per filter, by the filter's slot in its chain. Empty, it owns no memory; a value
/// without fields costs no allocation.
#[derive(Debug, Default)]
pub struct OwnStates(Place);

type Values = SmallVec<[(u16, Box<dyn Any>); 2]>;

#[derive(Debug)]
enum Place {
    Here(Values),
    /// A data phase runs beside the head phases and needs the same values.
    Shared(Rc<RefCell<Values>>),
}

impl Default for Place {
    fn default() -> Self {
        Self::Here(Values::new())
    }
}

impl OwnStates {
    /// A second handle to the same values, for a data phase.
    pub fn share(&mut self) -> Self {
        let shared = match &mut self.0 {
            Place::Shared(shared) => shared.clone(),
            Place::Here(values) => Rc::new(RefCell::new(std::mem::take(values))),
        };
        self.0 = Place::Shared(shared.clone());

        Self(Place::Shared(shared))
    }

    /// Keeps a value for a filter, in place of the one before.
    pub fn keep<T: 'static>(&mut self, slot: u16, value: T) {
        self.with(|values| {
            values.retain(|(own, _)| *own != slot);
            values.push((slot, Box::new(value)));
        });
    }

    /// Takes what a filter has kept; `None` if it has kept nothing, or something of another type.
    pub fn take<T: 'static>(&mut self, slot: u16) -> Option<T> {
        self.with(|values| {
            let at = values
                .iter()
                .position(|(own, value)| *own == slot && value.is::<T>())?;
            values.swap_remove(at).1.downcast().ok().map(|value| *value)
        })
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Values) -> R) -> R {
        match &mut self.0 {
            Place::Here(values) => act(values),
            Place::Shared(shared) => act(&mut shared.borrow_mut()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_belong_to_their_slot_and_type() {
        let mut own = OwnStates::default();
        own.keep(3, 7_u32);
        own.keep(4, "four");
        own.keep(3, 8_u32);
        assert_eq!(own.take::<&str>(3), None);
        assert_eq!(own.take::<u32>(3), Some(8));
        assert_eq!(own.take::<u32>(3), None);

        let mut other = own.share();
        assert_eq!(other.take::<&str>(4), Some("four"));
        other.keep(5, 9_u8);
        assert_eq!(own.take::<u8>(5), Some(9));
    }
}
