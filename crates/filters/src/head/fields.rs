//! Header fields: the arena that holds their bytes, and the index of their places.

use super::known::Known;

/// One field in the index: offsets into the arena.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: u32,
    value: u32,
    value_len: u32,
    name_len: u16,
    known: Known,
    /// The arena holds exactly `name: value\r\n` here, so a run of such fields is one copy.
    verbatim: bool,
}

/// A range of bytes in the arena.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) at: u32,
    pub(super) len: u32,
}

/// Header fields or trailers, in order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    arena: Vec<u8>,
    index: Vec<Field>,
    present: u64,
}

/// The longest name of a field, in bytes. The codecs and the configuration refuse longer names.
pub const MAX_NAME: usize = u16::MAX as usize;

/// A cleared head keeps an arena of at most this size.
const KEEP_BYTES: usize = 16 * 1024;

impl Fields {
    /// Creates an empty list, which owns no memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes all fields. The memory is kept, unless it is more than 16 KiB.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.index.clear();
        self.present = 0;
        if self.arena.capacity() > KEEP_BYTES {
            self.arena = Vec::new();
        }
    }

    /// The number of field lines.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Sum of the lengths of names and values.
    pub fn byte_len(&self) -> usize {
        self.index
            .iter()
            .map(|f| f.name_len as usize + f.value_len as usize)
            .sum()
    }

    /// Replaces all fields by the bytes of a head as read; [`Fields::push_loaded`] indexes them.
    pub fn load(&mut self, bytes: &[u8]) {
        self.clear();
        self.arena.extend_from_slice(bytes);
    }

    /// Indexes a field of the loaded bytes and lower-cases its name in place. The caller has
    /// checked the syntax.
    pub fn push_loaded(&mut self, name: usize, name_len: usize, value: usize, value_len: usize) {
        debug_assert!(name_len <= MAX_NAME, "a longer name would be cut");
        let name_end = name + name_len;
        self.arena[name..name_end].make_ascii_lowercase();
        let known = Known::of(&self.arena[name..name_end]);
        let value_end = value + value_len;
        let verbatim = value == name_end + 2
            && self.arena[name_end..value] == *b": "
            && self.arena.get(value_end..value_end + 2) == Some(b"\r\n".as_slice());
        self.note(known);
        self.index.push(Field {
            name: name as u32,
            value: value as u32,
            value_len: value_len as u32,
            name_len: name_len as u16,
            known,
            verbatim,
        });
    }

    fn note(&mut self, known: Known) {
        self.present |= 1 << known as u8;
    }

    pub(super) fn span(&self, span: Span) -> &[u8] {
        &self.arena[span.at as usize..(span.at + span.len) as usize]
    }

    pub(super) fn store(&mut self, bytes: &[u8]) -> Span {
        let at = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span {
            at,
            len: bytes.len() as u32,
        }
    }

    fn name_of(&self, field: &Field) -> &[u8] {
        &self.arena[field.name as usize..field.name as usize + field.name_len as usize]
    }

    fn value_of(&self, field: &Field) -> &[u8] {
        &self.arena[field.value as usize..(field.value + field.value_len) as usize]
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.index.iter().position(|f| {
            f.name_len as usize == name.len()
                && self.name_of(f).eq_ignore_ascii_case(name.as_bytes())
        })
    }

    /// The first value of a field; case of `name` does not matter.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.find(name).map(|at| self.value_of(&self.index[at]))
    }

    /// The first value as text; `None` also if it is not UTF-8. A security decision uses
    /// [`Fields::get`] or [`Fields::get_all`] instead.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value of a well-known field.
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        if !self.has(known) {
            return None;
        }
        self.index
            .iter()
            .find(|f| f.known == known)
            .map(|f| self.value_of(f))
    }

    /// The first value of a well-known field as text; see [`Fields::get_str`].
    pub fn known_str(&self, known: Known) -> Option<&str> {
        self.known(known)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Whether a well-known field is there; one bit test.
    pub fn has(&self, known: Known) -> bool {
        self.present & (1 << known as u8) != 0
    }

    /// All values of a field, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.index
            .iter()
            .filter(move |f| {
                f.name_len as usize == name.len()
                    && self.name_of(f).eq_ignore_ascii_case(name.as_bytes())
            })
            .map(|f| self.value_of(f))
    }

    /// Whether a field is there.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Name (lower case) and value of every field line, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + '_ {
        self.index.iter().map(|f| {
            (
                std::str::from_utf8(self.name_of(f)).unwrap_or_default(),
                self.value_of(f),
            )
        })
    }

    /// Adds a field line at the end, even if the field is there already. The name is lower-cased.
    /// Control characters in the value, CR and LF among them, become spaces, so that no value can
    /// add a line to the head.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        let at = self.arena.len();
        self.arena.extend_from_slice(name.as_bytes());
        self.arena.extend_from_slice(b": ");
        let value_at = self.arena.len();
        self.extend_clean(value);
        let value_len = self.arena.len() - value_at;
        self.arena.extend_from_slice(b"\r\n");
        self.push_loaded(at, name.len(), value_at, value_len);
    }

    fn extend_clean(&mut self, value: &[u8]) {
        let at = self.arena.len();
        self.arena.extend_from_slice(value);
        for byte in &mut self.arena[at..] {
            if (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f {
                *byte = b' ';
            }
        }
    }

    /// Replaces every line of a field by one; it keeps the place of the first.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let Some(first) = self.find(name) else {
            return self.append(name, value);
        };
        self.append(name, value);
        let Some(new) = self.index.pop() else { return };
        self.index[first] = new;
        let known = new.known;
        let mut at = 0;

        // Only the lines after the first can be further ones.
        let (arena, lower) = (&self.arena, name);

        self.index.retain(|f| {
            let keep = at <= first
                || !(f.known == known
                    && f.name_len as usize == lower.len()
                    && arena[f.name as usize..f.name as usize + f.name_len as usize]
                        .eq_ignore_ascii_case(lower.as_bytes()));
            at += 1;
            keep
        });
    }

    /// Sets a field unless it is there.
    pub fn set_if_absent(&mut self, name: &str, value: &[u8]) {
        if !self.contains(name) {
            self.append(name, value);
        }
    }

    /// Extends the last line of a field by `separator` and `value`; without such a line it is
    /// added.
    pub fn append_joined(&mut self, name: &str, separator: &[u8], value: &[u8]) {
        let last = self.index.iter().rposition(|f| {
            f.name_len as usize == name.len()
                && self.name_of(f).eq_ignore_ascii_case(name.as_bytes())
        });

        let Some(last) = last else {
            return self.append(name, value);
        };
        let old = self.index[last];
        let at = self.arena.len();
        let (from, to) = (old.value as usize, (old.value + old.value_len) as usize);

        self.arena.extend_from_slice(name.as_bytes());
        self.arena.extend_from_slice(b": ");
        let value_at = self.arena.len();
        self.arena.extend_from_within(from..to);
        self.extend_clean(separator);
        self.extend_clean(value);
        let value_len = self.arena.len() - value_at;
        self.arena.extend_from_slice(b"\r\n");
        self.push_loaded(at, name.len(), value_at, value_len);

        if let Some(new) = self.index.pop() {
            self.index[last] = new;
        }
    }

    /// Removes every line of a field; returns whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(first) = self.find(name) else {
            return false;
        };
        let known = self.index[first].known;
        let arena = &self.arena;
        self.index.retain(|f| {
            !(f.name_len as usize == name.len()
                && arena[f.name as usize..f.name as usize + f.name_len as usize]
                    .eq_ignore_ascii_case(name.as_bytes()))
        });

        if known != Known::Other {
            self.present &= !(1 << known as u8);
        }

        true
    }

    /// Removes every line of a well-known field; one bit test if there is none.
    pub fn remove_known(&mut self, known: Known) -> bool {
        if known == Known::Other || !self.has(known) {
            return false;
        }
        self.index.retain(|f| f.known != known);
        self.present &= !(1 << known as u8);
        true
    }

    /// Removes every line for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &[u8]) -> bool) {
        let arena = &self.arena;
        let mut present = 0;
        self.index.retain(|f| {
            let name = &arena[f.name as usize..f.name as usize + f.name_len as usize];
            let value = &arena[f.value as usize..(f.value + f.value_len) as usize];
            let stays = keep(std::str::from_utf8(name).unwrap_or_default(), value);
            if stays {
                present |= 1 << f.known as u8;
            }
            stays
        });

        self.present = present;
    }

    /// Writes `name: value CRLF` for each line. Lines that are unchanged and adjacent are one copy.
    pub fn write_h1(&self, out: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(field) = self.index.get(at) {
            at += 1;
            if !field.verbatim {
                out.extend_from_slice(self.name_of(field));
                out.extend_from_slice(b": ");
                out.extend_from_slice(self.value_of(field));
                out.extend_from_slice(b"\r\n");
                continue;
            }

            let start = field.name as usize;
            let mut end = (field.value + field.value_len) as usize + 2;
            while let Some(next) = self.index.get(at) {
                if !next.verbatim || next.name as usize != end {
                    break;
                }
                end = (next.value + next.value_len) as usize + 2;
                at += 1;
            }

            out.extend_from_slice(&self.arena[start..end]);
        }
    }

    /// Copies all lines of another head into this one, after its own.
    pub fn extend_from(&mut self, other: &Self) {
        for (name, value) in other.iter() {
            self.append(name, value);
        }
    }
}
