//! What an unknown caller hands to the CA: a bearer token, which is refused unless the CA signed
//! it, and a signing request, which never names its own identity.

#![no_main]

use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use meltemi_ca::{CertificateAuthority, JwtTokenReview, TokenReview, TokenSigner};
use meltemi_types::{SpiffeId, TrustDomain};

static REVIEW: LazyLock<JwtTokenReview> = LazyLock::new(|| {
    let signer = TokenSigner::generate().expect("a key");
    JwtTokenReview::new(signer.public_key_pem()).expect("a public key")
});
static AUTHORITY: LazyLock<CertificateAuthority> =
    LazyLock::new(|| CertificateAuthority::in_memory(trust_domain()).expect("an authority"));

fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").expect("a trust domain")
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };

    let mut review = pin!(REVIEW.review(text));
    match review
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(verdict) => assert!(verdict.is_err(), "a token of nobody's is accepted"),
        Poll::Pending => panic!("a review waits for nothing"),
    }

    let identity = SpiffeId::new(trust_domain(), "shop", "front").expect("an identity");
    let hour = Duration::from_secs(3600);
    let _ = AUTHORITY.sign_at(text, &identity, Some("front-1"), hour, SystemTime::now());
});
