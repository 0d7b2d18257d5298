//! Percent-encoding of query strings (RFC 3986 §2.1).

use std::fmt::Write;

/// Encodes pairs as `key=value&...`. Pairs with an empty value are left out.
pub fn encode(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(key);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(byte))
                }
                _ => _ = write!(out, "%{byte:02X}"),
            }
        }
    }

    out
}

/// Decodes the pairs of a query. Bytes that are not UTF-8 are replaced by U+FFFD; malformed escapes
/// stay as they are.
pub fn decode(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

fn plain(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| {
            bytes
                .get(at)
                .and_then(|byte| char::from(*byte).to_digit(16))
        };

        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', _, _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }

    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_and_decoding_round_trip() {
        let pairs = [
            ("kind", "VirtualService"),
            ("name", "a&b=c %/ä+"),
            ("ns", ""),
        ];

        let decoded = decode(&encode(&pairs));
        assert_eq!(
            decoded,
            [
                ("kind".into(), "VirtualService".into()),
                ("name".into(), "a&b=c %/ä+".into())
            ]
        );
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(
            decode("a=%&b=%f&c=%ff"),
            [
                ("a".into(), "%".into()),
                ("b".into(), "%f".into()),
                ("c".into(), "\u{fffd}".into())
            ]
        );
    }
}
