//! What HTTP says in the words of gRPC, and the other way round.

use std::time::Duration;

use meltemi_filters::head::{Known, RequestHead, ResponseHead};

/// What a gRPC status would be in HTTP. Source: Envoy `Grpc::Utility::grpcToHttpStatus`.
fn http_of_grpc(status: &str) -> u16 {
    match status.trim() {
        "0" => 200,
        "1" => 499,
        "3" | "9" | "11" => 400,
        "4" => 504,
        "5" => 404,
        "6" | "10" => 409,
        "7" => 403,
        "8" => 429,
        "12" => 501,
        "14" => 503,
        "16" => 401,
        _ => 500,
    }
}

/// The status that a response is judged by: of gRPC the HTTP equivalent of its own status, if its
/// head has one already.
pub fn effective_status(is_grpc: bool, response: &ResponseHead) -> u16 {
    match response.fields().known_str(Known::GrpcStatus) {
        Some(status) if is_grpc => http_of_grpc(status),
        _ => response.status,
    }
}

/// What `grpc-timeout` asks for; `None` if it is absent or malformed.
pub fn timeout_of(head: &RequestHead) -> Option<Duration> {
    head.fields().known(Known::GrpcTimeout).and_then(timeout)
}

/// `8S`, `100m`, ... Source: gRPC over HTTP/2, "Timeout".
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;

    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        // Limits are kept in milliseconds; one that is shorter is not none.
        b'u' => Duration::from_millis(number.div_ceil(1000)),
        b'n' => Duration::from_millis(number.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// gRPC's percent encoding of messages.
pub fn percent(text: &[u8]) -> String {
    use std::fmt::Write;

    text.iter()
        .fold(String::with_capacity(text.len()), |mut out, byte| {
            match byte {
                0x20..=0x7e if *byte != b'%' => out.push(char::from(*byte)),
                // Writing to a String cannot fail.
                _ => _ = write!(out, "%{byte:02X}"),
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(percent("a b%\u{e9}\n".as_bytes()), "a b%25%C3%A9%0A");
    }

    #[test]
    fn timeouts_have_units() {
        assert_eq!(timeout(b"8S"), Some(Duration::from_secs(8)));
        assert_eq!(timeout(b"100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout(b"S"), None);
        assert_eq!(timeout(b"999999999S"), None);
        assert_eq!(timeout(b"1n"), Some(Duration::from_millis(1)));
    }
}
