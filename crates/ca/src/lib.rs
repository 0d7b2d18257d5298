//! The certificate authority: issues workload certificates, and signs and verifies the tokens that
//! authenticate the first request.
//!
//! In: a certificate request, the authenticated identity of its sender, a lifetime. Out: a chain,
//! leaf first and roots last. Names in the request never reach the certificate. [`TokenReview`]
//! turns a token into a [`Caller`]; on one machine [`JwtTokenReview`] verifies tokens of a
//! [`TokenSigner`].
//!
//! Must never import gRPC, Kubernetes, or anything that serves. The only I/O is reading and writing
//! its own key files.

mod authority;
mod files;
mod request;
mod review;
mod token;

pub use authority::{AuthorityError, CertificateAuthority, DEFAULT_TTL, MAX_TTL, Origin};
pub use files::write_private;
pub use request::SignError;
pub use review::{BoxFuture, Caller, ReviewError, TokenReview};
pub use token::{AUDIENCE, ISSUER, JwtTokenReview, TokenError, TokenSigner};

#[cfg(test)]
mod tests;
