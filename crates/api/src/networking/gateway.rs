//! Gateway: what a proxy at the edge listens on.

use meltemi_types::Selector;

use crate::schema::{message, words};

message! {
    /// Listening ports of gateway workloads.
    pub struct Gateway {
        /// Labels of the gateway's pods, in any namespace; empty is every gateway.
        selector: Selector = "selector",
        /// Ports with hosts.
        servers: Vec<Server> = "servers",
    }

    /// One port with hosts.
    pub struct Server {
        /// For logs.
        name: String = "name",
        /// Where to listen.
        port: Port = "port" [required],
        /// Address or socket to bind; empty is any.
        bind: String = "bind",
        /// `host`, `*.host`, `*`, each optionally after `namespace/` or `./` or `*/`.
        hosts: Vec<String> = "hosts" [required],
        /// TLS, for HTTPS and TLS ports.
        tls: Option<ServerTlsSettings> = "tls",
        /// In the schema, never implemented by Istio.
        default_endpoint: String = "defaultEndpoint",
    }

    /// A listening port.
    pub struct Port {
        /// 1 to 65535.
        number: u32 = "number" [required],
        /// HTTP, HTTPS, HTTP2, GRPC, GRPC-Web, TCP, TLS, MONGO.
        protocol: String = "protocol" [required],
        /// Unique within the object.
        name: String = "name" [required],
        /// Deprecated, without effect.
        target_port: u32 = "targetPort",
    }

    /// TLS towards clients.
    pub struct ServerTlsSettings {
        /// Redirect plaintext requests to HTTPS.
        https_redirect: bool = "httpsRedirect",
        /// Which kind.
        mode: ServerTlsMode = "mode",
        /// File of the certificate.
        server_certificate: String = "serverCertificate",
        /// File of the key.
        private_key: String = "privateKey",
        /// File of the clients' roots.
        ca_certificates: String = "caCertificates",
        /// File of revocations.
        ca_crl: String = "caCrl",
        /// Secret with keys and roots.
        credential_name: String = "credentialName",
        /// Up to two Secrets, of different key types.
        credential_names: Vec<String> = "credentialNames",
        /// Secret with the clients' roots only.
        ca_cert_credential_name: String = "caCertCredentialName",
        /// Up to two certificates in files.
        tls_certificates: Vec<TlsCertificate> = "tlsCertificates",
        /// Accepted names in the client's certificate.
        subject_alt_names: Vec<String> = "subjectAltNames",
        /// Accepted keys: base64 of SHA-256.
        verify_certificate_spki: Vec<String> = "verifyCertificateSpki",
        /// Accepted certificates: hex of SHA-256.
        verify_certificate_hash: Vec<String> = "verifyCertificateHash",
        /// Oldest version; automatic is 1.2.
        min_protocol_version: TlsProtocol = "minProtocolVersion",
        /// Newest version.
        max_protocol_version: TlsProtocol = "maxProtocolVersion",
        /// In OpenSSL's names.
        cipher_suites: Vec<String> = "cipherSuites",
        /// Groups of the key exchange.
        ecdh_curves: Vec<String> = "ecdhCurves",
        /// Trust any client certificate.
        insecure_skip_verify: Option<bool> = "insecureSkipVerify",
    }

    /// A certificate in files.
    pub struct TlsCertificate {
        /// Chain.
        server_certificate: String = "serverCertificate",
        private_key: String = "privateKey",
        /// Clients' roots.
        ca_certificates: String = "caCertificates",
    }
}

words! {
    /// Which kind of TLS.
    pub enum ServerTlsMode {
        /// Opaque, routed by SNI.
        Passthrough = "PASSTHROUGH",
        /// Terminated.
        Simple = "SIMPLE",
        /// Terminated, with a client certificate.
        Mutual = "MUTUAL",
        /// Opaque, routed by SNI that names a service.
        AutoPassthrough = "AUTO_PASSTHROUGH",
        /// Terminated with the workload's certificate, mutual.
        IstioMutual = "ISTIO_MUTUAL",
        /// Terminated; a client certificate is checked if there is one.
        OptionalMutual = "OPTIONAL_MUTUAL",
    }

    /// A version of TLS.
    pub enum TlsProtocol {
        /// The default.
        Auto = "TLS_AUTO",
        /// 1.0.
        V1_0 = "TLSV1_0",
        /// 1.1.
        V1_1 = "TLSV1_1",
        /// 1.2.
        V1_2 = "TLSV1_2",
        /// 1.3.
        V1_3 = "TLSV1_3",
    }
}
