//! As much of RFC 1035 as a resolver needs that answers addresses and passes everything else on.

use std::net::IpAddr;

/// The largest answer over UDP, whatever the client allows: beyond it, fragments get lost. Source:
/// DNS flag day 2020.
const MAX_UDP: usize = 1232;
/// RFC 1035 §4.2.1.
const MIN_UDP: usize = 512;

/// The types that are answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Any other number.
    Other(u16),
}

/// Response codes, RFC 1035 §4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rcode {
    /// Answered, perhaps with nothing.
    NoError = 0,
    /// The query cannot be read.
    FormErr = 1,
    /// It cannot be answered now.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Not that kind of query.
    NotImp = 4,
}

/// A standard query with one question, class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Chosen by the client.
    pub id: u16,
    /// Lower case, without the trailing dot; empty for the root.
    pub name: String,
    /// What is asked for.
    pub record: RecordType,
    /// RFC 1035: recursion desired; copied into answers.
    recursion_desired: bool,
    /// The question as it came, so that its spelling comes back (clients check it,
    /// draft-vixie-dnsext-dns0x20).
    question: Vec<u8>,
    /// What the client's UDP buffer takes (EDNS, RFC 6891), if it says.
    udp_size: Option<u16>,
}

/// What to do with bytes that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A query that may be ours.
    Query(Query),
    /// A well-formed header, but something that only the upstream can judge (another class or
    /// opcode).
    Foreign,
    /// Nothing that deserves more than an error, or silence if there is not even an id.
    Malformed(Option<u16>),
}

/// Reads a query. Never panics, never allocates more than the query is long.
pub fn parse(bytes: &[u8]) -> Parsed {
    let Some(header) = bytes.first_chunk::<12>() else {
        return Parsed::Malformed(None);
    };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (id, flags) = (word(0), word(2));
    if flags & 0x8000 != 0 {
        // A response: answering it could start a loop between two servers.
        return Parsed::Malformed(None);
    }

    if flags & 0x7800 != 0 {
        return Parsed::Foreign;
    }
    if word(4) != 1 {
        return Parsed::Malformed(Some(id));
    }
    let Some((name, end)) = read_name(bytes, 12) else {
        return Parsed::Malformed(Some(id));
    };
    let Some(&[t0, t1, c0, c1]) = bytes.get(end..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Parsed::Malformed(Some(id));
    };
    if (c0, c1) != (0, 1) {
        return Parsed::Foreign;
    }
    let record = match u16::from_be_bytes([t0, t1]) {
        1 => RecordType::A,
        28 => RecordType::Aaaa,
        other => RecordType::Other(other),
    };

    let question = bytes[12..end + 4].to_vec();

    // An OPT record with an empty owner, alone in the additional section, is what every client
    // sends.
    let udp_size = match (
        word(6),
        word(8),
        bytes
            .get(end + 4..)
            .and_then(|rest| rest.first_chunk::<5>()),
    ) {
        (0, 0, Some(&[0, 0, 41, s0, s1])) => Some(u16::from_be_bytes([s0, s1])),
        _ => None,
    };

    Parsed::Query(Query {
        id,
        name,
        record,
        recursion_desired: flags & 0x0100 != 0,
        question,
        udp_size,
    })
}

/// A name without compression (RFC 1035 §4.1.4 has nothing to point at in a question) and the
/// offset after it.
fn read_name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let start = at;
    let mut name = String::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }

        // The two high bits are pointers and other extensions; 255 bytes is the limit of §2.3.4.
        if length > 63 || at + length - start > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in bytes.get(at..at + length)? {
            // A dot inside a label would make two names look alike; other odd bytes are kept apart
            // by an escape.
            match byte {
                b'.' | b'\\' => name.extend(['\\', char::from(byte)]),
                0x21..=0x7e => name.push(char::from(byte.to_ascii_lowercase())),
                other => name.push_str(&format!("\\{other:03}")),
            }
        }

        at += length;
    }
}

impl Query {
    /// The largest UDP answer that the client takes.
    fn limit(&self) -> usize {
        usize::from(self.udp_size.unwrap_or(0)).clamp(MIN_UDP, MAX_UDP)
    }

    /// An answer with addresses of the type that was asked for. With `alias`, a CNAME from the
    /// asked name to it comes first. Over UDP, what does not fit is left away and the truncation
    /// bit set: the client comes again over TCP.
    pub fn answer(
        &self,
        alias: Option<&str>,
        addresses: &[IpAddr],
        ttl: u32,
        udp: bool,
    ) -> Vec<u8> {
        let limit = if udp {
            self.limit()
        } else {
            usize::from(u16::MAX)
        };

        let mut out = self.header(Rcode::NoError);
        let mut count = 0u16;

        // The owner of the addresses: the question's name, at offset 12.
        let mut owner = 0xc00cu16;

        if let Some(target) = alias.and_then(encode_name) {
            out.extend(0xc00cu16.to_be_bytes());
            push_words(&mut out, 5, ttl, target.len());
            owner = 0xc000 | u16::try_from(out.len()).unwrap_or(12);
            out.extend(target);
            count += 1;
        }

        let mut truncated = false;
        for address in addresses {
            let (kind, data) = match address {
                IpAddr::V4(v4) => (1, v4.octets().to_vec()),
                IpAddr::V6(v6) => (28, v6.octets().to_vec()),
            };

            // 2 + 2 + 2 + 4 + 2 bytes before the address, 11 for the OPT record after all.
            if out.len() + 12 + data.len() + 11 > limit || count == u16::MAX {
                truncated = true;
                break;
            }

            out.extend(owner.to_be_bytes());
            push_words(&mut out, kind, ttl, data.len());
            out.extend(data);
            count += 1;
        }

        out[6..8].copy_from_slice(&count.to_be_bytes());
        if truncated {
            out[2] |= 0x02;
        }
        self.push_opt(&mut out);

        out
    }

    /// An answer without records.
    pub fn empty(&self, code: Rcode) -> Vec<u8> {
        let mut out = self.header(code);
        self.push_opt(&mut out);
        out
    }

    /// Header and question; recursion is always available, since others are asked.
    fn header(&self, code: Rcode) -> Vec<u8> {
        let flags = 0x8080 | if self.recursion_desired { 0x0100 } else { 0 } | code as u16;
        let mut out = Vec::with_capacity(128);
        for word in [self.id, flags, 1, 0, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(&self.question);
        out
    }

    fn push_opt(&self, out: &mut Vec<u8>) {
        if self.udp_size.is_some() {
            out[11] = 1;
            out.push(0);
            out.extend(41u16.to_be_bytes());
            out.extend((MAX_UDP as u16).to_be_bytes());
            out.extend([0; 6]);
        }
    }
}

/// Type, class IN, time to live, length.
fn push_words(out: &mut Vec<u8>, kind: u16, ttl: u32, length: usize) {
    out.extend(kind.to_be_bytes());
    out.extend(1u16.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
}

fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        out.push(length);
        out.extend(label.bytes());
    }

    out.push(0);

    (out.len() <= 255).then_some(out)
}

/// An error for a query that cannot be read: header only.
pub fn error_reply(id: u16, code: Rcode) -> Vec<u8> {
    [id, 0x8080 | code as u16, 0, 0, 0, 0]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .collect()
}

/// An error for any query, made from its own bytes: what the client sent comes back with the code.
pub fn error_for(query: &[u8], code: Rcode) -> Option<Vec<u8>> {
    match parse(query) {
        Parsed::Query(query) => Some(query.empty(code)),
        Parsed::Foreign => query
            .first_chunk::<2>()
            .map(|id| error_reply(u16::from_be_bytes(*id), code)),
        Parsed::Malformed(id) => id.map(|id| error_reply(id, code)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
        let mut out: Vec<u8> = [0x1234u16, 0x0100, 1, 0, 0, u16::from(edns.is_some())]
            .into_iter()
            .flat_map(u16::to_be_bytes)
            .collect();

        out.extend(encode_name(name).expect("a name"));
        out.extend(kind.to_be_bytes());
        out.extend(1u16.to_be_bytes());
        if let Some(size) = edns {
            out.extend([0, 0, 41]);
            out.extend(size.to_be_bytes());
            out.extend([0; 6]);
        }

        out
    }

    fn parsed(bytes: &[u8]) -> Query {
        match parse(bytes) {
            Parsed::Query(query) => query,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_folded_but_come_back_as_they_were() {
        let bytes = query("ReViews.Default", 1, None);
        let query = parsed(&bytes);
        assert_eq!(
            (query.name.as_str(), query.record),
            ("reviews.default", RecordType::A)
        );

        let answer = query.answer(None, &["10.45.0.7".parse().expect("an address")], 30, true);
        assert_eq!(
            answer[12..bytes.len()],
            bytes[12..],
            "the question comes back byte by byte"
        );

        assert_eq!(answer[6..8], [0, 1]);
        assert_eq!(answer[answer.len() - 4..], [10, 45, 0, 7]);
    }

    #[test]
    fn what_does_not_fit_is_truncated_over_udp_and_whole_over_tcp() {
        let many: Vec<IpAddr> = (0..200u8).map(|i| IpAddr::from([10, 45, 0, i])).collect();
        let plain = parsed(&query("a.b", 1, None));
        let udp = plain.answer(None, &many, 30, true);
        assert!(udp.len() <= 512 && udp[2] & 2 == 2, "{} bytes", udp.len());
        let edns = parsed(&query("a.b", 1, Some(4096))).answer(None, &many, 30, true);
        assert!(edns.len() > 512 && edns.len() <= MAX_UDP && edns[2] & 2 == 2);
        let tcp = plain.answer(None, &many, 30, false);
        assert_eq!((u16::from_be_bytes([tcp[6], tcp[7]]), tcp[2] & 2), (200, 0));
    }

    #[test]
    fn odd_messages_are_sorted_out() {
        let good = query("a.b", 1, None);
        assert_eq!(parse(&good[..11]), Parsed::Malformed(None));
        assert_eq!(
            parse(&good[..good.len() - 1]),
            Parsed::Malformed(Some(0x1234))
        );

        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(
            parse(&response),
            Parsed::Malformed(None),
            "responses are never answered"
        );

        let mut chaos = good.clone();
        let end = chaos.len();
        chaos[end - 1] = 3;
        assert_eq!(parse(&chaos), Parsed::Foreign);
        let mut pointer = good;
        pointer[12] = 0xc0;
        assert_eq!(
            parse(&pointer),
            Parsed::Malformed(Some(0x1234)),
            "a pointer in a question"
        );

        let mut long: Vec<u8> = query("a", 1, None)[..12].to_vec();
        long.extend(std::iter::repeat_n([63u8; 64], 5).flatten());
        assert_eq!(parse(&long), Parsed::Malformed(Some(0x1234)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Parsed::Query(query) = parse(&bytes) {
                query.answer(Some("real.example"), &[IpAddr::from([1, 2, 3, 4]); 40], 30, true);
                query.empty(Rcode::NxDomain);
            }
            error_for(&bytes, Rcode::ServFail);
        }

        #[test]
        fn a_header_with_random_rest_does_not_panic(rest in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.extend(rest);
            parse(&bytes);
        }
    }
}
