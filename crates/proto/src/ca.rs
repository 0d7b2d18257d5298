//! `istio.v1.auth.IstioCertificateService`: the CSR API, messages and gRPC stubs. Source: Istio
//! `security/v1alpha1/ca.proto`.

use std::sync::Arc;

use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body, BoxFuture, Context, Poll, Service, StdError, http};

use crate::google::protobuf::Struct;

const SERVICE_NAME: &str = "istio.v1.auth.IstioCertificateService";
const METHOD_PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateRequest {
    /// PKCS#10 in PEM. Its names are ignored: the certificate names whom the caller proved to be.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds; 0 or more than the CA's maximum means the CA's choice.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `CertSigner`, `ImpersonatedIdentity`.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateResponse {
    /// PEM, leaf first, one certificate an element; the root bundle is the last element.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// What a CA implements.
#[tonic::async_trait]
pub trait CertificateService: Send + Sync + 'static {
    /// Issues one certificate for the authenticated caller.
    async fn create_certificate(
        &self,
        request: tonic::Request<CertificateRequest>,
    ) -> Result<tonic::Response<CertificateResponse>, tonic::Status>;
}

/// Serves a [`CertificateService`] over tonic.
#[derive(Debug)]
pub struct CertificateServiceServer<T> {
    inner: Arc<T>,
}

impl<T> CertificateServiceServer<T> {
    /// Wraps an implementation.
    pub fn new(inner: T) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl<T> Clone for CertificateServiceServer<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<T> tonic::server::NamedService for CertificateServiceServer<T> {
    const NAME: &'static str = SERVICE_NAME;
}

struct CreateCertificate<T>(Arc<T>);

impl<T: CertificateService> tonic::server::UnaryService<CertificateRequest>
    for CreateCertificate<T>
{
    type Response = CertificateResponse;
    type Future = BoxFuture<tonic::Response<CertificateResponse>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.create_certificate(request).await })
    }
}

impl<T, B> Service<http::Request<B>> for CertificateServiceServer<T>
where
    T: CertificateService,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD_PATH {
                return Ok(
                    tonic::Status::unimplemented("only CreateCertificate exists").into_http(),
                );
            }
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.unary(CreateCertificate(inner), request).await)
        })
    }
}

/// Calls a CA.
#[derive(Debug, Clone)]
pub struct CertificateServiceClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> CertificateServiceClient<T>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    /// Over an existing channel.
    pub fn new(channel: T) -> Self {
        Self {
            inner: tonic::client::Grpc::new(channel),
        }
    }

    /// Asks for one certificate. The token, if any, goes into the metadata key `authorization`.
    pub async fn create_certificate(
        &mut self,
        request: tonic::Request<CertificateRequest>,
    ) -> Result<tonic::Response<CertificateResponse>, tonic::Status> {
        self.inner.ready().await.map_err(|error| {
            tonic::Status::unavailable(format!("the CA does not answer: {}", error.into()))
        })?;
        let codec = tonic_prost::ProstCodec::default();
        self.inner
            .unary(request, PathAndQuery::from_static(METHOD_PATH), codec)
            .await
    }
}
