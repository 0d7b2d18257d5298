//! Istio's own samples, where they lie beside the repository: everything is understood, nothing is
//! lost.

use std::fs;

use meltemi_api::parse_documents;
use meltemi_model::{BuildOptions, Severity, Snapshot, Tables};

#[test]
fn every_networking_file_of_bookinfo_builds_over_its_platform() {
    let Some(folder) = meltemi_testkit::shared_or_skip("istio/samples/bookinfo") else {
        return;
    };
    let platform = fs::read_to_string(folder.join("platform/kube/bookinfo.yaml"))
        .expect("part of the samples");
    let rules = fs::read_to_string(folder.join("networking/destination-rule-all.yaml"))
        .expect("part of the samples");
    let mut files: Vec<_> = fs::read_dir(folder.join("networking"))
        .expect("a folder")
        .flatten()
        .map(|entry| entry.path())
        .collect();

    files.retain(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    files.sort();
    assert!(files.len() > 10);

    for path in files {
        let text = fs::read_to_string(&path).expect("readable");
        let mut tables = Tables::default();
        for text in [&platform, &rules, &text] {
            let (objects, diagnostics) = parse_documents("sample.yaml", text);
            assert!(
                !diagnostics
                    .iter()
                    .any(|found| found.severity == Severity::Error),
                "{}: {diagnostics:#?}",
                path.display()
            );

            objects.into_iter().for_each(|object| {
                tables.apply(object.into());
            });
        }

        let build = Snapshot::build(None, &tables, &BuildOptions::default());

        // Some samples need Services that only a cluster with other samples has; nothing worse than
        // that.
        let worse: Vec<_> = build
            .diagnostics
            .iter()
            .filter(|found| found.severity == Severity::Error)
            .collect();

        assert!(worse.is_empty(), "{}: {worse:#?}", path.display());
        assert!(build.snapshot.services().count() >= 4);
        assert!(
            build.snapshot.virtual_services().count()
                + build.snapshot.gateways().count()
                + build.snapshot.destination_rules().count()
                > 0
        );
    }
}
