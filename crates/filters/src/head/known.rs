//! Well-known field names, each with a number: such a field is found without comparing text.

macro_rules! known {
    ($($variant:ident $text:literal,)*) => {
        /// A field name that the proxy itself looks at; finding one of these is a bit test and a
        /// byte scan.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known { Other = 0, $($variant,)* }

        // `Fields` has a bit for each name, and one for `Other`, in a u64.
        const _: () = assert!([$($text),*].len() < u64::BITS as usize);

        impl Known {
            /// The number of a name in lower case; `Other` for names without one.
            pub fn of(name: &[u8]) -> Self {
                // The compiler switches on the length first, so a miss costs one or two
                // comparisons.
                match name {
                    $(x if x == $text.as_bytes() => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// The lower-case name; empty for `Other`.
            pub fn name(self) -> &'static str {
                match self { Self::Other => "", $(Self::$variant => $text,)* }
            }
        }
    };
}

known! {
    Accept "accept",
    AcceptEncoding "accept-encoding",
    Authorization "authorization",
    CacheControl "cache-control",
    Connection "connection",
    ContentLength "content-length",
    ContentType "content-type",
    Cookie "cookie",
    Date "date",
    Expect "expect",
    GrpcStatus "grpc-status",
    GrpcMessage "grpc-message",
    GrpcTimeout "grpc-timeout",
    KeepAlive "keep-alive",
    Location "location",
    Origin "origin",
    ProxyConnection "proxy-connection",
    RetryAfter "retry-after",
    Server "server",
    SetCookie "set-cookie",
    Te "te",
    Trailer "trailer",
    TransferEncoding "transfer-encoding",
    Upgrade "upgrade",
    UserAgent "user-agent",
    Via "via",
    XRequestId "x-request-id",
    XForwardedFor "x-forwarded-for",
    XForwardedProto "x-forwarded-proto",
    XForwardedHost "x-forwarded-host",
    XForwardedClientCert "x-forwarded-client-cert",
    XEnvoyInternal "x-envoy-internal",
    XEnvoyExternalAddress "x-envoy-external-address",
    XEnvoyOriginalPath "x-envoy-original-path",
    XEnvoyOriginalHost "x-envoy-original-host",
    XEnvoyDecoratorOperation "x-envoy-decorator-operation",
    XEnvoyAttemptCount "x-envoy-attempt-count",
    XEnvoyUpstreamServiceTime "x-envoy-upstream-service-time",
    XEnvoyUpstreamRqTimeoutMs "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamRqPerTryTimeoutMs "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyExpectedRqTimeoutMs "x-envoy-expected-rq-timeout-ms",
    XEnvoyRetryOn "x-envoy-retry-on",
    XEnvoyRetryGrpcOn "x-envoy-retry-grpc-on",
    XEnvoyMaxRetries "x-envoy-max-retries",
    XEnvoyRetriableStatusCodes "x-envoy-retriable-status-codes",
    XEnvoyOverloaded "x-envoy-overloaded",
    XEnvoyRatelimited "x-envoy-ratelimited",
    XEnvoyPeerMetadata "x-envoy-peer-metadata",
    XEnvoyPeerMetadataId "x-envoy-peer-metadata-id",
    Traceparent "traceparent",
    Tracestate "tracestate",
    Baggage "baggage",
    B3 "b3",
    XB3Traceid "x-b3-traceid",
    XB3Spanid "x-b3-spanid",
    XB3Parentspanid "x-b3-parentspanid",
    XB3Sampled "x-b3-sampled",
    XB3Flags "x-b3-flags",
    AccessControlRequestMethod "access-control-request-method",
}
