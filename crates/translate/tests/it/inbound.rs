//! What a sidecar accepts.

use meltemi_model::MtlsMode;
use meltemi_translate::{Memo, Translated, translate};

use crate::{SHOP, ledger, snapshot_of, summary};

fn translated(objects: &str) -> Translated {
    translate(
        &snapshot_of(&format!("{SHOP}\n---\n{objects}")),
        &ledger(),
        &Memo::new(),
    )
}

fn own_tls(mode: MtlsMode) -> Translated {
    let mode = match mode {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    };
    translated(&format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: own, namespace: bank}}
spec:
  ingress:
  - port: {{number: 9443, name: https, protocol: HTTPS}}
    defaultEndpoint: 127.0.0.1:8080
    tls: {{mode: SIMPLE, serverCertificate: /tls/crt, privateKey: /tls/key}}
  egress: [{{hosts: ['*/*']}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: own, namespace: bank}}
spec:
  selector: {{matchLabels: {{app: ledger}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls: {{9443: {{mode: {mode}}}}}
"
    ))
}

/// The chains of port 9443, as the summary shows them.
fn chains(translated: &Translated) -> Vec<String> {
    let text = summary::of(translated);
    let inbound = text
        .split("\nlistener ")
        .find(|part| part.starts_with("virtualInbound"))
        .expect("a sidecar's listener");
    inbound
        .split("\n  chain ")
        .filter(|chain| chain.contains("port=9443"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_sidecars_own_tls_never_replaces_the_meshs() {
    for mode in [MtlsMode::Strict, MtlsMode::Permissive] {
        let translated = own_tls(mode);
        let chains = chains(&translated);
        assert!(
            !chains.is_empty() && !chains.iter().any(|chain| chain.contains("file-cert")),
            "{chains:#?}"
        );
        assert!(
            translated
                .diagnostics
                .iter()
                .any(|one| one.code == "MEL0506"
                    && one.message.contains("tls of port 9443 has no effect")),
            "{:#?}",
            translated.diagnostics
        );
    }
}

#[test]
fn a_port_with_tls_of_its_own_is_read_as_the_http_within() {
    let translated = own_tls(MtlsMode::Disable);
    let chains = chains(&translated);
    assert_eq!(chains.len(), 1, "{chains:#?}");
    assert!(
        chains[0].contains("file-cert") && chains[0].contains("http"),
        "{chains:#?}"
    );
}
