use super::*;

fn text(fields: &Fields) -> String {
    let mut out = Vec::new();
    fields.write_h1(&mut out);
    String::from_utf8(out).expect("ASCII in tests")
}

#[test]
fn set_keeps_the_place_and_drops_further_lines() {
    let mut fields = Fields::new();
    for (name, value) in [("A", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
        fields.append(name, value.as_bytes());
    }
    fields.set("a", b"9");
    assert_eq!(text(&fields), "a: 9\r\nb: 2\r\nc: 4\r\n");
    assert_eq!(fields.get("A"), Some(b"9".as_slice()));
    assert!(fields.remove("B"));
    assert!(!fields.remove("b"));
    assert_eq!(text(&fields), "a: 9\r\nc: 4\r\n");
}

#[test]
fn loaded_lines_are_written_as_runs_with_lower_case_names() {
    let raw = b"Host: x\r\nAccept:  */*\r\nX-Y: z\r\n";
    let mut fields = Fields::new();
    fields.load(raw);
    fields.push_loaded(0, 4, 6, 1);
    fields.push_loaded(9, 6, 18, 3);
    fields.push_loaded(23, 3, 28, 1);
    assert_eq!(text(&fields), "host: x\r\naccept: */*\r\nx-y: z\r\n");
    assert!(fields.has(Known::Accept));
    fields.remove_known(Known::Accept);
    assert!(!fields.has(Known::Accept));
    assert_eq!(text(&fields), "host: x\r\nx-y: z\r\n");
}

#[test]
fn a_value_cannot_split_a_head() {
    let mut fields = Fields::new();
    fields.append("x", b"a\r\nb: c\0");
    assert_eq!(text(&fields), "x: a  b: c \r\n");
}

#[test]
fn every_line_is_shown() {
    let mut fields = Fields::new();
    fields.append("x-forwarded-for", b"1.1.1.1");
    fields.append("x-forwarded-for", b"2.2.2.2");
    assert_eq!(
        fields.get_all("X-Forwarded-For").collect::<Vec<_>>(),
        [&b"1.1.1.1"[..], b"2.2.2.2"]
    );

    fields.append_joined("x-forwarded-for", b",", b"3.3.3.3");
    assert_eq!(
        fields.get_all("x-forwarded-for").collect::<Vec<_>>(),
        [&b"1.1.1.1"[..], b"2.2.2.2,3.3.3.3"]
    );

    assert_eq!(fields.len(), 2);
}

#[test]
fn pseudo_fields_answer_by_name_and_host_is_the_authority() {
    let mut head = RequestHead::of("GET", "reviews:9080", "/a?b=c#d");
    assert_eq!(head.get(":path"), Some(b"/a?b=c#d".as_slice()));
    assert_eq!(head.path_only(), "/a");
    assert_eq!(head.query(), Some("b=c"));
    assert_eq!(head.get("Host"), Some(b"reviews:9080".as_slice()));
    head.set("host", b"other");
    assert_eq!(head.authority(), "other");
    head.set(":path", b"/x y");
    assert_eq!(head.path(), "/a?b=c#d", "a path with a space is refused");
    let mut out = Vec::new();
    head.write_h1(&mut out);
    assert_eq!(out, b"GET /a?b=c#d HTTP/1.1\r\nhost: other\r\n");
}

#[test]
fn every_known_name_finds_itself() {
    assert_eq!(Known::of(b"x-request-id"), Known::XRequestId);
    assert_eq!(Known::of(b"x-request-ie"), Known::Other);
    assert!(
        (Known::AccessControlRequestMethod as u8) < 64,
        "the bit set has 64 places"
    );
}
