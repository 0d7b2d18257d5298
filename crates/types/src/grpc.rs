//! gRPC status codes.

use std::str::FromStr;

/// The names of the codes, by number: in camel case as the Go library writes them, and in capitals
/// as `absl::StatusCodeToString` does.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// A gRPC status code that the protocol defines: 0 (OK) to 16 (UNAUTHENTICATED).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcCode(u8);

/// The text is neither the name nor the number of a gRPC status code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no gRPC status; write a name, for example UNAVAILABLE")]
pub struct GrpcCodeError(String);

impl GrpcCode {
    /// The deadline passed before the call ended: 4.
    pub const DEADLINE_EXCEEDED: Self = Self(4);

    /// The code with this number; `None` above 16.
    pub fn from_number(number: u32) -> Option<Self> {
        let code = u8::try_from(number).ok()?;
        (usize::from(code) < NAMES.len()).then_some(Self(code))
    }

    /// The number on the wire.
    pub fn number(self) -> u32 {
        self.0.into()
    }

    /// The name in camel case, for example `DeadlineExceeded`.
    pub fn camel_name(self) -> &'static str {
        NAMES[usize::from(self.0)].0
    }

    /// The name in capitals, for example `DEADLINE_EXCEEDED`.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)].1
    }
}

/// Reads a name in capitals or a decimal number.
impl FromStr for GrpcCode {
    type Err = GrpcCodeError;

    fn from_str(text: &str) -> Result<Self, GrpcCodeError> {
        let by_name = (0..).zip(NAMES).find(|(_, (_, name))| *name == text);
        match by_name {
            Some((number, _)) => Some(Self(number)),
            None => text.parse().ok().and_then(Self::from_number),
        }
        .ok_or_else(|| GrpcCodeError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_read_back() {
        for number in 0..=16 {
            let code = GrpcCode::from_number(number).expect("the protocol defines 0 to 16");
            assert_eq!(code.number(), number);
            assert_eq!(code.name().parse(), Ok(code));
            assert_eq!(number.to_string().parse(), Ok(code));
        }
        assert_eq!("UNAVAILABLE".parse::<GrpcCode>().unwrap().number(), 14);
        assert_eq!(GrpcCode::from_number(1).unwrap().camel_name(), "Canceled");
    }

    #[test]
    fn unknown_names_and_numbers_are_refused() {
        assert_eq!(GrpcCode::from_number(17), None);
        assert_eq!(GrpcCode::from_number(256), None);
        for wrong in ["", "17", "-1", "unavailable", "Canceled"] {
            assert!(wrong.parse::<GrpcCode>().is_err(), "{wrong}");
        }
    }
}
