//! The little of RFC 1035 that the node needs: read a question, write an answer with addresses,
//! with another name, or none; ask the same about another name, and read the addresses of the
//! answer.

use std::net::Ipv4Addr;

/// The A record type.
pub(crate) const A: u16 = 1;
/// The AAAA record type.
pub(crate) const AAAA: u16 = 28;
const CNAME: u16 = 5;
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
                name.extend(
                    label
                        .iter()
                        .map(|byte| char::from(byte.to_ascii_lowercase())),
                );

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

    Some(Question {
        name,
        kind,
        end: at + 4,
    })
}

/// Answers `query` with addresses (none: an empty answer) and a code.
pub(crate) fn answer(
    query: &[u8],
    question: &Question,
    code: u8,
    addresses: &[Ipv4Addr],
) -> Vec<u8> {
    // As many as fit a plain UDP answer of 512 bytes.
    let room = (512_usize.saturating_sub(question.end)) / 16;
    let addresses = &addresses[..addresses.len().min(room)];
    let mut out = head(query, question, code, addresses.len());
    for address in addresses {
        record(&mut out, QUESTION, A, &address.octets());
    }
    out
}

/// Answers `query` with another name, and with what was found for that one: data of the type that
/// is asked for. `None` if the other name is none.
pub(crate) fn answer_alias(
    query: &[u8],
    question: &Question,
    code: u8,
    target: &str,
    found: &[Vec<u8>],
) -> Option<Vec<u8>> {
    let target = encode(target)?;
    let mut out = head(query, question, code, 0);
    record(&mut out, QUESTION, CNAME, &target);
    let owner = u16::try_from(out.len() - target.len())
        .ok()
        .filter(|at| *at < 0x4000)?;
    let room = 512_usize.saturating_sub(out.len());
    let fits = found.iter().scan(0, |used, data| {
        *used += 12 + data.len();
        (*used <= room).then_some(data)
    });

    let mut count = 1_u16;
    for data in fits.collect::<Vec<_>>() {
        record(&mut out, owner, question.kind, data);
        count += 1;
    }

    out[6..8].copy_from_slice(&count.to_be_bytes());

    Some(out)
}

/// Where every message has its first name.
const QUESTION: u16 = 12;

/// The question again, with the header of an answer.
fn head(query: &[u8], question: &Question, code: u8, records: usize) -> Vec<u8> {
    let count = u16::try_from(records).unwrap_or(0).to_be_bytes();
    let mut out = query[..question.end.min(query.len())].to_vec();
    out[2] = 0x84 | (query[2] & 1); // an answer, authoritative; recursion desired as asked
    out[3] = 0x80 | code; // recursion available
    out[6..12].copy_from_slice(&[count[0], count[1], 0, 0, 0, 0]);
    out
}

/// Appends a record of a name that stands at `owner`.
fn record(out: &mut Vec<u8>, owner: u16, kind: u16, data: &[u8]) {
    out.extend_from_slice(&(0xc000 | owner).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&TTL_SECONDS.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(data);
}

/// A name as messages have it, uncompressed.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        out.push(length);
        out.extend_from_slice(label.as_bytes());
    }

    out.push(0);

    (out.len() <= MAX_NAME).then_some(out)
}

/// The same question about another name; `None` if that is none.
pub(crate) fn ask(query: &[u8], question: &Question, name: &str) -> Option<Vec<u8>> {
    let mut out = query.get(..12)?.to_vec();
    // One question, and nothing else of what the client had sent.
    out[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend(encode(name)?);
    out.extend_from_slice(query.get(question.end - 4..question.end)?);
    Some(out)
}

/// The code of an answer, and the data of its records of a type that needs no other part of the
/// message (such as addresses).
pub(crate) fn found(answer: &[u8], kind: u16) -> Option<(u8, Vec<Vec<u8>>)> {
    let number = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let (code, questions, records) = (*answer.get(3)? & 0x0f, number(4)?, number(6)?);
    let mut at = 12;

    for _ in 0..questions {
        at = behind_name(answer, at)? + 4;
    }
    let mut data = Vec::new();
    for _ in 0..records {
        at = behind_name(answer, at)?;
        let (of, length) = (number(at)?, usize::from(number(at + 8)?));
        let bytes = answer.get(at + 10..at + 10 + length)?;
        if of == kind {
            data.push(bytes.to_vec());
        }
        at += 10 + length;
    }

    Some((code, data))
}

fn behind_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            // A pointer ends a name.
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
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
        assert_eq!(
            (asked.name.as_str(), asked.kind),
            ("reviews.default.svc", A)
        );

        let out = answer(&bytes, &asked, NO_ERROR, &[Ipv4Addr::new(10, 45, 0, 1)]);
        assert_eq!(&out[..8], [7, 7, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(&out[out.len() - 6..], [0, 4, 10, 45, 0, 1]);
        assert_eq!(answer(&bytes, &asked, NO_SUCH_NAME, &[])[3], 0x83);
        let many = vec![Ipv4Addr::LOCALHOST; 100];
        assert!(answer(&bytes, &asked, NO_ERROR, &many).len() <= 512);
    }

    #[test]
    fn another_name_is_asked_about_and_answered_with() {
        let bytes = [
            &query("ext.default.svc", A)[..],
            &[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();

        let asked = question(&bytes).unwrap();
        let outside = ask(&bytes, &asked, "www.example.org").unwrap();
        assert_eq!(
            outside,
            query("www.example.org", A),
            "without what the client had appended"
        );

        // As a resolver answers: an alias of its own first, names as pointers.
        let upstream = answer_alias(
            &outside,
            &question(&outside).unwrap(),
            NO_ERROR,
            "cdn.example",
            &[vec![192, 0, 2, 1]],
        );

        let upstream = upstream.unwrap();
        let (code, addresses) = found(&upstream, A).unwrap();
        assert_eq!(
            (code, &addresses[..]),
            (NO_ERROR, &[vec![192, 0, 2, 1]][..])
        );

        for end in 0..upstream.len() {
            assert_eq!(found(&upstream[..end], A), None, "{end}");
        }
        let out = answer_alias(&bytes, &asked, code, "www.example.org", &addresses).unwrap();
        assert_eq!(
            (&out[..4], &out[6..12]),
            (&[7, 7, 0x85, 0x80][..], &[0, 2, 0, 0, 0, 0][..])
        );

        assert_eq!(
            found(&out, CNAME).unwrap().1,
            [encode("www.example.org").unwrap()]
        );

        assert_eq!(found(&out, A).unwrap().1, addresses);
        let many = vec![vec![0; 4]; 100];
        let out = answer_alias(&bytes, &asked, code, "www.example.org", &many).unwrap();
        assert!(out.len() <= 512 && found(&out, A).unwrap().1.len() > 20);

        for none in ["", "a..b", &"a".repeat(64), &["a"; 128].join(".")] {
            assert!(
                encode(none).is_none() && ask(&bytes, &asked, none).is_none(),
                "{none:?}"
            );
        }
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
