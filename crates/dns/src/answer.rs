//! Writing answers.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SRV};
use hickory_proto::rr::{RData, Record};

use crate::query::{Parsed, Query, name_of, parse};

/// The largest answer over UDP, whatever the client allows: beyond it, fragments get lost. Source:
/// DNS flag day 2020.
pub(crate) const MAX_UDP: u16 = 1232;
/// RFC 1035 §4.2.1.
const MIN_UDP: u16 = 512;

/// Of SRV records: all targets are of one rank, and get the same share.
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 1;

/// How an answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Answers that do not fit the client's buffer are cut, and say so.
    Udp,
    /// Answers have up to 65,535 bytes.
    Tcp,
}

/// Where a port of a service is: the data of an SRV record. RFC 2782.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTarget {
    /// A name with addresses. A text that is no name leaves the record out.
    pub host: String,
    pub port: u16,
}

/// The content of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The outcome.
    pub code: ResponseCode,
    /// The answer comes from the one who decides about the name.
    pub authoritative: bool,
    /// A CNAME from the asked name to this one comes first. A text that is no name counts as
    /// absent.
    pub alias: Option<&'a str>,
    /// Addresses of the type that was asked for.
    pub addresses: &'a [IpAddr],
    /// SRV records, of equal weight.
    pub targets: &'a [ServiceTarget],
    /// Seconds for which the records may be kept.
    pub ttl: u32,
}

impl Answer<'_> {
    /// An outcome without records.
    pub fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            alias: None,
            addresses: &[],
            targets: &[],
            ttl: 0,
        }
    }
}

impl Query {
    /// The bytes of an answer. Over UDP, addresses that do not fit are left away and the truncation
    /// bit is set: the client comes again over TCP.
    pub fn respond(&self, answer: &Answer<'_>, transport: Transport) -> Vec<u8> {
        let Answer {
            code,
            authoritative,
            alias,
            addresses,
            targets,
            ttl,
        } = *answer;

        let mut message = response(self.metadata.id, code);
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.add_query(self.question.clone());

        let mut owner = self.question.name.clone();
        if let Some(target) = alias.and_then(name_of) {
            let data = RData::CNAME(CNAME(target.clone()));
            message.add_answer(Record::from_rdata(owner, ttl, data));
            owner = target;
        }

        message.add_answers(addresses.iter().map(|address| {
            let data = match *address {
                IpAddr::V4(address) => RData::A(address.into()),
                IpAddr::V6(address) => RData::AAAA(address.into()),
            };
            Record::from_rdata(owner.clone(), ttl, data)
        }));

        message.add_answers(targets.iter().filter_map(|target| {
            let host = name_of(&target.host)?;
            let data = RData::SRV(SRV::new(PRIORITY, WEIGHT, target.port, host));
            Some(Record::from_rdata(owner.clone(), ttl, data))
        }));

        // RFC 6891 §6.1.1: an OPT record is answered with one.
        if self.udp_size.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            message.set_edns(edns);
        }

        let limit = match transport {
            Transport::Udp => self.udp_size.unwrap_or(0).clamp(MIN_UDP, MAX_UDP),
            Transport::Tcp => u16::MAX,
        };
        encode(message, limit.into())
    }
}

/// Writes a message, with as many of its last answers left away as it takes to fit.
fn encode(mut message: Message, limit: usize) -> Vec<u8> {
    // The owner's pointer, type, class, time to live and length come before an address.
    const IPV4_RECORD: usize = 12 + 4;

    // No message of more records than these fits, so the rest need not be written to be measured.
    let most = limit / IPV4_RECORD + 1;
    if message.answers.len() > most {
        message.answers.truncate(most);
        message.metadata.truncation = true;
    }

    loop {
        // hickory refuses names and records only that it would not have parsed.
        let bytes = message.to_vec().unwrap_or_default();
        let over = bytes.len().saturating_sub(limit);
        if over == 0 || message.answers.is_empty() {
            return bytes;
        }

        let surplus = over.div_ceil(IPV4_RECORD).min(message.answers.len());
        message.answers.truncate(message.answers.len() - surplus);
        message.metadata.truncation = true;
    }
}

/// The head of every answer; recursion is always available, since others are asked.
fn response(id: u16, code: ResponseCode) -> Message {
    let mut metadata = Metadata::new(id, MessageType::Response, OpCode::Query);
    metadata.recursion_available = true;
    metadata.response_code = code;

    let mut message = Message::new(id, metadata.message_type, metadata.op_code);
    message.metadata = metadata;
    message
}

/// An error for a query that cannot be read: header only.
pub fn error_reply(id: u16, code: ResponseCode) -> Vec<u8> {
    encode(response(id, code), MIN_UDP.into())
}

/// An error for any query, made from its own bytes; `None` for bytes that deserve silence.
pub fn error_for(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    match parse(query) {
        Parsed::Query(query) => Some(query.respond(&Answer::empty(code), Transport::Udp)),
        Parsed::Foreign => query
            .first_chunk::<2>()
            .map(|id| error_reply(u16::from_be_bytes(*id), code)),
        Parsed::Malformed(id) => id.map(|id| error_reply(id, code)),
    }
}
