//! Bodies that stream through filters.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use meltemi_filters::http::{
    Activation, Beyond, DataContext, DataEvent, Direction, HttpFilterSlot, OwnStates, Step,
};
use meltemi_filters::{Cause, LocalReply};

use super::{FilterInputs, call};
use crate::body::{BodyIn, PieceFilter};
use crate::downstream::{ChainView, Downstream};
use crate::http1::body::BodyError;
use crate::record::StreamInfo;
use crate::worker::Worker;

/// The filters of one exchange that want to see a body.
struct DataFilters {
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    view: Rc<ChainView>,
    which: Direction,
    /// Numbers of the filters in the order in which they see the body, and what each holds.
    slots: Vec<(u16, Vec<u8>)>,
    own: OwnStates,
}

/// Sends a body through the filters that want to see it. Where there are none, which is nearly
/// always, the body stays as it is.
pub fn filtered(
    which: Direction,
    inputs: FilterInputs<'_>,
    body: &mut BodyIn<'_>,
    info: &mut StreamInfo,
) {
    let chain = &inputs.http.filters;
    if !chain.needs().data(which) || body.is_empty() {
        return;
    }

    let wants = chain.slots().filter(|(_, slot)| {
        slot.filter.needs().data(which) && matches!(inputs.activation(slot), Activation::On(_))
    });
    let mut slots: Vec<(u16, Vec<u8>)> = wants.map(|(number, _)| (number, Vec::new())).collect();
    if slots.is_empty() {
        return;
    }
    if which == Direction::Response {
        slots.reverse();
    }

    body.pass_through(Box::new(DataFilters {
        worker: inputs.worker.clone(),
        conn: inputs.conn.clone(),
        view: inputs.view.clone(),
        which,
        slots,
        own: info.state.own.share(),
    }));
}

impl PieceFilter for DataFilters {
    fn pass<'s>(
        &'s mut self,
        piece: Vec<u8>,
        ended: bool,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, BodyError>> + 's>> {
        Box::pin(self.step_all(piece, ended))
    }
}

impl DataFilters {
    /// Steps every filter with what the one before has made of a piece. What a filter holds goes
    /// before its next piece.
    async fn step_all(&mut self, mut data: Vec<u8>, ended: bool) -> Result<Vec<u8>, BodyError> {
        for at in 0..self.slots.len() {
            let (number, held) = &mut self.slots[at];
            let number = *number;
            if !held.is_empty() {
                held.append(&mut data);
                data = std::mem::take(held);
            }
            // Nothing new for this filter.
            if data.is_empty() && !ended {
                return Ok(data);
            }

            if let Some(kept) = self.step(number, &mut data, ended).await? {
                self.slots[at].1 = kept;
                return Ok(Vec::new());
            }
        }

        Ok(data)
    }

    /// Steps one filter until it lets the piece go; what it holds instead.
    async fn step(
        &mut self,
        number: u16,
        data: &mut Vec<u8>,
        ended: bool,
    ) -> Result<Option<Vec<u8>>, BodyError> {
        let mut event = DataEvent::Piece;
        loop {
            let (Some(http), Some(counts)) = (&self.view.http, &self.view.counts) else {
                return Ok(None);
            };
            let Some(slot) = http.filters.slot(number) else {
                return Ok(None);
            };
            let mut cx = DataContext {
                slot: number,
                data,
                ended,
                now: self.worker.uptime(),
                tally: &counts.filters,
                own: &mut self.own,
            };

            match slot.filter.on_data(self.which, event, &mut cx) {
                Step::Continue => return Ok(None),
                Step::Reply(reply) => return Err(BodyError::Refused(reply)),
                Step::Call(call) => {
                    let result = call::perform(&self.worker, &self.conn, call).await;
                    event = DataEvent::Called(result);
                }
                // Nothing more would come.
                Step::Hold(_) if ended => return Ok(None),
                Step::Hold(hold) if data.len() <= hold.limit => {
                    return Ok(Some(std::mem::take(data)));
                }
                Step::Hold(hold) => match hold.beyond {
                    Beyond::Deliver => return Ok(None),
                    Beyond::Refuse => return Err(too_long(self.which, slot)),
                },
            }
        }
    }
}

fn too_long(which: Direction, slot: &HttpFilterSlot) -> BodyError {
    let cause = Cause::BodyTooLarge(slot.name.clone());
    let reply = match which {
        Direction::Request => {
            let details = "request_payload_too_large";
            LocalReply::new(413, "Payload Too Large", details, cause)
        }
        Direction::Response => {
            let details = "response_payload_too_large";
            LocalReply::new(500, "Internal Server Error", details, cause)
        }
    };

    BodyError::Refused(Box::new(reply))
}
