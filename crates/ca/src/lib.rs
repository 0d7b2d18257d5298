//! Issues workload certificates, and decides who may have one.
//!
//! In: a certificate request, the identity that its sender proved, a lifetime. Out: a chain, leaf
//! first and roots last. The names in a request never reach a certificate. [`TokenReview`] turns a
//! first token into a [`Caller`]; on one machine that is [`JwtTokenReview`] over tokens of a
//! [`TokenSigner`], on Kubernetes the API server.
//!
//! Must never import: gRPC, Kubernetes, anything that serves. The only IO is reading and writing
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
