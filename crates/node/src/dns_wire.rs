//! The little of RFC 1035 that the node needs: read a question, write an answer with addresses, or none.

use std::net::Ipv4Addr;

/// The A record type.
pub(crate) const A: u16 = 1;
/// Answer code: no such name.
pub(crate) const NO_SUCH_NAME: u8 = 3;
/// Answer code: the server could not find out.
pub(crate) const SERVER_FAILURE: u8 = 2;
/// Answer code: fine.
pub(crate) const NO_ERROR: u8 = 0;

const TTL_SECONDS: u32 = 5;
const MAX_NAME: usize = 255;

/// What a query asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// Lower-case name without the closing dot.
    pub(crate) name: String,
    /// Record type.
    pub(crate) kind: u16,
    /// Where the question ends in the query.
    end: usize,
}

/// Reads the question of a query with exactly one; `None` for anything else.
pub(crate) fn question(query: &[u8]) -> Option<Question> {
    let flags = *query.get(2)?;
    let is_query = flags & 0x80 == 0;
    let is_standard = flags & 0x78 == 0;
    if !is_query || !is_standard || query.get(4..6)? != [0, 1] {
        return None;
    }
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => {
                let label = query.get(at..at + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                at += length;
            }
            // A compressed name has nothing before it to point at in a question.
            _ => return None,
        }
        if name.len() > MAX_NAME {
            return None;
        }
    }
    let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    query.get(at + 2..at + 4)?;
    Some(Question { name, kind, end: at + 4 })
}

/// Answers `query` with addresses (none: an empty answer) and a code.
pub(crate) fn answer(query: &[u8], question: &Question, code: u8, addresses: &[Ipv4Addr]) -> Vec<u8> {
    // As many as fit a plain UDP answer of 512 bytes.
    let room = (512_usize.saturating_sub(question.end)) / 16;
    let addresses = &addresses[..addresses.len().min(room)];
    let count = u16::try_from(addresses.len()).unwrap_or(0).to_be_bytes();
    let mut out = query[..question.end.min(query.len())].to_vec();
    out[2] = 0x84 | (query[2] & 1); // an answer, authoritative; recursion desired as asked
    out[3] = 0x80 | code; // recursion available
    out[6..12].copy_from_slice(&[count[0], count[1], 0, 0, 0, 0]);
    for address in addresses {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        out.extend_from_slice(&TTL_SECONDS.to_be_bytes());
        out.extend_from_slice(&[0, 4]);
        out.extend_from_slice(&address.octets());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            out.push(u8::try_from(label.len()).unwrap());
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out
    }

    #[test]
    fn reads_and_answers() {
        let bytes = query("Reviews.default.svc", A);
        let asked = question(&bytes).unwrap();
        assert_eq!((asked.name.as_str(), asked.kind), ("reviews.default.svc", A));
        let out = answer(&bytes, &asked, NO_ERROR, &[Ipv4Addr::new(10, 45, 0, 1)]);
        assert_eq!(&out[..8], [7, 7, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(&out[out.len() - 6..], [0, 4, 10, 45, 0, 1]);
        assert_eq!(answer(&bytes, &asked, NO_SUCH_NAME, &[])[3], 0x83);
        let many = vec![Ipv4Addr::LOCALHOST; 100];
        assert!(answer(&bytes, &asked, NO_ERROR, &many).len() <= 512);
    }

    #[test]
    fn every_cut_of_a_query_is_refused() {
        let bytes = query("a.b", 28);
        for end in 0..bytes.len() {
            assert_eq!(question(&bytes[..end]), None, "{end}");
        }
        let mut pointer = bytes.clone();
        pointer[12] = 0xc0;
        assert_eq!(question(&pointer), None);
    }
}
