//! What HTTP says in the words of gRPC, and the other way round.

use meltemi_filters::head::{Known, ResponseHead};

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
}
