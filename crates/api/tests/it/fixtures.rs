//! Istio's validation fixtures: what must be refused is, with Istio's words, and nothing else.

use meltemi_api::{parse, validate};
use meltemi_types::Severity;

#[test]
fn istios_fixtures_agree() {
    let Some(folder) = meltemi_testkit::shared_or_skip("golden/validate") else {
        return;
    };
    let (mut cases, mut disagreements) = (0, Vec::new());
    for file in crate::files(&folder) {
        let text = std::fs::read_to_string(&file).expect("text");
        let mut expected = None;
        let mut stripped = String::new();

        for line in text.lines() {
            match line.strip_prefix("_err:") {
                Some(text) => {
                    expected = Some(text.trim().trim_matches(['\'', '"']).replace("\\\"", "\""))
                }
                None => stripped.push_str(line),
            }
            stripped.push('\n');
        }

        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();

        let parsed = parse(&name, &stripped);
        let mut found = parsed.diagnostics;
        found.extend(parsed.objects.iter().flat_map(validate));
        let errors: Vec<String> = found
            .iter()
            .filter(|d| d.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();

        for diagnostic in &found {
            assert!(
                diagnostic.severity != Severity::Error || !diagnostic.remedy.is_empty(),
                "{diagnostic}"
            );
            assert!(diagnostic.position.line > 0, "{diagnostic}");
        }

        cases += 1;
        match &expected {
            None if !errors.is_empty() => {
                disagreements.push(format!("{name}: is valid, but: {errors:?}"))
            }
            Some(text) if !errors.iter().any(|error| error.contains(text.as_str())) => {
                disagreements.push(format!("{name}: wants {text:?}, has {errors:?}"));
            }
            _ => {}
        }
    }

    assert!(
        disagreements.is_empty(),
        "{} of {cases} disagree:\n{}",
        disagreements.len(),
        disagreements.join("\n")
    );

    assert!(cases > 40, "{cases} cases");
}
