use proptest::prelude::*;

use super::*;

#[track_caller]
fn full(pattern: &str) -> Regex {
    let parsed = Pattern::parse(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
    parsed
        .full()
        .unwrap_or_else(|error| panic!("{pattern}: {} {error}", parsed.as_regex()))
}

#[test]
fn what_re2_takes_is_taken_with_its_meaning() {
    for (pattern, matches, others) in [
        ("/v1/{id}/.*", "/v1/{id}/x", "/v1/id/x"),
        ("/{", "/{", "/"),
        ("/{,2}", "/{,2}", "//"),
        ("/{01}", "/{01}", "/"),
        ("/[[a]", "/[", "/]"),
        (r"/\Qa.b\E+", "/a.bb", "/axb"),
        (r"\Q(", "(", ""),
        (r"\Q\E", "", "x"),
        (r"/\07", "/\x07", "/7"),
        (r"\101\x42\x{43}", "ABC", "abc"),
        ("/(?P<n>a)(?<m>b)", "/ab", "/a"),
        ("/[]a]", "/]", "/b"),
        ("[^]a]", "b", "]"),
        ("/and/[a&&b]+", "/and/&a", "/and/-"),
        ("/xor/[a~~b]+", "/xor/~", "/xor/-"),
        (r"[a\-z]+", "a-z", "b"),
        ("[a-c-e]+", "b-e", "d"),
        (r"\<a\>", "<a>", "a"),
        (r"q\b{start}", "q{start}", "q"),
        (r"\d\s\w", "1 _", "1\x0b_"),
        (r"[\d\s]+", "1 2", "a"),
        (r"\D", "x", "1"),
        ("[[:alpha:][:^digit:]]", "x", "1"),
        (r"\pL\p{Greek}\P{N}", "éαx", "éa1"),
        (r"\p{^Lu}", "a", "A"),
        ("(?i)K", "\u{212a}", "x"),
        ("(?i:a)b", "Ab", "AB"),
        ("(?i-i)a", "a", "A"),
        ("(?ii)a(?)", "A", "b"),
        ("(?s).", "\n", ""),
        (".", "é", "\n"),
        ("a(?m)$", "a", "a\nb"),
        ("a{2}?b{0,1}c{1,}", "aacc", "ac"),
        ("^*a$", "a", "b"),
        ("(a|b)*c", "abc", "d"),
        ("()", "", "a"),
        ("a||b", "", "c"),
        ("#", "#", ""),
        ("a b", "a b", "ab"),
    ] {
        let regex = full(pattern);
        assert!(
            regex.is_match(matches.as_bytes()),
            "{pattern} on {matches:?}"
        );
        assert!(
            !regex.is_match(others.as_bytes()),
            "{pattern} on {others:?}"
        );
    }
}

#[test]
fn what_re2_refuses_is_refused() {
    for pattern in [
        "a{1001}",
        "a{2,1}",
        "(a{100}){11}",
        "((a{10}){10}){11}",
        "a**",
        "a*+",
        "a{2}{3}",
        "a*??",
        "*",
        "(*a)",
        "|+",
        "a|*",
        "(?i)*",
        "{2}",
        "[a--b]",
        "[z-a]",
        "[a",
        "[]",
        "[^]",
        "[a-",
        r"[\b]",
        r"[a-\d]",
        "[[:foo:]]",
        r"\u0041",
        r"\1",
        r"\8",
        r"\E",
        r"\C",
        r"\Z",
        r"\G",
        r"\K",
        r"\é",
        r"\x",
        r"\x{}",
        r"\x{110000}",
        r"\xg",
        r"\p",
        r"\p{greek}",
        r"\p{Script=Greek}",
        r"\pQ",
        "\\",
        "(?R)a",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
        "(?>a)",
        "(?x)a",
        "(?i-)",
        "(?--i)",
        "(?P=n)",
        "(?P<>a)",
        "(?P<n>a)(?P<n>b)",
        "(?<a-b>x)",
        "(?#x)",
        "(a",
        "a)",
        "a)|(b",
        "(?",
        "(?i",
        "(?:a",
    ] {
        assert!(Pattern::parse(pattern).is_err(), "{pattern}");
    }
}

#[test]
fn bombs_are_refused() {
    assert_eq!(
        Pattern::parse(&"a".repeat(MAX_PATTERN + 1)),
        Err(Error::TooLong)
    );
    assert_eq!(
        Pattern::parse(&format!("{}a{}", "(".repeat(200), ")".repeat(200))),
        Err(Error::TooDeep)
    );
    for pattern in [
        "(?:(?:(?:a{100}){100}){100}){100}".to_owned(),
        format!("({}){{1000}}", "a".repeat(900)),
        format!("(?:{}){{100}}", r"\pL".repeat(50)),
    ] {
        assert!(Pattern::parse(&pattern).is_err(), "{pattern}");
    }
}

#[test]
fn groups_are_counted() {
    for (pattern, groups) in [
        ("a", 0),
        ("(a)(?:b)((c))", 3),
        (r"\(a\)[(]", 0),
        ("(?i)(?P<n>a)", 1),
    ] {
        let parsed = Pattern::parse(pattern).expect(pattern);
        assert_eq!(parsed.groups(), groups, "{pattern}");
        let regex = parsed.search().expect("compiles");
        assert_eq!(regex.captures_len(), groups + 1, "{pattern}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is taken, the regex crate compiles.
    #[test]
    fn what_is_taken_compiles(
        pattern in r"([a-c.*+?|(){}\[\]^$\-&~:,#<>/ é]|\\[a-zA-Z0-9<.Q]|\(\?[imsU-]{0,2}[:)]|\{[0-3],?[0-3]?\}|\[:alpha:\]|\\p\{[LNG]\}){0,14}"
    ) {
        if let Ok(parsed) = Pattern::parse(&pattern) {
            let built = parsed.full();
            prop_assert!(built.is_ok(), "{} became {}", pattern, parsed.as_regex());
            prop_assert!(parsed.search().is_ok());
        }
    }

    /// A text that is quoted matches itself and nothing else.
    #[test]
    fn a_quoted_text_matches_itself(text in r"[ -~é]{0,20}") {
        prop_assume!(!text.contains(r"\E"));
        // A backslash before the closing `\E` would be read with it.
        prop_assume!(!text.ends_with('\\'));
        let quoted = Pattern::parse(&format!(r"\Q{text}\E")).expect("quoted").full().expect("compiles");
        prop_assert!(quoted.is_match(text.as_bytes()));
        let longer = format!("{text}x");
        prop_assert!(!quoted.is_match(longer.as_bytes()));
    }

    #[test]
    fn no_text_is_a_panic(pattern in r"\PC{0,40}") {
        let _ = Pattern::parse(&pattern);
    }
}
