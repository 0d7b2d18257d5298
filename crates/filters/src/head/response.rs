//! A response without its body.

use std::borrow::Cow;

use super::fields::Fields;
use super::{HttpVersion, Known, is_grpc_content_type, reason};

/// A response without its body.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    fields: Fields,
    /// 100 to 999.
    pub status: u16,
    /// The HTTP version that the upstream spoke.
    pub version: HttpVersion,
}

/// Every number of three digits, so that a status is lent like any other field.
static STATUSES: [[u8; 3]; 1000] = {
    let mut all = [[0; 3]; 1000];
    let mut at = 0;
    while at < 1000 {
        all[at] = [
            b'0' + (at / 100) as u8,
            b'0' + (at / 10 % 10) as u8,
            b'0' + (at % 10) as u8,
        ];
        at += 1;
    }
    all
};

impl ResponseHead {
    /// A head with a status and no field.
    pub fn of(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// Removes everything and keeps the memory.
    pub fn clear(&mut self) {
        self.fields.clear();
        self.status = 0;
        self.version = HttpVersion::default();
    }

    /// Replaces everything by the bytes of a head as read.
    pub fn load(&mut self, bytes: &[u8], status: u16) {
        self.clear();
        self.fields.load(bytes);
        self.status = status;
    }

    /// The regular fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The regular fields, to change.
    pub fn fields_mut(&mut self) -> &mut Fields {
        &mut self.fields
    }

    /// A field, or `:status`, first line.
    pub fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        if name == ":status" {
            return Some(Cow::Borrowed(self.status_text()));
        }
        self.fields.get(name).map(Cow::Borrowed)
    }

    /// The three digits of the status.
    pub fn status_text(&self) -> &'static [u8] {
        STATUSES
            .get(usize::from(self.status))
            .map_or(b"", |digits| digits.as_slice())
    }

    /// A field's first line as text; see [`Fields::get_str`].
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.fields.get_str(name)
    }

    /// Replaces a field; `:status` takes a number from 200 to 599.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        if name == ":status" {
            let number = std::str::from_utf8(value).ok().and_then(|t| t.parse().ok());
            if let Some(status) = number.filter(|s| (200..600).contains(s)) {
                self.status = status;
            }
        } else if !name.starts_with(':') {
            self.fields.set(name, value);
        }
    }

    /// Adds a field line.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        if name.starts_with(':') {
            self.set(name, value)
        } else {
            self.fields.append(name, value)
        }
    }

    /// Removes every line of a field.
    pub fn remove(&mut self, name: &str) -> bool {
        self.fields.remove(name)
    }

    /// The regular fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + '_ {
        self.fields.iter()
    }

    /// Writes status line and fields for HTTP/1.1, without the empty line and without framing
    /// fields of its own.
    pub fn write_h1(&self, out: &mut Vec<u8>) {
        let status = self.status;
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(&[
            b'0' + (status / 100 % 10) as u8,
            b'0' + (status / 10 % 10) as u8,
            b'0' + (status % 10) as u8,
            b' ',
        ]);

        out.extend_from_slice(reason(status).as_bytes());
        out.extend_from_slice(b"\r\n");
        self.fields.write_h1(out);
    }

    /// gRPC by content type, as Envoy decides it.
    pub fn is_grpc(&self) -> bool {
        self.fields
            .known(Known::ContentType)
            .is_some_and(is_grpc_content_type)
    }
}
