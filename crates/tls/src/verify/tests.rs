//! Hostile certificates against the verifiers, and two real handshakes.

use std::io::{Read, Write};

use meltemi_types::TrustDomain;
use rcgen::ExtendedKeyUsagePurpose;
use time::Duration;

use super::*;
use crate::testing::{Authority, LeafSpec};
use crate::{
    ClientTerms, Identity, SanKind, ServerTerms, TextMatch, TlsVersion, cause_of_io, client_config,
    peer_spiffe, server_config,
};

const ID: &str = "spiffe://cluster.local/ns/default/sa/sleep";

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").expect("a domain")
}

/// What a strict mesh server says of this client certificate.
fn as_client(authority: &Authority, spec: LeafSpec<'_>) -> Result<(), PeerError> {
    let trust = TrustBundle::for_domain(domain(), authority.pem.as_bytes()).expect("root");
    let verifier = ClientVerifier::new(PeerRule::Spiffe, ClientAuth::Required, trust, Vec::new());
    verifier.judge(authority.sign(spec).0.der(), &[], UnixTime::now())
}

#[test]
fn a_valid_certificate_is_accepted() {
    let authority = Authority::new("mesh");
    assert_eq!(
        as_client(
            &authority,
            LeafSpec {
                uris: &[ID],
                ..LeafSpec::default()
            }
        ),
        Ok(())
    );
}

#[test]
fn other_names_and_control_characters_are_refused() {
    let authority = Authority::new("mesh");
    let other = as_client(
        &authority,
        LeafSpec {
            uris: &[ID],
            other_name: true,
            ..LeafSpec::default()
        },
    );

    assert!(matches!(other, Err(PeerError::Malformed(_))), "{other:?}");
    let nul = as_client(
        &authority,
        LeafSpec {
            uris: &["spiffe://cluster.local/ns/default/sa/sleep\0x"],
            ..LeafSpec::default()
        },
    );

    assert!(matches!(nul, Err(PeerError::Malformed(_))), "{nul:?}");
}

#[test]
fn ambiguous_and_malformed_spiffe_ids_are_refused() {
    let authority = Authority::new("mesh");
    let two = as_client(
        &authority,
        LeafSpec {
            uris: &[ID, "spiffe://cluster.local/ns/kube-system/sa/admin"],
            ..LeafSpec::default()
        },
    );

    let Err(PeerError::UriCount { presented }) = &two else {
        panic!("{two:?}")
    };
    assert!(
        presented.contains(ID) && presented.contains("kube-system"),
        "{presented}"
    );

    assert!(matches!(
        as_client(
            &authority,
            LeafSpec {
                dns: &["sleep.default"],
                ..LeafSpec::default()
            }
        ),
        Err(PeerError::UriCount { .. })
    ));

    for trick in [
        "spiffe://cluster.local/ns/default/sa/sleep/",
        "spiffe://cluster.local/ns/default/sa/sl%65ep",
        "SPIFFE://cluster.local/ns/default/sa/sleep",
        "https://cluster.local/ns/default/sa/sleep",
    ] {
        let refused = as_client(
            &authority,
            LeafSpec {
                uris: &[trick],
                ..LeafSpec::default()
            },
        );

        assert!(
            matches!(refused, Err(PeerError::NotSpiffe { .. })),
            "{trick}: {refused:?}"
        );
    }

    // A longer account must not pass for a shorter one.
    let matcher = SanMatcher::uri(ID);
    let verifier = ClientVerifier::new(
        PeerRule::Spiffe,
        ClientAuth::Required,
        authority.trust(),
        vec![matcher],
    );

    let longer = authority.leaf(LeafSpec {
        uris: &["spiffe://cluster.local/ns/default/sa/sleepy"],
        ..LeafSpec::default()
    });

    let refused = verifier.judge(&longer.chain()[0], &[], UnixTime::now());
    assert!(
        matches!(&refused, Err(PeerError::Name { expected, presented }) if expected.contains(ID) && presented.contains("sleepy")),
        "{refused:?}"
    );
}

#[test]
fn a_spiffe_id_beside_another_uri_is_refused_by_every_rule() {
    let authority = Authority::new("mesh");
    let judge = |rule, uris: &[&str]| {
        let leaf = authority.leaf(LeafSpec {
            uris,
            ..LeafSpec::default()
        });
        ClientVerifier::new(rule, ClientAuth::Required, authority.trust(), Vec::new()).judge(
            &leaf.chain()[0],
            &[],
            UnixTime::now(),
        )
    };

    let other = "spiffe://cluster.local/ns/default/sa/admin";
    for uris in [
        [ID, other],
        [ID, "https://a.example"],
        ["urn:a", "SPIFFE://x/y"],
    ] {
        for rule in [PeerRule::Spiffe, PeerRule::Chain] {
            let refused = judge(rule, &uris);
            assert!(
                matches!(refused, Err(PeerError::UriCount { .. })),
                "{rule:?} {uris:?}: {refused:?}"
            );
        }
    }

    // Without a SPIFFE ID a certificate may have as many names as it likes.
    assert_eq!(
        judge(PeerRule::Chain, &["urn:a", "https://a.example"]),
        Ok(())
    );
    assert_eq!(judge(PeerRule::Chain, &[ID]), Ok(()));

    let leaf = authority.leaf(LeafSpec {
        uris: &[ID, other],
        dns: &["a.example"],
        ..LeafSpec::default()
    });
    for rule in [ServerRule::Chain, ServerRule::Host("a.example".into())] {
        let verifier = ServerVerifier::new(rule, authority.trust(), Vec::new());
        let refused = verifier.judge(&leaf.chain()[0], &[], UnixTime::now());
        assert!(
            matches!(refused, Err(PeerError::UriCount { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn expired_future_and_revoked_certificates_are_refused() {
    let authority = Authority::new("mesh");
    let expired = as_client(
        &authority,
        LeafSpec {
            uris: &[ID],
            from: Duration::hours(-2),
            until: Duration::hours(-1),
            ..LeafSpec::default()
        },
    );

    assert!(
        matches!(&expired, Err(PeerError::Validity { reason, .. }) if reason.contains("expired")),
        "{expired:?}"
    );

    let future = as_client(
        &authority,
        LeafSpec {
            uris: &[ID],
            from: Duration::hours(1),
            until: Duration::hours(2),
            ..LeafSpec::default()
        },
    );

    assert!(
        matches!(&future, Err(PeerError::Validity { reason, .. }) if reason.contains("valid only in")),
        "{future:?}"
    );

    let judge = |trust: TrustBundle, serial| {
        let leaf = authority.leaf(LeafSpec {
            uris: &[ID],
            serial,
            ..LeafSpec::default()
        });

        ClientVerifier::new(PeerRule::Spiffe, ClientAuth::Required, trust, Vec::new()).judge(
            &leaf.chain()[0],
            &[],
            UnixTime::now(),
        )
    };

    let current = authority
        .trust()
        .with_crls(authority.crl(&[66], Duration::hours(1)).as_bytes())
        .expect("CRL");

    assert_eq!(judge(current.clone(), 65), Ok(()));
    assert!(
        matches!(judge(current, 66), Err(PeerError::Validity { reason, .. }) if reason == "revoked")
    );

    // Fail closed: a list out of date proves nothing, and one that cannot be read makes no bundle.
    let stale = authority
        .trust()
        .with_crls(authority.crl(&[66], Duration::minutes(-5)).as_bytes())
        .expect("CRL");

    assert!(matches!(judge(stale, 65), Err(PeerError::Validity { .. })));
    let garbage = "-----BEGIN X509 CRL-----\nMAAA\n-----END X509 CRL-----\n";
    assert!(authority.trust().with_crls(garbage.as_bytes()).is_err());
}

#[test]
fn a_server_only_certificate_is_refused_for_a_client() {
    let authority = Authority::new("mesh");
    let refused = as_client(
        &authority,
        LeafSpec {
            uris: &[ID],
            usages: &[ExtendedKeyUsagePurpose::ServerAuth],
            ..LeafSpec::default()
        },
    );

    assert!(
        matches!(
            &refused,
            Err(PeerError::Usage {
                expected: "client",
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn another_trust_domain_is_refused_even_under_the_same_root() {
    let authority = Authority::new("mesh");
    let foreign = as_client(
        &authority,
        LeafSpec {
            uris: &["spiffe://evil.example/ns/default/sa/sleep"],
            ..LeafSpec::default()
        },
    );

    assert!(
        matches!(&foreign, Err(PeerError::TrustDomain { expected, .. }) if expected == "cluster.local"),
        "{foreign:?}"
    );

    // Two federated domains: the root of one cannot speak for the other.
    let other = Authority::new("other");
    let trust = TrustBundle::for_domain(domain(), authority.pem.as_bytes())
        .and_then(|bundle| {
            bundle.with_domain(
                TrustDomain::new("other.example").expect("a domain"),
                other.pem.as_bytes(),
            )
        })
        .expect("roots");

    let leaf = other.leaf(LeafSpec {
        uris: &[ID],
        ..LeafSpec::default()
    });

    let refused = ClientVerifier::new(PeerRule::Spiffe, ClientAuth::Required, trust, Vec::new())
        .judge(&leaf.chain()[0], &[], UnixTime::now());
    assert!(
        matches!(&refused, Err(PeerError::Chain { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_chain_of_a_hundred_certificates_is_refused() {
    let authority = Authority::new("mesh");
    let leaf = authority.leaf(LeafSpec {
        uris: &[ID],
        ..LeafSpec::default()
    });

    let padding = vec![leaf.chain()[0].clone(); 99];
    let verifier = ClientVerifier::new(
        PeerRule::Spiffe,
        ClientAuth::Required,
        authority.trust(),
        Vec::new(),
    );

    assert!(matches!(
        verifier.judge(&leaf.chain()[0], &padding, UnixTime::now()),
        Err(PeerError::TooMany { presented: 100, .. })
    ));
}

#[test]
fn hosts_are_verified_by_name() {
    let authority = Authority::new("public");
    let leaf = authority.leaf(LeafSpec {
        dns: &["*.example.com"],
        ..LeafSpec::default()
    });

    let judge = |rule| {
        ServerVerifier::new(rule, authority.trust(), Vec::new()).judge(
            &leaf.chain()[0],
            &[],
            UnixTime::now(),
        )
    };

    assert_eq!(judge(ServerRule::Host("api.example.com".into())), Ok(()));
    assert!(matches!(
        judge(ServerRule::Host("example.com".into())),
        Err(PeerError::Name { .. })
    ));

    assert!(matches!(
        judge(ServerRule::Host("a.b.example.com".into())),
        Err(PeerError::Name { .. })
    ));

    assert!(matches!(
        judge(ServerRule::Spiffe),
        Err(PeerError::UriCount { .. })
    ));

    assert_eq!(judge(ServerRule::Chain), Ok(()));
}

#[test]
fn san_matchers_match_names_of_all_kinds() {
    let authority = Authority::new("mesh");
    let leaf = authority.leaf(LeafSpec {
        uris: &[ID],
        dns: &["*.Example.com"],
        ..LeafSpec::default()
    });

    let matches = |kind, text| SanMatcher::new(kind, text).matches(leaf.info());
    assert!(matches(
        SanKind::Uri,
        TextMatch::Prefix("spiffe://cluster.local/".into())
    ));

    assert!(matches(SanKind::Uri, TextMatch::Suffix("/sa/sleep".into())));
    assert!(matches(
        SanKind::Uri,
        TextMatch::Contains("/ns/default/".into())
    ));

    assert!(matches(
        SanKind::Uri,
        TextMatch::regex("spiffe://.*/sleep").expect("a pattern")
    ));

    assert!(
        !matches(SanKind::Uri, TextMatch::regex("sleep").expect("a pattern")),
        "the whole name must match"
    );

    assert!(!matches(SanKind::Dns, TextMatch::Exact(ID.into())));
    assert!(matches(
        SanKind::Dns,
        TextMatch::Exact("api.example.COM".into())
    ));

    assert!(!matches(
        SanKind::Dns,
        TextMatch::Exact("a.api.example.com".into())
    ));

    assert!(matches(SanKind::Any, TextMatch::Exact(ID.into())));
    assert!(!matches(
        SanKind::Uri,
        TextMatch::Exact(ID.to_ascii_uppercase())
    ));

    assert!(
        SanMatcher::uri(ID.to_ascii_uppercase())
            .ignoring_case()
            .matches(leaf.info())
    );

    assert!(TextMatch::regex("(").is_err());
}

/// A whole handshake and one message, in memory; the server's view of it.
fn handshake(
    server: ServerTerms,
    server_id: &Identity,
    client: ClientTerms,
    client_id: Option<&Identity>,
    trust: &TrustBundle,
) -> Result<rustls::ServerConnection, String> {
    let server = server_config(&server, server_id, Some(trust)).expect("server terms");
    let client = client_config(&client, client_id, trust).expect("client terms");
    let name = ServerName::try_from("outbound.example").expect("a name");
    let mut client = rustls::ClientConnection::new(client, name).expect("client");
    let mut server = rustls::ServerConnection::new(server).expect("server");

    client.writer().write_all(b"hello").expect("buffered");
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server
                .process_new_packets()
                .map_err(|error| cause_of_io(&std::io::Error::other(error)))?;
        }

        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().map_err(|error| {
                format!("client: {}", cause_of_io(&std::io::Error::other(error)))
            })?;
        }
    }

    let mut message = [0; 5];
    server
        .reader()
        .read_exact(&mut message)
        .map_err(|error| error.to_string())?;

    assert_eq!(&message, b"hello");

    Ok(server)
}

#[test]
fn a_mesh_handshake_gives_both_identities_and_no_ticket() {
    let authority = Authority::new("mesh");
    let server_id = authority.leaf(LeafSpec {
        uris: &["spiffe://cluster.local/ns/default/sa/httpbin"],
        ..LeafSpec::default()
    });

    let client_id = authority.leaf(LeafSpec {
        uris: &[ID],
        ..LeafSpec::default()
    });

    let server = ServerTerms {
        alpn: vec!["istio-http/1.1".into(), "h2".into()],
        client_auth: ClientAuth::Required,
        ..ServerTerms::default()
    };

    let client = ClientTerms {
        alpn: vec!["h2".into()],
        san: vec![SanMatcher::uri(
            "spiffe://cluster.local/ns/default/sa/httpbin",
        )],
        ..ClientTerms::default()
    };

    let done = handshake(
        server.clone(),
        &server_id,
        client.clone(),
        Some(&client_id),
        &authority.trust(),
    )
    .expect("handshake");

    assert_eq!(done.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(done.server_name(), Some("outbound.example"));
    assert_eq!(
        peer_spiffe(done.peer_certificates().expect("asked for"))
            .expect("an identity")
            .to_string(),
        ID
    );

    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let client = ClientTerms {
            min_version: Some(version),
            max_version: Some(version),
            ..client.clone()
        };

        handshake(
            server.clone(),
            &server_id,
            client,
            Some(&client_id),
            &authority.trust(),
        )
        .expect("either version");
    }

    let nobody = handshake(
        server.clone(),
        &server_id,
        client.clone(),
        None,
        &authority.trust(),
    );

    assert_eq!(
        nobody.err().as_deref(),
        Some("the peer presented no certificate")
    );

    let wrong = ClientTerms {
        san: vec![SanMatcher::uri(
            "spiffe://cluster.local/ns/default/sa/other",
        )],
        ..client
    };

    let refused = handshake(
        server,
        &server_id,
        wrong,
        Some(&client_id),
        &authority.trust(),
    )
    .err()
    .unwrap_or_default();

    assert!(
        refused.starts_with("client: expected a subject alternative name")
            && refused.contains("sa/httpbin"),
        "{refused}"
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let authority = Authority::new("mesh");
    let one = authority.leaf(LeafSpec {
        uris: &[ID],
        ..LeafSpec::default()
    });

    let two = authority.leaf(LeafSpec {
        uris: &[ID],
        ..LeafSpec::default()
    });

    assert!(Identity::from_pem(one.chain_pem().as_bytes(), two.key_pem().as_bytes()).is_err());
    assert!(Identity::from_pem(one.chain_pem().as_bytes(), one.key_pem().as_bytes()).is_ok());
}

#[test]
fn algorithms_can_be_restricted() {
    let authority = Authority::new("mesh");
    let server_id = authority.leaf(LeafSpec {
        uris: &[ID],
        ..LeafSpec::default()
    });

    let (min_version, max_version) = (Some(TlsVersion::V1_2), Some(TlsVersion::V1_2));
    let narrow = |suites: &[u16], groups: &[u16]| crate::Algorithms {
        tls12_suites: suites.into(),
        groups: groups.into(),
    };

    let server = |algorithms| ServerTerms {
        min_version,
        max_version,
        algorithms,
        ..ServerTerms::default()
    };

    let client = |algorithms| ClientTerms {
        min_version,
        max_version,
        algorithms,
        ..ClientTerms::default()
    };

    let shake = |ours, theirs| {
        handshake(
            server(ours),
            &server_id,
            client(theirs),
            None,
            &authority.trust(),
        )
    };

    let done = shake(narrow(&[0xc02b], &[0x18]), narrow(&[], &[]))
        .expect("one suite and one group are enough");
    assert_eq!(
        done.negotiated_cipher_suite()
            .map(|suite| u16::from(suite.suite())),
        Some(0xc02b)
    );

    assert_eq!(
        done.negotiated_key_exchange_group()
            .map(|group| u16::from(group.name())),
        Some(0x18)
    );

    assert!(
        shake(narrow(&[0xc02b], &[]), narrow(&[0xc02c], &[])).is_err(),
        "nothing in common"
    );

    assert!(
        shake(narrow(&[], &[0x17]), narrow(&[], &[0x18])).is_err(),
        "nothing in common"
    );

    assert!(
        server_config(&server(narrow(&[], &[0x19])), &server_id, None).is_err(),
        "P-521 is not there"
    );
}
