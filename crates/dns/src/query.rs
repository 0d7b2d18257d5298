//! Reading: a client's query, and another resolver's answer.

use std::net::IpAddr;

use hickory_proto::op::{
    Header, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode,
};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// A standard query with one question, class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Lower case, without the trailing dot; empty for the root.
    pub name: String,
    /// The type that is asked for.
    pub record: RecordType,
    pub(crate) metadata: Metadata,
    /// The question as it came: clients check that its spelling comes back
    /// (draft-vixie-dnsext-dns0x20).
    pub(crate) question: Question,
    /// The size of the client's UDP buffer, if the client says it (EDNS).
    pub(crate) udp_size: Option<u16>,
}

/// The verdict on bytes that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A query that may be ours.
    Query(Query),
    /// A well-formed header, but a class or an opcode that only the upstream can judge.
    Foreign,
    /// Deserves an error under this id, or silence if there is none.
    Malformed(Option<u16>),
}

/// Reads a query.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else {
        return Parsed::Malformed(None);
    };

    // Answering a response could start a loop between two servers.
    if metadata.message_type == MessageType::Response {
        return Parsed::Malformed(None);
    }
    if metadata.op_code != OpCode::Query {
        return Parsed::Foreign;
    }
    if counts.queries != 1 {
        return Parsed::Malformed(Some(metadata.id));
    }

    let start = decoder.index();
    let Ok(question) = Question::read(&mut decoder) else {
        return Parsed::Malformed(Some(metadata.id));
    };

    // No name comes before the question's, so a pointer (RFC 1035 §4.1.4) has none to point at.
    let labels: usize = question.name.iter().map(|label| 1 + label.len()).sum();
    let is_compressed = decoder.index() - start != labels + 1 + 2 * size_of::<u16>();
    if is_compressed {
        return Parsed::Malformed(Some(metadata.id));
    }
    if question.query_class != DNSClass::IN {
        return Parsed::Foreign;
    }

    // Clients send an OPT record in the additional section and nothing before it. One that cannot
    // be read counts as absent: the question is good, and 512 bytes are always taken.
    let udp_size = match (counts.answers, counts.authorities) {
        (0, 0) => {
            let additionals = usize::from(counts.additionals);
            Message::read_records(&mut decoder, additionals, true, metadata.op_code)
                .ok()
                .and_then(|(_, edns, _)| edns)
                .map(|edns| edns.max_payload())
        }
        _ => None,
    };

    Parsed::Query(Query {
        name: text_of(&question.name),
        record: question.query_type,
        metadata,
        question,
        udp_size,
    })
}

impl Query {
    /// The same question about another name, to send to another resolver; `None` if `name` is no
    /// DNS name.
    pub fn about(&self, name: &str) -> Option<Vec<u8>> {
        let mut metadata = Metadata::new(self.metadata.id, MessageType::Query, OpCode::Query);
        metadata.recursion_desired = self.metadata.recursion_desired;
        metadata.checking_disabled = self.metadata.checking_disabled;

        let mut message = Message::new(metadata.id, metadata.message_type, metadata.op_code);
        message.metadata = metadata;
        message.add_query(Question::query(name_of(name)?, self.record));
        message.to_vec().ok()
    }
}

/// The code and the addresses of another resolver's answer, whatever aliases lead to them; `None`
/// if the answer cannot be read.
pub fn addresses_of(answer: &[u8]) -> Option<(ResponseCode, Vec<IpAddr>)> {
    let mut decoder = BinDecoder::new(answer);
    let Header { metadata, counts } = Header::read(&mut decoder).ok()?;
    for _ in 0..counts.queries {
        Question::read(&mut decoder).ok()?;
    }

    let records = usize::from(counts.answers);
    let (records, ..) =
        Message::read_records(&mut decoder, records, false, metadata.op_code).ok()?;
    let addresses = records.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });

    Some((metadata.response_code, addresses.collect()))
}

/// Whether a text without trailing dot is a DNS name: labels of 1 to 63 bytes, 255 in all.
pub fn is_name(text: &str) -> bool {
    name_of(text).is_some()
}

pub(crate) fn name_of(text: &str) -> Option<Name> {
    let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
    if labels.iter().any(|label| label.is_empty()) {
        return None;
    }
    Name::from_labels(labels).ok()
}

/// Odd bytes are escaped: a dot inside a label would make two names look alike.
fn text_of(name: &Name) -> String {
    let mut text = String::new();
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                0x21..=0x7e => text.push(char::from(byte.to_ascii_lowercase())),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
    }
    text
}
