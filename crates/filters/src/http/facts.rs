//! What format strings of filters can ask for, and headers changed by them.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::SystemTime;

use super::context::{RequestContext, ResponseContext, StreamFacts, StreamState};
use crate::conn::ConnInfo;
use crate::digits;
use crate::format::{Fact, Facts, Head, MetadataOf, Moment, connection_fact};
use crate::head::{RequestHead, ResponseHead};
use crate::header_ops::HeaderOps;
use crate::metadata::{Metadata, Value};

/// What format strings of filters can ask for.
#[derive(Debug, Clone, Copy)]
pub struct HeaderFacts<'a> {
    pub request: &'a RequestHead,
    pub response: Option<&'a ResponseHead>,
    pub conn: &'a ConnInfo,
    /// The client.
    pub remote: SocketAddr,
    /// What filters share.
    pub state: &'a StreamState,
    pub cluster: Option<&'a str>,
    /// The route's static metadata.
    pub route_metadata: Option<&'a Metadata>,
    /// What else is known.
    pub stream: StreamFacts<'a>,
}

impl Facts for HeaderFacts<'_> {
    fn header(&self, head: Head, name: &str) -> Option<Cow<'_, [u8]>> {
        match head {
            Head::Request => self.request.get(name).map(Cow::Borrowed),
            Head::Response => self.response?.get(name),
            Head::Trailer => None,
        }
    }

    fn fact(&self, fact: Fact, out: &mut Vec<u8>) -> bool {
        use std::io::Write;

        let text = |value: Option<&str>, out: &mut Vec<u8>| {
            let value = value.filter(|value| !value.is_empty());
            value
                .inspect(|value| out.extend_from_slice(value.as_bytes()))
                .is_some()
        };

        if let Some(is_known) = connection_fact(self.conn, self.remote, fact, out) {
            return is_known;
        }

        match fact {
            Fact::Protocol => text(Some(self.request.version.as_str()), out),
            Fact::ResponseCode => self
                .response
                .map(|head| digits::integer(head.status, out))
                .is_some(),
            Fact::ResponseCodeDetails => text(Some(self.stream.details), out),
            // Writing to memory cannot fail.
            Fact::ResponseFlags => write!(out, "{}", self.state.flags).is_ok(),
            Fact::UpstreamHost | Fact::UpstreamRemoteAddress => self
                .stream
                .upstream
                .map(|address| digits::address(address, out))
                .is_some(),
            Fact::UpstreamRemoteAddressWithoutPort => self
                .stream
                .upstream
                .map(|address| digits::ip(address.ip(), out))
                .is_some(),
            Fact::UpstreamRemotePort => self
                .stream
                .upstream
                .map(|address| digits::integer(address.port(), out))
                .is_some(),
            Fact::UpstreamCluster | Fact::UpstreamClusterRaw => text(self.cluster, out),
            Fact::RouteName => text(self.stream.route, out),
            Fact::ConnectionId => {
                digits::integer(self.stream.connection, out);
                true
            }
            Fact::StreamId => text(self.request.get_str("x-request-id"), out),
            _ => false,
        }
    }

    fn time(&self, moment: Moment) -> Option<SystemTime> {
        (moment == Moment::Start).then_some(self.stream.start)
    }

    fn metadata(&self, of: MetadataOf, filter: &str, path: &[Box<str>]) -> Option<Cow<'_, Value>> {
        match of {
            MetadataOf::Dynamic => self.state.metadata.at(filter, path).map(Cow::Borrowed),
            MetadataOf::Route => self.route_metadata?.at(filter, path).map(Cow::Borrowed),
            _ => None,
        }
    }

    fn filter_state(&self, key: &str, field: Option<&str>) -> Option<Cow<'_, str>> {
        self.state.named(key, field).map(Cow::Borrowed)
    }
}

impl ResponseContext<'_> {
    /// Changes headers. Templates look at the head as it is before these changes.
    pub fn change(&mut self, ops: &HeaderOps) {
        if ops.is_empty() {
            return;
        }
        let before = self.head.clone();
        let facts = HeaderFacts {
            request: self.request,
            response: Some(&before),
            conn: self.conn,
            remote: self.remote,
            state: self.state,
            cluster: self.cluster,
            route_metadata: self.route_metadata,
            stream: self.stream,
        };

        ops.apply(self.head, &facts);
    }
}

impl RequestContext<'_> {
    /// What format strings can ask for in this phase.
    pub fn facts(&self) -> HeaderFacts<'_> {
        HeaderFacts {
            request: self.head,
            response: None,
            conn: self.conn,
            remote: self.remote,
            state: self.state,
            cluster: self.cluster,
            route_metadata: self.route_metadata,
            stream: self.stream,
        }
    }

    /// Changes headers. Templates look at the head as it is before these changes.
    pub fn change(&mut self, ops: &HeaderOps) {
        if ops.is_empty() {
            return;
        }
        let mut changed = self.head.clone();
        ops.apply(&mut changed, &self.facts());
        *self.head = changed;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conn::TlsPeer;
    use crate::format::Place;

    /// What a filter's template can know is what the compiler says it can: no operator is promised
    /// and left out, and none is warned of that works.
    #[test]
    fn compilers_know_what_filters_can_tell() {
        let tls = TlsPeer {
            uri_sans: vec!["spiffe://a/b".into()],
            dns_sans: vec!["a".into()],
            subject: "CN=a".into(),
            issuer: "CN=b".into(),
            fingerprint: "00".into(),
            local_uri_sans: vec!["spiffe://a/c".into()],
            version: "TLSv1.3",
            cipher: "x".into(),
            ..Default::default()
        };

        let address: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        let mut conn = ConnInfo::plain(address, address);
        conn.tls = Some(Arc::new(tls));
        conn.server_name = Some("a".into());
        let (mut request, response) = (RequestHead::of("GET", "a", "/"), ResponseHead::of(200));
        request.set("x-request-id", b"1");

        for (place, response) in [
            (Place::FilterRequest, None),
            (Place::FilterResponse, Some(&response)),
        ] {
            let upstream = response.map(|_| address);
            let facts = HeaderFacts {
                request: &request,
                response,
                conn: &conn,
                remote: address,
                state: &StreamState::default(),
                cluster: Some("a"),
                route_metadata: None,
                stream: StreamFacts {
                    start: SystemTime::UNIX_EPOCH,
                    connection: 7,
                    route: Some("a route"),
                    upstream,
                    details: if response.is_some() {
                        "via_upstream"
                    } else {
                        ""
                    },
                },
            };

            for fact in Fact::ALL {
                assert_eq!(
                    facts.fact(*fact, &mut Vec::new()),
                    fact.is_known(place),
                    "{fact:?} {place:?}"
                );
            }
        }
    }
}
