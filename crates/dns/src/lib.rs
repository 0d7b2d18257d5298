//! DNS messages for resolvers that answer addresses themselves and pass everything else on.
//!
//! In: bytes from a client or from another resolver. Out: a [`Query`], the bytes of its answer, the
//! addresses of another resolver's answer. The wire format (RFC 1035, EDNS of RFC 6891) is
//! hickory-proto's; decided here are the questions that are taken, the size of answers and the form
//! of errors. Bytes of a peer never panic and never cost more than a multiple of their length.
//!
//! Must never import: anything of ours, sockets.

mod answer;
mod query;

pub use answer::{Answer, ServiceTarget, Transport, error_for, error_reply};
pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::RecordType;
pub use query::{Parsed, Query, addresses_of, is_name, parse};
