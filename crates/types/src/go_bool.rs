//! Booleans in text, as Go reads them.

/// The boolean that an annotation says; `None` if the text is no boolean. Source: Go
/// `strconv.ParseBool`, by which Istio reads annotations.
pub fn parse_go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_spellings_are_no_boolean() {
        for (text, wanted) in [
            ("True", Some(true)),
            ("t", Some(true)),
            ("1", Some(true)),
            ("F", Some(false)),
            ("0", Some(false)),
            ("tRUE", None),
            ("yes", None),
            ("on", None),
            ("", None),
            (" true", None),
        ] {
            assert_eq!(parse_go_bool(text), wanted, "{text:?}");
        }
    }
}
