//! A minimal netlink client: messages with nested attributes, a socket, acknowledgements.
//!
//! This crate uses it for nf_tables, the node for interfaces, addresses and routes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};

/// Requests an acknowledgement.
pub const NLM_F_ACK: u16 = 4;
/// Marks a request; set in every message.
pub const NLM_F_REQUEST: u16 = 1;
/// Fail if the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Create the object if it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// Add to the end of a list.
pub const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

/// One or more netlink messages in wire format.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Messages {
    bytes: Vec<u8>,
    last: Option<(usize, u32)>,
    sequence: u32,
}

impl Messages {
    /// Adds a message: the fixed header (`ifinfomsg`, `nfgenmsg`, …), then the attributes that the
    /// closure writes.
    pub fn push(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        attributes(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.last = Some((start, self.sequence));

        self
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn acknowledge(&mut self, start: usize) {
        let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]) | NLM_F_ACK;
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// Writes attributes into a message.
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// An attribute with raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attribute values are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(self.0);
        self
    }

    /// A 32-bit number in network byte order, as netfilter expects numbers.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A 32-bit number in host byte order, as rtnetlink expects numbers.
    pub fn ne32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A string with a terminating zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A fixed structure, such as `ifinfomsg`, inside a nested attribute.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        pad(self.0);
        self
    }

    /// An attribute that contains the attributes written by the closure.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(&mut Attributes(self.0));
        let length =
            u16::try_from(self.0.len() - start).expect("nested attributes stay below 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A netlink socket. It acts on the network namespace in which it was opened, from whatever thread
/// it is used.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// The netlink subsystem of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Interfaces, addresses, routes.
    Route,
    /// nf_tables.
    Netfilter,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            // Protocol 0, the default of the address family.
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };

        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;

        Ok(Self(fd))
    }

    /// Sends the messages as one datagram and waits for the acknowledgement of the last one.
    ///
    /// The kernel reports errors in order, so an error of an earlier message is received first and
    /// returned.
    pub fn request(&self, mut messages: Messages) -> io::Result<()> {
        let Some((start, sequence)) = messages.last else {
            return Ok(());
        };
        messages.acknowledge(start);
        self.exchange(messages.bytes(), sequence)
    }

    /// Sends a netfilter batch: `messages` between a begin and an end message, which make them one
    /// transaction.
    pub fn transaction(&self, subsystem: u16, messages: &Messages) -> io::Result<()> {
        const BATCH_BEGIN: u16 = 0x10;
        const BATCH_END: u16 = 0x11;

        let Some((start, sequence)) = messages.last else {
            return Ok(());
        };
        let mut inner = messages.clone();
        inner.acknowledge(start);

        // struct nfgenmsg: family, version, resource id (here the subsystem, in network byte
        // order).
        let header = [0, 0, subsystem.to_be_bytes()[0], subsystem.to_be_bytes()[1]];
        let mut begin = Messages::default();
        begin.push(BATCH_BEGIN, 0, &header, |_| {});
        let mut end = Messages {
            sequence: sequence.wrapping_add(1),
            ..Messages::default()
        };

        end.push(BATCH_END, 0, &header, |_| {});
        let all = [begin.bytes(), inner.bytes(), end.bytes()].concat();

        self.exchange(&all, sequence)
    }

    /// Sends a datagram and waits for an error or for the acknowledgement of message `sequence`.
    fn exchange(&self, bytes: &[u8], sequence: u32) -> io::Result<()> {
        // A transaction must fit one datagram. The default send buffer holds a few hundred rules.
        if bytes.len() > 100_000 {
            sockopt::set_socket_send_buffer_size(&self.0, bytes.len() * 2)?;
        }
        send(&self.0, bytes, SendFlags::empty())?;
        let mut answer = vec![0_u8; 32 * 1024];

        loop {
            let (_, length) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
            if let Some(outcome) = outcome_of(&answer[..length.min(answer.len())], sequence) {
                return outcome;
            }
        }
    }
}

/// Searches the kernel's answers for an error of any message, or the acknowledgement of message
/// `sequence`; `None` if there is neither.
fn outcome_of(mut answers: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let word = |bytes: &[u8], at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
    };

    while let (Some(length), Some(kind_flags), Some(of)) =
        (word(answers, 0), word(answers, 4), word(answers, 8))
    {
        let length = length as usize;
        if length < 16 || length > answers.len() {
            return None;
        }
        let kind = kind_flags.to_ne_bytes();
        if u16::from_ne_bytes([kind[0], kind[1]]) == NLMSG_ERROR {
            let code = word(answers, 16).unwrap_or(0).cast_signed();
            if code != 0 {
                return Some(Err(io::Error::from_raw_os_error(code.wrapping_neg())));
            }
            if of == sequence {
                return Some(Ok(()));
            }
        }

        answers = &answers[length.next_multiple_of(4).min(answers.len())..];
    }

    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut m = Messages::default();
        m.push(16, 0, &[1, 2, 3, 4], |a| {
            a.text(3, "lo").nest(4, |a| {
                a.be32(1, 7);
            });
        });

        let bytes = m.bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(
            u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize,
            bytes.len()
        );

        assert_eq!(&bytes[20..28], [7, 0, 3, 0, b'l', b'o', 0, 0]);
        assert_eq!(&bytes[28..40], [12, 0, 4, 0x80, 8, 0, 1, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn a_truncated_answer_has_no_outcome() {
        assert!(outcome_of(&[], 1).is_none());
        assert!(outcome_of(&[40, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0], 1).is_none());
        let mut ok = vec![0_u8; 20];
        ok[0] = 20;
        ok[4] = 2;
        ok[8] = 1;
        assert!(matches!(outcome_of(&ok, 1), Some(Ok(()))));
        assert!(outcome_of(&ok, 2).is_none());
        ok[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert!(matches!(outcome_of(&ok, 2), Some(Err(e)) if e.raw_os_error() == Some(1)));
    }
}
