//! A request without its body.

use super::fields::{Fields, Span};
use super::{HttpVersion, Known, is_grpc_content_type};

/// A token (RFC 9110 §9.1) without small letters: to some server `get` is GET, and no policy says
/// so.
fn is_method(text: &str) -> bool {
    let token =
        |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    text.bytes().all(token)
}

/// A request without its body.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    fields: Fields,
    method: Span,
    path: Span,
    authority: Span,
    https: bool,
    /// The HTTP version that the client spoke.
    pub version: HttpVersion,
}

impl RequestHead {
    /// An empty head.
    pub fn new() -> Self {
        Self::default()
    }

    /// A head with method, authority and path; for tests and for requests of the proxy's own.
    pub fn of(method: &str, authority: &str, path: &str) -> Self {
        let mut head = Self::default();
        head.set_method(method);
        head.set_authority(authority);
        head.set_path(path);
        head
    }

    /// Removes everything and keeps the memory.
    pub fn clear(&mut self) {
        self.fields.clear();
        self.method = Span::default();
        self.path = Span::default();
        self.authority = Span::default();
        self.https = false;
        self.version = HttpVersion::default();
    }

    /// Replaces everything by the bytes of a head as read. `method` and `target` are offset and
    /// length in them.
    pub fn load(&mut self, bytes: &[u8], method: (usize, usize), target: (usize, usize)) {
        self.clear();
        self.fields.load(bytes);
        self.method = Span {
            at: method.0 as u32,
            len: method.1 as u32,
        };

        self.path = Span {
            at: target.0 as u32,
            len: target.1 as u32,
        };
    }

    /// The regular fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The regular fields, to change.
    pub fn fields_mut(&mut self) -> &mut Fields {
        &mut self.fields
    }

    fn text(&self, span: Span) -> &str {
        // Codecs refuse other bytes than ASCII here, and setters take text.
        std::str::from_utf8(self.fields.span(span)).unwrap_or_default()
    }

    /// For example `GET`; case matters.
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// Path with query, as on the wire: `/a/b?c=d`; `*` for OPTIONS; empty for CONNECT without
    /// `:path`.
    pub fn path(&self) -> &str {
        self.text(self.path)
    }

    /// The path up to `?` or `#`.
    pub fn path_only(&self) -> &str {
        let path = self.path();
        &path[..path.find(['?', '#']).unwrap_or(path.len())]
    }

    /// What follows `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        let path = self.path();
        let path = &path[..path.find('#').unwrap_or(path.len())];
        path.split_once('?').map(|(_, query)| query)
    }

    /// Host, with a port if the client gave one.
    pub fn authority(&self) -> &str {
        self.text(self.authority)
    }

    /// `http` or `https`: the protocol between the client and the first proxy, as far as is known.
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Replaces the method.
    pub fn set_method(&mut self, method: &str) {
        self.method = self.fields.store(method.as_bytes());
    }

    /// Replaces path and query.
    pub fn set_path(&mut self, path: &str) {
        self.path = self.fields.store(path.as_bytes());
    }

    /// Replaces the authority.
    pub fn set_authority(&mut self, authority: &str) {
        self.authority = self.fields.store(authority.as_bytes());
    }

    /// Removes the first bytes of the path: scheme and host of an absolute-form target.
    pub fn narrow_path(&mut self, skip: usize) {
        let skip = (skip as u32).min(self.path.len);
        self.path = Span {
            at: self.path.at + skip,
            len: self.path.len - skip,
        };
    }

    /// Sets the scheme; everything but `https` is `http`.
    pub fn set_scheme(&mut self, scheme: &str) {
        self.https = scheme.eq_ignore_ascii_case("https");
    }

    /// A field or pseudo-field by name, first line; `host` is the authority.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        match self.pseudo(name) {
            Some(value) => value.map(str::as_bytes),
            None => self.fields.get(name),
        }
    }

    /// As [`RequestHead::get`], as text; see [`Fields::get_str`].
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All lines of a field.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        let pseudo = self.pseudo(name).flatten().map(str::as_bytes);
        pseudo.into_iter().chain(self.fields.get_all(name))
    }

    /// Outer `None`: not a pseudo-field. An empty path or authority counts as absent.
    fn pseudo(&self, name: &str) -> Option<Option<&str>> {
        let value = match name.as_bytes().first()? {
            b':' => match name {
                ":method" => self.method(),
                ":path" => self.path(),
                ":authority" => self.authority(),
                ":scheme" => self.scheme(),
                _ => "",
            },
            b'h' | b'H' if name.eq_ignore_ascii_case("host") => self.authority(),
            _ => return None,
        };

        Some(Some(value).filter(|v| !v.is_empty()))
    }

    /// Replaces a field or pseudo-field. Nothing happens where a pseudo-field would make a request
    /// line that no server reads as it is meant.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            let visible =
                |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
            let Some(text) = std::str::from_utf8(value).ok().filter(visible) else {
                return;
            };

            match name {
                ":method" if is_method(text) => self.set_method(text),
                ":path" if text.starts_with('/') || text == "*" => self.set_path(text),
                ":scheme" => self.set_scheme(text),
                ":method" | ":path" => {}
                ":authority" => self.set_authority(text),
                _ if name.starts_with(':') => {}
                _ => self.set_authority(text),
            }
        } else {
            self.fields.set(name, value);
        }
    }

    /// Adds a field line; a pseudo-field is replaced.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            self.set(name, value);
        } else {
            self.fields.append(name, value);
        }
    }

    /// Removes a field. Pseudo-fields and `host` stay: every request has them.
    pub fn remove(&mut self, name: &str) -> bool {
        self.fields.remove(name)
    }

    /// The regular fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + '_ {
        self.fields.iter()
    }

    /// Writes request line, `host` and fields for HTTP/1.1, without the empty line and without
    /// framing fields of its own.
    pub fn write_h1(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.fields.span(self.method));
        out.push(b' ');
        if self.path.len == 0 {
            // CONNECT: the target is the authority, RFC 9112 §3.2.3.
            out.extend_from_slice(self.fields.span(self.authority));
        } else {
            out.extend_from_slice(self.fields.span(self.path));
        }

        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        out.extend_from_slice(self.fields.span(self.authority));
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
