//! Every sample of Istio parses, and is valid.

use meltemi_api::{Kind, ObjectKey, parse, validate};
use meltemi_types::Severity;

#[test]
fn istios_samples_are_read_without_an_error() {
    let Some(folder) = meltemi_testkit::shared_or_skip("istio/samples") else {
        return;
    };
    let (mut objects, mut mesh, mut errors) = (0, 0, Vec::new());
    for file in crate::files(&folder) {
        if !file
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml")
        {
            continue;
        }

        let text = std::fs::read_to_string(&file).expect("text");

        // Templates of helm and of shells, Prometheus' own configuration, values of charts: not
        // Kubernetes objects.
        if text.contains("{{") || !text.contains("apiVersion:") {
            continue;
        }
        let parsed = parse(&file.display().to_string(), &text);
        errors.extend(
            parsed
                .diagnostics
                .into_iter()
                .filter(|d| d.severity == Severity::Error),
        );

        for object in &parsed.objects {
            objects += 1;
            mesh += usize::from(object.kind.is_mesh());
            errors.extend(
                validate(object)
                    .into_iter()
                    .filter(|d| d.severity == Severity::Error),
            );
        }
    }

    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(
        errors.is_empty(),
        "{} errors:\n{}",
        errors.len(),
        errors.join("\n")
    );

    assert!(
        objects > 200 && mesh > 50,
        "{objects} objects, {mesh} of the mesh"
    );
}

#[test]
fn bookinfo_says_what_it_says() {
    let Some(folder) = meltemi_testkit::shared_or_skip("istio/samples/bookinfo/platform/kube")
    else {
        return;
    };
    let text = std::fs::read_to_string(folder.join("bookinfo.yaml")).expect("text");
    let parsed = parse("bookinfo.yaml", &text);
    assert_eq!(parsed.diagnostics, vec![]);
    let count = |kind: Kind| {
        parsed
            .objects
            .iter()
            .filter(|object| object.kind == kind)
            .count()
    };

    assert_eq!(
        (
            count(Kind::Service),
            count(Kind::ServiceAccount),
            count(Kind::Deployment)
        ),
        (4, 4, 6)
    );

    let keys: Vec<ObjectKey> = parsed.objects.iter().map(|object| object.key()).collect();
    assert!(keys.contains(&ObjectKey::new(Kind::Deployment, "default", "reviews-v2")));
}
