//! What is issued, to whom, and what is refused.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use meltemi_tls::{Identity, TrustBundle, certificates_from_pem, info_of, verify_workload};
use meltemi_types::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use super::*;

const ID: &str = "spiffe://cluster.local/ns/default/sa/sleep";

fn id() -> SpiffeId {
    ID.parse().expect("an identity")
}

fn request(names: &[&str]) -> (String, KeyPair) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "whoever");
    params.subject_alt_names = names
        .iter()
        .map(|name| SanType::URI((*name).try_into().expect("IA5")))
        .collect();

    (
        params
            .serialize_request(&key)
            .expect("CSR")
            .pem()
            .expect("PEM"),
        key,
    )
}

fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a local review waits for nothing"),
    }
}

#[test]
fn a_certificate_names_the_caller_alone_and_verifies() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    let (csr, key) = request(&["https://evil.example", ID]);
    let chain = authority
        .sign(&csr, &id(), None, Duration::ZERO)
        .expect("signed");

    assert_eq!(chain.len(), 2, "leaf and root");
    assert_eq!(chain[1], authority.roots_pem());
    let identity = Identity::from_pem(chain[0].as_bytes(), key.serialize_pem().as_bytes())
        .expect("an identity");
    let info = identity.info();
    assert_eq!(
        (
            info.uri_sans.as_slice(),
            info.dns_sans.len(),
            info.subject.as_str()
        ),
        (&[ID.to_owned()][..], 0, "")
    );

    verify_workload(
        identity.chain(),
        &authority.trust().expect("roots"),
        SystemTime::now(),
    )
    .expect("verifies");

    let lifetime = info
        .not_after
        .duration_since(info.not_before)
        .expect("in order");

    assert!(
        lifetime >= DEFAULT_TTL && lifetime <= DEFAULT_TTL + Duration::from_secs(122),
        "{lifetime:?}"
    );
}

#[test]
fn serials_differ_even_for_one_request() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    let (csr, _) = request(&[]);
    let serial = || {
        let chain = authority
            .sign(&csr, &id(), None, Duration::ZERO)
            .expect("signed");
        info_of(&certificates_from_pem(chain[0].as_bytes()).expect("PEM")[0])
            .expect("a certificate")
            .serial
    };
    assert_ne!(serial(), serial());
}

#[test]
fn lifetimes_are_clamped_at_both_ends() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    let (csr, _) = request(&[]);
    let at = SystemTime::now();
    let lifetime = |ttl: Duration| {
        let chain = authority
            .sign_at(&csr, &id(), None, ttl, at)
            .expect("signed");
        let info = info_of(&certificates_from_pem(chain[0].as_bytes()).expect("PEM")[0])
            .expect("a certificate");
        info.not_after.duration_since(at).expect("later")
    };

    let short = lifetime(Duration::from_secs(2));
    assert!(
        short >= Duration::from_secs(2) && short < Duration::from_secs(3),
        "{short:?}"
    );

    assert!(lifetime(Duration::from_secs(400 * 86_400)) < MAX_TTL + Duration::from_secs(1));
    let late = at + Duration::from_secs(3650 * 86_400 - 60);
    let chain = authority
        .sign_at(&csr, &id(), None, DEFAULT_TTL, late)
        .expect("signed");
    let info = info_of(&certificates_from_pem(chain[0].as_bytes()).expect("PEM")[0])
        .expect("a certificate");
    assert!(
        info.not_after <= authority.info().not_after,
        "a leaf must not outlive its issuer"
    );

    let over = authority.sign_at(
        &csr,
        &id(),
        None,
        DEFAULT_TTL,
        late + Duration::from_secs(3600),
    );
    assert!(matches!(over, Err(SignError::Expired { .. })), "{over:?}");
}

#[test]
fn a_request_for_another_identity_is_refused() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    let (csr, _) = request(&["spiffe://cluster.local/ns/kube-system/sa/admin"]);
    let refused = authority.sign(&csr, &id(), None, Duration::ZERO);

    assert!(
        matches!(&refused, Err(SignError::ForeignIdentity { asked, .. }) if asked.contains("kube-system")),
        "{refused:?}"
    );

    let (csr, _) = request(&["spiffe://evil.example/ns/default/sa/sleep"]);
    let refused = authority.sign(&csr, &id(), None, Duration::ZERO);
    assert!(
        matches!(&refused, Err(SignError::ForeignIdentity { asked, .. }) if asked.contains("evil")),
        "{refused:?}"
    );

    let foreign: SpiffeId = "spiffe://other.example/ns/default/sa/sleep"
        .parse()
        .expect("an identity");
    let (csr, _) = request(&[]);
    assert!(matches!(
        authority.sign(&csr, &foreign, None, Duration::ZERO),
        Err(SignError::TrustDomain { .. })
    ));
}

#[test]
fn broken_requests_are_refused() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    let (good, _) = request(&[]);
    let (other, _) = request(&[]);

    // The signature of another request under this one's key: no proof of possession.
    let der = |pem: &str| {
        pem.lines()
            .filter(|line| !line.starts_with('-'))
            .collect::<String>()
    };

    use base64::Engine as _;

    let engine = base64::engine::general_purpose::STANDARD;
    let (mut one, two) = (
        engine.decode(der(&good)).expect("base64"),
        engine.decode(der(&other)).expect("base64"),
    );

    let tail = one.len() - 20;
    one[tail..].copy_from_slice(&two[two.len() - 20..]);
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        engine.encode(one)
    );

    for bad in [
        "",
        "hello",
        &forged,
        &good[..good.len() / 2],
        &"x".repeat(1 << 20),
    ] {
        let refused = authority.sign(bad, &id(), None, Duration::ZERO);
        assert!(
            matches!(&refused, Err(error) if error.is_callers_fault()),
            "{refused:?}"
        );
    }
}

#[test]
fn a_root_of_our_own_survives_a_restart_and_is_private() {
    let folder = tempfile::tempdir().expect("folder");
    let home = folder.path().join("ca");
    let first = CertificateAuthority::self_signed(&home, TrustDomain::default()).expect("made");
    let (csr, _) = request(&[]);
    let chain = first
        .sign(&csr, &id(), None, Duration::ZERO)
        .expect("signed");
    let again = CertificateAuthority::self_signed(&home, TrustDomain::default()).expect("loaded");

    assert_eq!(first.roots_pem(), again.roots_pem());
    let leaf = certificates_from_pem(chain[0].as_bytes()).expect("PEM");
    verify_workload(&leaf, &again.trust().expect("roots"), SystemTime::now()).expect("still good");
    let mode = std::fs::metadata(home.join("ca-key.pem"))
        .expect("the key")
        .permissions()
        .mode();

    assert_eq!(mode & 0o777, 0o600);

    // A crash between the two files: the key is kept, the certificate is made anew.
    std::fs::remove_file(home.join("root-cert.pem")).expect("removed");
    CertificateAuthority::self_signed(&home, TrustDomain::default()).expect("healed");
    let left: Vec<_> = std::fs::read_dir(&home)
        .expect("folder")
        .map(|entry| entry.expect("entry").file_name())
        .collect();

    assert_eq!(left.len(), 2, "{left:?}");
}

fn plug_in(folder: &Path, key: &str, chain_with_root: bool) {
    let root_key = KeyPair::generate().expect("key");
    let mut root = CertificateParams::default();
    root.distinguished_name
        .push(DnType::CommonName, "corporate root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_pem = root.self_signed(&root_key).expect("root").pem();
    let root = Issuer::new(root, root_key);
    let ca_key = KeyPair::generate().expect("key");
    let mut ca = CertificateParams::default();

    ca.distinguished_name
        .push(DnType::CommonName, "intermediate");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];

    let ca_pem = ca.signed_by(&ca_key, &root).expect("intermediate").pem();
    let chain = match chain_with_root {
        true => format!("{ca_pem}{root_pem}"),
        false => ca_pem.clone(),
    };

    let key = match key {
        "" => ca_key.serialize_pem(),
        other => other.to_owned(),
    };

    for (name, text) in [
        ("ca-cert.pem", &ca_pem),
        ("ca-key.pem", &key),
        ("cert-chain.pem", &chain),
        ("root-cert.pem", &root_pem),
    ] {
        std::fs::write(folder.join(name), text).expect("written");
    }
}

#[test]
fn plug_in_certificates_give_leaf_intermediate_and_root() {
    for chain_with_root in [false, true] {
        let folder = tempfile::tempdir().expect("folder");
        plug_in(folder.path(), "", chain_with_root);
        let authority = CertificateAuthority::plug_in(folder.path(), TrustDomain::default())
            .expect("authority");
        let (csr, _) = request(&[]);
        let chain = authority
            .sign(&csr, &id(), None, Duration::ZERO)
            .expect("signed");
        assert_eq!(chain.len(), 3);
        let root = TrustBundle::from_pem(chain[2].as_bytes()).expect("root");
        let links = certificates_from_pem(chain[..2].concat().as_bytes()).expect("PEM");
        verify_workload(&links, &root, SystemTime::now()).expect("verifies over the intermediate");
    }
}

#[test]
fn plug_in_certificates_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    assert!(matches!(
        CertificateAuthority::plug_in(folder.path(), TrustDomain::default()),
        Err(AuthorityError::Io { .. })
    ));

    plug_in(
        folder.path(),
        &KeyPair::generate().expect("key").serialize_pem(),
        false,
    );

    let wrong_key = CertificateAuthority::plug_in(folder.path(), TrustDomain::default())
        .expect_err("another key");
    assert!(
        wrong_key.to_string().contains("is not the key of"),
        "{wrong_key}"
    );

    plug_in(folder.path(), "", false);
    let stranger = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    std::fs::write(folder.path().join("root-cert.pem"), stranger.roots_pem()).expect("written");
    let wrong_root = CertificateAuthority::plug_in(folder.path(), TrustDomain::default())
        .expect_err("another root");
    assert!(
        wrong_root
            .to_string()
            .contains("do not verify under root-cert.pem"),
        "{wrong_root}"
    );
}

#[test]
fn plug_in_keys_may_be_pkcs1() {
    let pair =
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("key");

    // RFC 5958: version, algorithm and the header of the octet string are 26 bytes for this size.
    let pkcs1 = rustls_pki_types::PrivateKeyDer::Pkcs1(pair.serialize_der()[26..].to_vec().into());
    let text = meltemi_tls::key_to_pem(&pkcs1);
    assert!(text.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let folder = tempfile::tempdir().expect("folder");
    let mut root = CertificateParams::default();
    root.distinguished_name
        .push(DnType::CommonName, "corporate root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_pem = root.self_signed(&pair).expect("root").pem();
    for (name, text) in [
        ("ca-cert.pem", &root_pem),
        ("ca-key.pem", &text),
        ("root-cert.pem", &root_pem),
    ] {
        std::fs::write(folder.path().join(name), text).expect("written");
    }

    let authority =
        CertificateAuthority::plug_in(folder.path(), TrustDomain::default()).expect("authority");
    let (csr, _) = request(&[]);
    assert_eq!(
        authority
            .sign(&csr, &id(), None, Duration::ZERO)
            .expect("signed")
            .len(),
        2
    );
}

#[test]
fn the_control_planes_certificate_is_for_its_names() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    let identity = authority
        .server_identity(
            &["istiod.istio-system.svc".into()],
            &["10.44.0.1".parse().expect("an address")],
            Duration::ZERO,
        )
        .expect("issued");

    assert_eq!(identity.info().dns_sans, ["istiod.istio-system.svc"]);
    assert_eq!(identity.info().ip_sans.len(), 1);
    assert!(identity.spiffe().is_none());
}

fn sleep() -> Caller {
    Caller {
        namespace: "default".into(),
        service_account: "sleep".into(),
        pod: Some("sleep-1".into()),
    }
}

#[test]
fn a_token_proves_its_caller() {
    let signer = TokenSigner::generate().expect("signer");
    let review = JwtTokenReview::new(signer.public_key_pem()).expect("reviewer");
    let token = signer
        .sign(&sleep(), Duration::from_secs(43_200))
        .expect("token");
    assert_eq!(now(review.review(&token)), Ok(sleep()));
    assert_eq!(
        sleep()
            .identity(&TrustDomain::default())
            .expect("an identity"),
        id()
    );
}

#[test]
fn wrong_tokens_are_refused() {
    let signer = TokenSigner::generate().expect("signer");
    let review = JwtTokenReview::new(signer.public_key_pem()).expect("reviewer");
    let hour = Duration::from_secs(3600);
    let past = SystemTime::now() - 2 * hour;
    let future = SystemTime::now() + hour;
    let token = signer.sign(&sleep(), hour).expect("token");
    let (head, rest) = token.split_once('.').expect("three parts");
    let none = format!(
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.",
        rest.split_once('.').expect("three parts").0
    );

    // HS256 with the public key as the secret: the classic confusion.
    let confused = jsonwebtoken::encode(
        &jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256),
        &serde_json::json!({"iss": ISSUER, "aud": [AUDIENCE], "exp": u32::MAX, "nbf": 0, "iat": 0, "sub": "system:serviceaccount:default:sleep",
            "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "sleep"}}}),
        &jsonwebtoken::EncodingKey::from_secret(signer.public_key_pem().as_bytes()),
    )
    .expect("token");

    for (bad, why) in [
        (
            signer.sign_at(&sleep(), hour, past).expect("token"),
            "expired",
        ),
        (
            signer.sign_at(&sleep(), hour, future).expect("token"),
            "not valid yet",
        ),
        (
            TokenSigner::generate()
                .expect("signer")
                .sign(&sleep(), hour)
                .expect("token"),
            "another key",
        ),
        (format!("{head}.x{rest}"), "changed"),
        (none, "no signature"),
        (confused, "another algorithm"),
        (String::new(), "empty"),
        ("x".repeat(1 << 20), "huge"),
    ] {
        let refused = now(review.review(&bad));
        assert!(
            matches!(refused, Err(ReviewError::Refused(_))),
            "{why}: {refused:?}"
        );
    }
}

#[test]
fn a_token_key_survives_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("token-key.pem");
    let one = TokenSigner::load_or_create(&path).expect("made");
    let two = TokenSigner::load_or_create(&path).expect("loaded");
    assert_eq!(one.public_key_pem(), two.public_key_pem());
}

#[test]
fn a_certificate_names_its_pod_of_any_length() {
    let authority = CertificateAuthority::in_memory(TrustDomain::default()).expect("authority");
    for pod in [
        "cart-1".to_owned(),
        "p".repeat(127),
        "p".repeat(128),
        "p".repeat(253),
    ] {
        let (csr, _) = request(&[ID]);
        let chain = authority
            .sign(&csr, &id(), Some(&pod), Duration::ZERO)
            .expect("signed");
        let leaf = certificates_from_pem(chain[0].as_bytes()).expect("PEM");
        assert_eq!(info_of(&leaf[0]).expect("read").pod, Some(pod));
        verify_workload(&leaf, &authority.trust().expect("roots"), SystemTime::now())
            .expect("a peer that knows nothing of pods takes it");
    }

    let (csr, _) = request(&[ID]);
    let refused = authority.sign(&csr, &id(), Some(&"p".repeat(254)), Duration::ZERO);
    assert!(
        refused
            .expect_err("too long")
            .to_string()
            .contains("254 bytes")
    );
}
