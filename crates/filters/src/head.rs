//! Heads of requests and responses: one flat byte arena and a small index of fields.
//!
//! A head is read once, changed by filters, and written once, so nothing here is a map. Names are lower case in the
//! arena (as Envoy forwards them), values are bytes. Removing a field drops its index entry; setting one writes the
//! new bytes at the arena's end. Fields that nobody touched are written out in runs, a whole stretch of the arena at
//! a time. Heads are pooled: [`Fields::clear`] keeps the memory.
//!
//! `:method`, `:path`, `:authority`, `:scheme` and `:status` are answered by [`RequestHead::get`] and
//! [`ResponseHead::get`] like any field, because configuration names them so. There is never a `host` field: the
//! authority is the one host for routing, authorization and forwarding.

use std::borrow::Cow;

macro_rules! known {
    ($($variant:ident $text:literal,)*) => {
        /// A field name that the proxy itself looks at; finding one of these is a bit test and a byte scan.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Known { Other = 0, $($variant,)* }

        impl Known {
            /// Which one it is; `name` must be lower case.
            pub fn of(name: &[u8]) -> Self {
                // The compiler switches on the length first, so a miss costs one or two comparisons.
                match name {
                    $(x if x == $text.as_bytes() => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// The lower-case name; empty for `Other`.
            pub fn name(self) -> &'static str {
                match self { Self::Other => "", $(Self::$variant => $text,)* }
            }
        }
    };
}

known! {
    Accept "accept",
    AcceptEncoding "accept-encoding",
    Authorization "authorization",
    CacheControl "cache-control",
    Connection "connection",
    ContentLength "content-length",
    ContentType "content-type",
    Cookie "cookie",
    Date "date",
    Expect "expect",
    GrpcStatus "grpc-status",
    GrpcMessage "grpc-message",
    GrpcTimeout "grpc-timeout",
    KeepAlive "keep-alive",
    Location "location",
    Origin "origin",
    ProxyConnection "proxy-connection",
    RetryAfter "retry-after",
    Server "server",
    SetCookie "set-cookie",
    Te "te",
    Trailer "trailer",
    TransferEncoding "transfer-encoding",
    Upgrade "upgrade",
    UserAgent "user-agent",
    Via "via",
    XRequestId "x-request-id",
    XForwardedFor "x-forwarded-for",
    XForwardedProto "x-forwarded-proto",
    XForwardedHost "x-forwarded-host",
    XForwardedClientCert "x-forwarded-client-cert",
    XEnvoyInternal "x-envoy-internal",
    XEnvoyExternalAddress "x-envoy-external-address",
    XEnvoyOriginalPath "x-envoy-original-path",
    XEnvoyOriginalHost "x-envoy-original-host",
    XEnvoyDecoratorOperation "x-envoy-decorator-operation",
    XEnvoyAttemptCount "x-envoy-attempt-count",
    XEnvoyUpstreamServiceTime "x-envoy-upstream-service-time",
    XEnvoyUpstreamRqTimeoutMs "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamRqPerTryTimeoutMs "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyExpectedRqTimeoutMs "x-envoy-expected-rq-timeout-ms",
    XEnvoyRetryOn "x-envoy-retry-on",
    XEnvoyRetryGrpcOn "x-envoy-retry-grpc-on",
    XEnvoyMaxRetries "x-envoy-max-retries",
    XEnvoyRetriableStatusCodes "x-envoy-retriable-status-codes",
    XEnvoyOverloaded "x-envoy-overloaded",
    XEnvoyRatelimited "x-envoy-ratelimited",
    XEnvoyPeerMetadata "x-envoy-peer-metadata",
    XEnvoyPeerMetadataId "x-envoy-peer-metadata-id",
    Traceparent "traceparent",
    Tracestate "tracestate",
    Baggage "baggage",
    B3 "b3",
    XB3Traceid "x-b3-traceid",
    XB3Spanid "x-b3-spanid",
    XB3Parentspanid "x-b3-parentspanid",
    XB3Sampled "x-b3-sampled",
    XB3Flags "x-b3-flags",
    AccessControlRequestMethod "access-control-request-method",
}

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

/// A stretch of the arena.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    at: u32,
    len: u32,
}

/// Header fields or trailers, in order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    arena: Vec<u8>,
    index: Vec<Field>,
    present: u64,
}

/// Above this much memory a cleared head gives its arena back.
const KEEP_BYTES: usize = 16 * 1024;

impl Fields {
    /// No fields, no memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything and keeps the memory, unless one large head has grown it beyond reason.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.index.clear();
        self.present = 0;
        if self.arena.capacity() > KEEP_BYTES {
            self.arena = Vec::new();
        }
    }

    /// How many field lines there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Sum of the lengths of names and values.
    pub fn byte_len(&self) -> usize {
        self.index.iter().map(|f| f.name_len as usize + f.value_len as usize).sum()
    }

    /// Starts from bytes as read, to be indexed by [`Fields::push_loaded`]. Forgets what was there.
    pub fn load(&mut self, bytes: &[u8]) {
        self.clear();
        self.arena.extend_from_slice(bytes);
    }

    /// Indexes a field of the loaded bytes and lower-cases its name in place. The caller has checked the syntax.
    pub fn push_loaded(&mut self, name: usize, name_len: usize, value: usize, value_len: usize) {
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

    fn span(&self, span: Span) -> &[u8] {
        &self.arena[span.at as usize..(span.at + span.len) as usize]
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let at = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { at, len: bytes.len() as u32 }
    }

    fn name_of(&self, field: &Field) -> &[u8] {
        &self.arena[field.name as usize..field.name as usize + field.name_len as usize]
    }

    fn value_of(&self, field: &Field) -> &[u8] {
        &self.arena[field.value as usize..(field.value + field.value_len) as usize]
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.index
            .iter()
            .position(|f| f.name_len as usize == name.len() && self.name_of(f).eq_ignore_ascii_case(name.as_bytes()))
    }

    /// The first value of a field; case of `name` does not matter.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.find(name).map(|at| self.value_of(&self.index[at]))
    }

    /// The first value as text. `None` also where the value is not UTF-8, so a decision that must not be fooled uses
    /// [`Fields::get`] or [`Fields::joined`].
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value of a well-known field.
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        if !self.has(known) {
            return None;
        }
        self.index.iter().find(|f| f.known == known).map(|f| self.value_of(f))
    }

    /// The first value of a well-known field as text; see [`Fields::get_str`].
    pub fn known_str(&self, known: Known) -> Option<&str> {
        self.known(known).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Whether a well-known field is there; one bit test.
    pub fn has(&self, known: Known) -> bool {
        self.present & (1 << known as u8) != 0
    }

    /// All values of a field, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.index
            .iter()
            .filter(move |f| f.name_len as usize == name.len() && self.name_of(f).eq_ignore_ascii_case(name.as_bytes()))
            .map(|f| self.value_of(f))
    }

    /// All values of a field joined by a comma, as Envoy's matchers see a field that occurs twice.
    pub fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut values = self.get_all_at(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
        let mut all = [first, b",", second].concat();
        for value in values {
            all.push(b',');
            all.extend_from_slice(value);
        }
        Some(Cow::Owned(all))
    }

    // Ties the items to `self` alone, where `get_all` ties them to the name as well.
    fn get_all_at<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.index
            .iter()
            .filter(move |f| f.name_len as usize == name.len() && self.name_of(f).eq_ignore_ascii_case(name.as_bytes()))
            .map(|f| self.value_of(f))
    }

    /// Whether a field is there.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Name (lower case) and value of every field line, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + '_ {
        self.index.iter().map(|f| (std::str::from_utf8(self.name_of(f)).unwrap_or_default(), self.value_of(f)))
    }

    /// Adds a field line at the end, whatever is there already. The name is lower-cased. Bytes that may not stand in a
    /// value (CR, LF, NUL and other controls) are written as spaces, so that no caller can split a head.
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
        let Some(first) = self.find(name) else { return self.append(name, value) };
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

    /// Adds to the last line of a field, after `separator`, or makes the line.
    pub fn append_joined(&mut self, name: &str, separator: &[u8], value: &[u8]) {
        let last = self
            .index
            .iter()
            .rposition(|f| f.name_len as usize == name.len() && self.name_of(f).eq_ignore_ascii_case(name.as_bytes()));
        let Some(last) = last else { return self.append(name, value) };
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

    /// Drops every line of a field; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(first) = self.find(name) else { return false };
        let known = self.index[first].known;
        let arena = &self.arena;
        self.index.retain(|f| {
            !(f.name_len as usize == name.len()
                && arena[f.name as usize..f.name as usize + f.name_len as usize].eq_ignore_ascii_case(name.as_bytes()))
        });
        if known != Known::Other {
            self.present &= !(1 << known as u8);
        }
        true
    }

    /// Drops every line of a well-known field; free where there is none.
    pub fn remove_known(&mut self, known: Known) -> bool {
        if known == Known::Other || !self.has(known) {
            return false;
        }
        self.index.retain(|f| f.known != known);
        self.present &= !(1 << known as u8);
        true
    }

    /// Keeps the lines that `keep` wants.
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

    /// Writes the lines as HTTP/1.1 does, `name: value CRLF` each; untouched neighbours in one copy.
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

/// The protocol version of a head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
}

impl HttpVersion {
    /// As access logs print it: `HTTP/1.1`, `HTTP/2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
        }
    }
}

/// A request without its body.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    fields: Fields,
    method: Span,
    path: Span,
    authority: Span,
    https: bool,
    /// The version it arrived with.
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

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.fields.clear();
        self.method = Span::default();
        self.path = Span::default();
        self.authority = Span::default();
        self.https = false;
        self.version = HttpVersion::default();
    }

    /// Starts from a head's bytes as read; the offsets of method and target are relative to them.
    pub fn load(&mut self, bytes: &[u8], method: (usize, usize), target: (usize, usize)) {
        self.clear();
        self.fields.load(bytes);
        self.method = Span { at: method.0 as u32, len: method.1 as u32 };
        self.path = Span { at: target.0 as u32, len: target.1 as u32 };
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

    /// Path with query, as on the wire: `/a/b?c=d`; `*` for OPTIONS; empty for CONNECT without `:path`.
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

    /// `http` or `https`: how the client spoke to the first proxy it met, as far as we know.
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

    /// Points the path at a part of itself; for absolute-form targets, whose host goes elsewhere.
    pub fn narrow_path(&mut self, skip: usize) {
        let skip = (skip as u32).min(self.path.len);
        self.path = Span { at: self.path.at + skip, len: self.path.len - skip };
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
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All lines of a field joined by a comma; pseudo-fields as they are.
    pub fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match self.pseudo(name) {
            Some(value) => value.map(|v| Cow::Borrowed(v.as_bytes())),
            None => self.fields.joined(name),
        }
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

    /// Replaces a field or pseudo-field. Pseudo-fields take ASCII without spaces and controls; else nothing happens.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            let Some(text) = std::str::from_utf8(value).ok().filter(|t| t.bytes().all(|b| b > 0x20 && b < 0x7f)) else {
                return;
            };
            match name {
                ":method" => self.set_method(text),
                ":path" => self.set_path(text),
                ":scheme" => self.set_scheme(text),
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

    /// Drops a field; pseudo-fields and `host` stay, for a request cannot be without them.
    pub fn remove(&mut self, name: &str) -> bool {
        self.fields.remove(name)
    }

    /// The regular fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + '_ {
        self.fields.iter()
    }

    /// Writes request line, `host` and fields for HTTP/1.1, without the empty line and without framing fields of
    /// its own.
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
        self.fields.known(Known::ContentType).is_some_and(is_grpc_content_type)
    }
}

/// A response without its body.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    fields: Fields,
    /// 100 to 999.
    pub status: u16,
    /// The version it arrived with.
    pub version: HttpVersion,
}

impl ResponseHead {
    /// A head with a status and no field.
    pub fn of(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.fields.clear();
        self.status = 0;
        self.version = HttpVersion::default();
    }

    /// Starts from a head's bytes as read.
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
            return Some(Cow::Owned(self.status.to_string().into_bytes()));
        }
        self.fields.get(name).map(Cow::Borrowed)
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
        if name.starts_with(':') { self.set(name, value) } else { self.fields.append(name, value) }
    }

    /// Drops a field.
    pub fn remove(&mut self, name: &str) -> bool {
        self.fields.remove(name)
    }

    /// The regular fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + '_ {
        self.fields.iter()
    }

    /// Writes status line and fields for HTTP/1.1, without the empty line and without framing fields of its own.
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
        self.fields.known(Known::ContentType).is_some_and(is_grpc_content_type)
    }
}

/// `application/grpc`, alone or followed by `+` or `;`. `application/grpc-web` is another protocol.
fn is_grpc_content_type(value: &[u8]) -> bool {
    value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The reason phrase that Envoy writes for a status.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fields: &Fields) -> String {
        let mut out = Vec::new();
        fields.write_h1(&mut out);
        String::from_utf8(out).expect("ASCII in tests")
    }

    #[test]
    fn set_keeps_the_place_and_drops_further_lines() {
        let mut fields = Fields::new();
        for (name, value) in [("A", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
            fields.append(name, value.as_bytes());
        }
        fields.set("a", b"9");
        assert_eq!(text(&fields), "a: 9\r\nb: 2\r\nc: 4\r\n");
        assert_eq!(fields.get("A"), Some(b"9".as_slice()));
        assert!(fields.remove("B"));
        assert!(!fields.remove("b"));
        assert_eq!(text(&fields), "a: 9\r\nc: 4\r\n");
    }

    #[test]
    fn loaded_lines_are_written_as_runs_with_lower_case_names() {
        let raw = b"Host: x\r\nAccept:  */*\r\nX-Y: z\r\n";
        let mut fields = Fields::new();
        fields.load(raw);
        fields.push_loaded(0, 4, 6, 1);
        fields.push_loaded(9, 6, 18, 3);
        fields.push_loaded(23, 3, 28, 1);
        assert_eq!(text(&fields), "host: x\r\naccept: */*\r\nx-y: z\r\n");
        assert!(fields.has(Known::Accept));
        fields.remove_known(Known::Accept);
        assert!(!fields.has(Known::Accept));
        assert_eq!(text(&fields), "host: x\r\nx-y: z\r\n");
    }

    #[test]
    fn a_value_cannot_split_a_head() {
        let mut fields = Fields::new();
        fields.append("x", b"a\r\nb: c\0");
        assert_eq!(text(&fields), "x: a  b: c \r\n");
    }

    #[test]
    fn joined_shows_every_line() {
        let mut fields = Fields::new();
        fields.append("x-forwarded-for", b"1.1.1.1");
        fields.append("x-forwarded-for", b"2.2.2.2");
        assert_eq!(fields.joined("X-Forwarded-For").as_deref(), Some(b"1.1.1.1,2.2.2.2".as_slice()));
        fields.append_joined("x-forwarded-for", b",", b"3.3.3.3");
        assert_eq!(fields.joined("x-forwarded-for").as_deref(), Some(b"1.1.1.1,2.2.2.2,3.3.3.3".as_slice()));
        assert_eq!(fields.len(), 2);
    }

    #[test]
    fn pseudo_fields_answer_by_name_and_host_is_the_authority() {
        let mut head = RequestHead::of("GET", "reviews:9080", "/a?b=c#d");
        assert_eq!(head.get(":path"), Some(b"/a?b=c#d".as_slice()));
        assert_eq!(head.path_only(), "/a");
        assert_eq!(head.query(), Some("b=c"));
        assert_eq!(head.get("Host"), Some(b"reviews:9080".as_slice()));
        head.set("host", b"other");
        assert_eq!(head.authority(), "other");
        head.set(":path", b"/x y");
        assert_eq!(head.path(), "/a?b=c#d", "a path with a space is refused");
        let mut out = Vec::new();
        head.write_h1(&mut out);
        assert_eq!(out, b"GET /a?b=c#d HTTP/1.1\r\nhost: other\r\n");
    }

    #[test]
    fn every_known_name_finds_itself() {
        assert_eq!(Known::of(b"x-request-id"), Known::XRequestId);
        assert_eq!(Known::of(b"x-request-ie"), Known::Other);
        assert!((Known::AccessControlRequestMethod as u8) < 64, "the bit set has 64 places");
    }
}
