//! One canonical path for routing, authorization and forwarding.
//!
//! What a peer may spell in two ways is folded here, before anything decides on it; what cannot be
//! folded safely is refused. Source: Envoy `path_canonicalization`, RFC 3986 §5.2.4 and §6.2.2.

/// The steps that make a path canonical. Source: HCM `normalize_path`, `merge_slashes`,
/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathNormalization {
    /// Resolve `.` and `..`, turn `\` into `/`, decode needlessly encoded characters.
    pub normalize: bool,
    /// Several slashes are one.
    pub merge_slashes: bool,
    /// What `%2F` and `%5C` become.
    pub escaped_slashes: EscapedSlashes,
}

/// What happens to `%2F` and `%5C`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// They are decoded, and the client is sent there.
    Redirect,
    /// They are decoded.
    Forward,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathOutcome {
    /// The path is canonical.
    Unchanged,
    /// `out` holds the canonical path with the query.
    Changed,
    /// `out` holds it, and the client must be redirected there (307).
    Redirect,
    /// 400; the text is the detail as Envoy has it.
    Reject(&'static str),
}

/// `path_normalization_failed` in `%RESPONSE_CODE_DETAILS%`.
pub const NORMALIZATION_FAILED: &str = "path_normalization_failed";

impl PathNormalization {
    /// Makes a request's path (with query) canonical. `out` is cleared first. A path that needs
    /// nothing costs one scan and no copy.
    pub fn apply(&self, path: &str, out: &mut Vec<u8>) -> PathOutcome {
        out.clear();
        let bytes = path.as_bytes();

        // A fragment must not reach a server that reads it otherwise than the policies do: policies,
        // routes and the server see the path without it. Source: Istio's bootstrap,
        // `http_reject_path_with_fragment: false`.
        let end = memchr::memchr(b'#', bytes).unwrap_or(bytes.len());
        let (bytes, has_fragment) = (&bytes[..end], end < bytes.len());
        let query = memchr::memchr(b'?', bytes).unwrap_or(bytes.len());
        let (path, query) = bytes.split_at(query);
        if !has_fragment && (path == b"*" || path.is_empty()) {
            return PathOutcome::Unchanged;
        }
        if path.is_empty() {
            return PathOutcome::Reject(NORMALIZATION_FAILED);
        }
        if path[0] != b'/' {
            return PathOutcome::Reject(NORMALIZATION_FAILED);
        }
        let mut current = std::borrow::Cow::Borrowed(path);
        let mut redirect = false;
        if self.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(path) {
            match self.escaped_slashes {
                EscapedSlashes::Reject => return PathOutcome::Reject(NORMALIZATION_FAILED),
                EscapedSlashes::Redirect => redirect = true,
                EscapedSlashes::Forward | EscapedSlashes::Keep => {}
            }
            current = unescape_slashes(path).into();
        }

        if self.normalize && needs_canonical(&current) {
            match canonical(&current) {
                Some(canonical) => current = canonical.into(),
                None => return PathOutcome::Reject(NORMALIZATION_FAILED),
            }
        }

        if self.merge_slashes && current.windows(2).any(|pair| pair == b"//") {
            let mut merged = current.into_owned();
            merged.dedup_by(|next, last| *next == b'/' && *last == b'/');
            current = merged.into();
        }

        if *current == *path && !has_fragment {
            return PathOutcome::Unchanged;
        }
        out.extend_from_slice(&current);
        out.extend_from_slice(query);

        if redirect {
            PathOutcome::Redirect
        } else {
            PathOutcome::Changed
        }
    }
}

fn is_escaped_slash(code: &[u8]) -> bool {
    matches!(
        code,
        [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..]
    )
}

fn has_escaped_slash(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path).any(|at| is_escaped_slash(&path[at..]))
}

fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if is_escaped_slash(rest) {
            out.push(if rest[1] == b'2' { b'/' } else { b'\\' });
            rest = &rest[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }

    out
}

/// Bytes that a canonical path does not have, or that may have to go.
const SUSPECT: [bool; 256] = {
    let mut suspect = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        suspect[byte] = matches!(byte as u8, 0 | b'%' | b'\\') || is_encoded(byte as u8);
        byte += 1;
    }
    suspect
};

fn needs_canonical(path: &[u8]) -> bool {
    path.iter().any(|byte| SUSPECT[usize::from(*byte)])
        || memchr::memmem::find(path, b"/.").is_some()
}

/// What a path has in codes alone. Source: WHATWG URL, path percent-encode set, and `^` and `|` as
/// Envoy has it.
const fn is_encoded(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Whether a code stands here, or will.
fn becomes_code(byte: u8) -> bool {
    byte == b'%' || is_encoded(byte)
}

fn encode(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([
        b'%',
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]);
}

/// Decodes what needs no code, encodes what does, then resolves dot segments. `None`: the path is
/// not valid (`%00`), or would be decoded a second time into something else (`%%32%65`).
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match first {
            0 => return None,
            b'\\' => decoded.push(b'/'),
            b'%' => match (rest.get(1).copied(), rest.get(2).copied()) {
                (Some(high), Some(low)) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    match hex(high) << 4 | hex(low) {
                        0 => return None,
                        // RFC 3986 §6.2.2.2: unreserved characters mean the same either way.
                        byte if byte.is_ascii_alphanumeric()
                            || matches!(byte, b'-' | b'.' | b'_' | b'~') =>
                        {
                            decoded.push(byte)
                        }
                        // As it came: Envoy leaves the digits' case to the client.
                        _ => decoded.extend_from_slice(&rest[..3]),
                    }

                    rest = &rest[3..];
                    continue;
                }
                // A percent sign by itself, as in `100%`, unless what follows would make a code
                // with it.
                (Some(next), _) if becomes_code(next) => return None,
                (Some(next), Some(last)) if next.is_ascii_hexdigit() && becomes_code(last) => {
                    return None;
                }
                _ => decoded.push(b'%'),
            },
            byte if is_encoded(*byte) => encode(*byte, &mut decoded),
            byte => decoded.push(*byte),
        }

        rest = tail;
    }

    let mut out: Vec<u8> = Vec::with_capacity(decoded.len());
    let mut segments = decoded[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {
                if last {
                    out.push(b'/');
                }
            }
            b".." => {
                // Beyond the root there is nothing.
                let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }

    if out.is_empty() {
        out.push(b'/');
    }

    Some(out)
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(rule: PathNormalization, path: &str) -> (PathOutcome, String) {
        let mut out = Vec::new();
        let outcome = rule.apply(path, &mut out);
        (outcome, String::from_utf8(out).expect("text"))
    }

    const ISTIO: PathNormalization = PathNormalization {
        normalize: true,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::Keep,
    };

    #[test]
    fn what_means_the_same_becomes_the_same() {
        for (path, canonical) in [
            ("/a/./b", "/a/b"),
            ("/a/../admin", "/admin"),
            ("/../../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2e/admin?x=/../y", "/admin?x=/../y"),
            ("\\admin", ""),
            ("/a\\..\\admin", "/admin"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/%61%2fb%7c", "/a%2fb%7c"),
            ("/a|b<c>", "/a%7Cb%3Cc%3E"),
            ("/100%/%61", "/100%/a"),
            ("/admin#x", "/admin"),
            ("/a?b#/../c?d", "/a?b"),
            ("/a/..#/b", "/"),
        ] {
            let (outcome, out) = apply(ISTIO, path);
            match canonical {
                "" => assert_eq!(outcome, PathOutcome::Reject(NORMALIZATION_FAILED), "{path}"),
                canonical => assert_eq!(
                    (outcome, out.as_str()),
                    (PathOutcome::Changed, canonical),
                    "{path}"
                ),
            }
        }

        for path in [
            "/",
            "/a/b",
            "/a//b",
            "/.well-known/x",
            "/a?b=../c",
            "/a%2fb%5C%ff",
            "/100%",
            "/a%2",
            "/a%zz",
            "*",
        ] {
            assert!(
                matches!(
                    apply(ISTIO, path).0,
                    PathOutcome::Unchanged | PathOutcome::Changed
                ),
                "{path}"
            );
        }

        assert_eq!(apply(ISTIO, "/a//b").0, PathOutcome::Unchanged);
    }

    #[test]
    fn what_cannot_be_folded_is_refused() {
        for path in [
            "#x",
            "*#x",
            "/a%00b",
            "/%%32%65/",
            "/%2%65/",
            "/%%2e",
            "/%|",
            "/%2|",
            "relative",
        ] {
            assert!(
                matches!(apply(ISTIO, path).0, PathOutcome::Reject(_)),
                "{path}"
            );
        }

        let reject = PathNormalization {
            escaped_slashes: EscapedSlashes::Reject,
            ..ISTIO
        };

        assert!(matches!(apply(reject, "/a%2Fb").0, PathOutcome::Reject(_)));
        let redirect = PathNormalization {
            escaped_slashes: EscapedSlashes::Redirect,
            merge_slashes: true,
            ..ISTIO
        };

        assert_eq!(
            apply(redirect, "/a%2F%5cb"),
            (PathOutcome::Redirect, "/a/b".to_owned())
        );
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(path in "/([a-z0-9./%|\\\\]|%2[ef]|%5c|%41|%32){0,12}", merge in any::<bool>()) {
            let rule = PathNormalization { normalize: true, merge_slashes: merge, escaped_slashes: EscapedSlashes::Forward };
            let mut once = Vec::new();
            if rule.apply(&path, &mut once) == PathOutcome::Changed {
                let once = String::from_utf8(once).expect("text");
                let mut twice = Vec::new();
                prop_assert_eq!(rule.apply(&once, &mut twice), PathOutcome::Unchanged, "{}", once);
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }

        #[test]
        fn no_path_is_a_panic(path in "\\PC{0,40}") {
            apply(ISTIO, &path);
        }
    }
}
