//! The names by which listeners, routes and filters refer to clusters, as Istio writes them.

/// `outbound|port|subset|host`.
pub(crate) fn outbound_name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `outbound_.port_.subset_.host`: the SNI of the mesh's own TLS.
pub(crate) fn sni_name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}
