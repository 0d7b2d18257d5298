//! Whether a policy's authorizer can be asked, and at which service.

use std::sync::Arc;

use meltemi_types::Labels;

use crate::{Authorizer, Check, Hostname, Provider, ProviderFault, ServiceName, Snapshot};

/// Why no authorizer stands behind the name of a provider.
pub(crate) enum NoAuthorizer<'a> {
    /// No extension provider has the name.
    Unknown,
    /// The provider is a tracer or a log.
    OtherKind,
    /// The provider's text has a fault; validation of MeshConfig reports it.
    Faulty(&'a ProviderFault),
    /// The mesh has no such service, or has it in several namespaces.
    NoService(ProviderFault),
}

impl Snapshot {
    /// The authorizer with this name, if the mesh has its service. A port that the service does not
    /// have is no reason to refuse: every check fails, as under Istio.
    pub(crate) fn authorizer(&self, provider: &str) -> Result<&Arc<Authorizer>, NoAuthorizer<'_>> {
        let authorizer = match self.mesh.providers.get(provider) {
            None => return Err(NoAuthorizer::Unknown),
            Some(Provider::OtherKind) => return Err(NoAuthorizer::OtherKind),
            Some(Provider::Faulty(fault)) => return Err(NoAuthorizer::Faulty(fault)),
            Some(Provider::Authorizer(authorizer)) => authorizer,
        };

        match self.service_fault(authorizer) {
            None => Ok(authorizer),
            Some(fault) => Err(NoAuthorizer::NoService(fault)),
        }
    }

    /// Whether a workload is the authorizer: the authorizer's service selects it.
    pub(crate) fn is_behind(
        &self,
        authorizer: &Authorizer,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        let ServiceName {
            namespace: declared_in,
            host,
        } = &authorizer.service;
        let mut services = self.services.of_host(host).filter(|service| {
            let own = service.namespace();
            own == namespace && declared_in.as_ref().is_none_or(|wanted| wanted == own)
        });

        services.any(|service| {
            let selector = service.selector.as_ref();
            selector.is_some_and(|selector| selector.selects(labels))
        })
    }

    /// The fault if an authorizer's service does not exist exactly once. Source: Istio
    /// `LookupCluster`.
    fn service_fault(&self, authorizer: &Authorizer) -> Option<ProviderFault> {
        let ServiceName { namespace, host } = &authorizer.service;
        let namespaces: Vec<&str> = self
            .services
            .of_host(host)
            .map(|service| service.namespace())
            .filter(|declared_in| {
                namespace
                    .as_ref()
                    .is_none_or(|wanted| wanted == declared_in)
            })
            .collect();

        let (message, remedy) = match namespaces.as_slice() {
            [_] => return None,
            [] => (
                format!("could not find service {} in the mesh", authorizer.service),
                match self.longer_host(&authorizer.service) {
                    Some(whole) => format!("write the whole host: {whole}"),
                    None => "correct the host, or declare a Service or ServiceEntry for it".into(),
                },
            ),
            several => (
                format!("found {host} in several namespaces: {}", several.join(", ")),
                "write NAMESPACE/HOST".to_owned(),
            ),
        };

        Some(ProviderFault {
            field: format!("{}.service", kind_of(authorizer)),
            message,
            remedy,
        })
    }

    /// The host that a short name such as `ext-authz` or `ext-authz.shop` was meant to be.
    fn longer_host(&self, short: &ServiceName) -> Option<Hostname> {
        let beginning = format!("{}.", short.host);
        self.services
            .by_key
            .keys()
            .filter(|key| {
                short
                    .namespace
                    .as_ref()
                    .is_none_or(|wanted| *wanted == key.namespace)
            })
            .find(|key| key.host.as_str().starts_with(&beginning))
            .map(|key| key.host.clone())
    }

    /// The fault of the port of an authorizer whose service is known.
    pub(crate) fn port_fault(&self, authorizer: &Authorizer) -> Option<ProviderFault> {
        let Authorizer {
            service: ServiceName { host, .. },
            port: number,
            check,
            ..
        } = authorizer;
        let service = self.services.of_host(host).next()?;

        let (message, remedy) = match service.port(*number) {
            None => {
                let ports: Vec<_> = service.ports.iter().map(|p| p.number.to_string()).collect();
                (
                    format!("service {host} has no port {number}"),
                    format!("use one of its ports: {}", ports.join(" ")),
                )
            }
            Some(port) if *check == Check::Grpc && !port.protocol.is_http2() => (
                format!(
                    "port {number} of service {host} is {}: gRPC needs HTTP/2",
                    port.protocol
                ),
                "name the port of the service grpc, or set its appProtocol".to_owned(),
            ),
            Some(_) => return None,
        };

        Some(ProviderFault {
            field: format!("{}.port", kind_of(authorizer)),
            message,
            remedy,
        })
    }
}

fn kind_of(authorizer: &Authorizer) -> &'static str {
    match authorizer.check {
        Check::Http(_) => "envoyExtAuthzHttp",
        Check::Grpc => "envoyExtAuthzGrpc",
    }
}
