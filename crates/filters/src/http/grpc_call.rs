//! Unary calls of gRPC as [`Fetch`]es, for filters that ask a service. Source: "gRPC over HTTP2".

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::phase::{CallResult, Fetch, FetchError};
use crate::grpc;
use crate::head::{HttpVersion, Known, RequestHead};

/// The longest response that is read: gRPC's own default.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrpcError {
    /// No response came.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// The response is none of gRPC.
    #[error("{0}")]
    Malformed(&'static str),
    /// The service says that it failed.
    #[error("gRPC status {0}")]
    Status(u32),
}

/// A call of a method, for example `/envoy.service.auth.v3.Authorization/Check`.
pub fn call(
    cluster: &Arc<str>,
    authority: &str,
    method: &str,
    message: &impl Message,
    timeout: Option<Duration>,
) -> Fetch {
    let mut head = RequestHead::of("POST", authority, method);
    head.version = HttpVersion::Http2;
    head.append("content-type", b"application/grpc");
    head.append("te", b"trailers");
    if let Some(timeout) = timeout {
        // At most eight digits are allowed; they hold more than a day.
        let millis = timeout.as_millis().min(99_999_999);
        head.append("grpc-timeout", format!("{millis}m").as_bytes());
    }

    Fetch {
        cluster: cluster.clone(),
        head,
        body: frame(message),
        timeout,
        max_response: MAX_RESPONSE,
    }
}

/// The answer of a unary call.
pub fn answer<M: Message + Default>(result: CallResult) -> Result<M, GrpcError> {
    let CallResult::Fetched(fetched) = result else {
        return Err(GrpcError::Malformed("no response"));
    };
    let fetched = fetched?;
    if fetched.head.status != 200 {
        return Err(GrpcError::Status(grpc::status_of_http(fetched.head.status)));
    }

    // A response without messages carries its status in the head.
    let trailer = fetched.trailers.known_str(Known::GrpcStatus);
    let status = trailer.or_else(|| fetched.head.fields().known_str(Known::GrpcStatus));
    match status.map(|status| status.trim().parse()) {
        Some(Ok(0)) => {}
        Some(Ok(status)) => return Err(GrpcError::Status(status)),
        Some(Err(_)) | None => return Err(GrpcError::Malformed("no gRPC status")),
    }

    let message = unframe(&fetched.body).map_err(GrpcError::Malformed)?;
    M::decode(message).map_err(|_| GrpcError::Malformed("malformed message"))
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    // A message of more than 4 GiB would not fit into the memory that holds its request.
    out.put_u32(length as u32);
    out.put_slice(&message.encode_to_vec());

    out.freeze()
}

/// The one message of a body.
fn unframe(body: &[u8]) -> Result<&[u8], &'static str> {
    match body {
        [] => Err("no message"),
        [0, a, b, c, d, message @ ..] => {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            match usize::try_from(length) == Ok(message.len()) {
                true => Ok(message),
                false => Err("not exactly one message"),
            }
        }
        [0, ..] => Err("incomplete message"),
        _ => Err("compressed message"),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_proto::google::rpc::Status;
    use proptest::prelude::*;

    use super::*;
    use crate::head::ResponseHead;
    use crate::http::phase::Fetched;

    fn fetched(body: Bytes, status: &str) -> CallResult {
        let mut fetched = Fetched {
            head: ResponseHead::of(200),
            body,
            ..Fetched::default()
        };
        fetched.trailers.append("grpc-status", status.as_bytes());

        CallResult::Fetched(Ok(Box::new(fetched)))
    }

    #[test]
    fn a_call_is_framed_and_its_answer_read() {
        let message = Status {
            code: 7,
            message: "no".to_owned(),
            ..Status::default()
        };
        let timeout = Some(Duration::from_secs(2));
        let fetch = call(&"authz".into(), "authz", "/a.B/C", &message, timeout);
        assert_eq!(fetch.head.get("grpc-timeout"), Some(b"2000m".as_slice()));
        assert_eq!(answer(fetched(fetch.body, "0")), Ok(message));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let message = Status::default();
        let body = call(&"a".into(), "a", "/a.B/C", &message, None).body;
        let two = Bytes::from([body.clone(), body.clone()].concat());
        let get = |result| answer::<Status>(result).expect_err("no answer");

        assert_eq!(get(fetched(body, "14")), GrpcError::Status(14));
        assert!(matches!(get(fetched(two, "0")), GrpcError::Malformed(_)));
        let failed = CallResult::Fetched(Err(FetchError {
            reason: "timeout".into(),
            is_unsendable: false,
        }));
        assert_eq!(get(failed).to_string(), "timeout");

        let mut unavailable = Fetched::default();
        unavailable.head.status = 503;
        let unavailable = CallResult::Fetched(Ok(Box::new(unavailable)));
        assert_eq!(get(unavailable), GrpcError::Status(14));
    }

    proptest! {
        #[test]
        fn a_body_is_one_whole_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = unframe(&bytes) {
                prop_assert_eq!(message, &bytes[5..]);
                let length = (message.len() as u32).to_be_bytes();
                prop_assert_eq!(&bytes[1..5], length.as_slice());
            }
        }
    }
}
