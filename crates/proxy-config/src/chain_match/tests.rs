use meltemi_proto::google::protobuf::UInt32Value;
use proptest::prelude::*;

use super::*;

fn tree(messages: &[FilterChainMatch]) -> ChainTree {
    let mut tree = ChainTree::default();
    for (number, message) in messages.iter().enumerate() {
        tree.insert(Some(message), number, &mut Scope::new())
            .expect("no conflict");
    }
    tree
}

fn port(port: u32) -> FilterChainMatch {
    FilterChainMatch {
        destination_port: Some(UInt32Value { value: port }),
        ..Default::default()
    }
}

fn conn(local: &str) -> ConnInfo {
    ConnInfo::plain(
        local.parse().expect("address"),
        "10.9.0.1:5000".parse().expect("address"),
    )
}

fn tls(local: &str, name: Option<&str>, alpn: &[&str]) -> ConnInfo {
    let mut conn = conn(local);
    conn.transport = TransportProtocol::Tls;
    conn.server_name = name.map(Into::into);
    conn.application_protocols = alpn.iter().map(|protocol| (*protocol).into()).collect();
    conn
}

fn with(message: FilterChainMatch, transport: &str, alpn: &[&str]) -> FilterChainMatch {
    FilterChainMatch {
        transport_protocol: transport.into(),
        application_protocols: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
        ..message
    }
}

fn range(address: &str, length: u32) -> CidrRange {
    CidrRange {
        address_prefix: address.into(),
        prefix_len: Some(UInt32Value { value: length }),
    }
}

#[test]
fn istios_permissive_inbound_chains() {
    // One sniffed port, as virtualInbound has it.
    let mtls_http = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
    let tree = tree(&[
        with(port(9080), "tls", &mtls_http),
        with(port(9080), "raw_buffer", &["http/1.1", "h2c"]),
        with(port(9080), "tls", &["istio-peer-exchange", "istio"]),
        with(port(9080), "raw_buffer", &[]),
        with(port(9080), "tls", &[]),
        port(15006),
        FilterChainMatch::default(),
    ]);

    assert_eq!(
        tree.find(&tls("10.0.0.1:9080", None, &["istio-h2", "istio", "h2"])),
        Some(0)
    );

    assert_eq!(
        tree.find(&tls(
            "10.0.0.1:9080",
            None,
            &["istio-peer-exchange", "istio"]
        )),
        Some(2)
    );

    assert_eq!(
        tree.find(&tls("10.0.0.1:9080", None, &["h2"])),
        Some(4),
        "TLS of the application passes through"
    );

    let mut http = conn("10.0.0.1:9080");
    http.application_protocols = std::iter::once("http/1.1".into()).collect();
    assert_eq!(tree.find(&http), Some(1));
    assert_eq!(tree.find(&conn("10.0.0.1:9080")), Some(3));
    assert_eq!(tree.find(&conn("10.0.0.1:15006")), Some(5));
    assert_eq!(tree.find(&conn("10.0.0.1:4444")), Some(6));
}

#[test]
fn the_clients_order_of_alpn_decides() {
    let tree = tree(&[with(port(1), "", &["a"]), with(port(1), "", &["b"])]);
    assert_eq!(tree.find(&tls("10.0.0.1:1", None, &["b", "a"])), Some(1));
    assert_eq!(tree.find(&tls("10.0.0.1:1", None, &["c"])), None);
}

#[test]
fn server_names_go_from_exact_to_short_wildcards() {
    let names = |names: &[&str]| FilterChainMatch {
        server_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };

    let tree = tree(&[
        names(&["a.b.com"]),
        names(&["*.b.com"]),
        names(&["*.com", "X.org"]),
        names(&[]),
    ]);

    for (name, chain) in [
        (Some("a.b.com"), 0),
        (Some("x.b.com"), 1),
        (Some("x.y.b.com"), 1),
        (Some("b.com"), 2),
        (Some("x.org"), 2),
        (Some("other.net"), 3),
        (None, 3),
    ] {
        assert_eq!(
            tree.find(&tls("10.0.0.1:443", name, &[])),
            Some(chain),
            "{name:?}"
        );
    }
}

#[test]
fn there_is_no_way_back_from_a_branch() {
    // Envoy's documentation: the port is taken, and what does not match below it is lost.
    let chain = tree(&[with(port(443), "tls", &[]), FilterChainMatch::default()]);
    assert_eq!(chain.find(&conn("10.0.0.1:443")), None);
    let longest = FilterChainMatch {
        prefix_ranges: vec![range("10.0.0.0", 8)],
        ..Default::default()
    };

    let exact = FilterChainMatch {
        prefix_ranges: vec![range("10.0.0.1", 32)],
        transport_protocol: "tls".into(),
        ..Default::default()
    };

    let chain = tree(&[longest, exact]);
    assert_eq!(chain.find(&conn("10.0.0.2:1")), Some(0));
    assert_eq!(chain.find(&conn("10.0.0.1:1")), None);
    assert_eq!(chain.find(&conn("11.0.0.1:1")), None);
}

#[test]
fn sources_by_kind_range_and_port() {
    let source =
        |kind: ConnectionSourceType, ranges: Vec<CidrRange>, ports: Vec<u32>| FilterChainMatch {
            source_type: kind as i32,
            source_prefix_ranges: ranges,
            source_ports: ports,
            ..Default::default()
        };

    let tree = tree(&[
        source(ConnectionSourceType::SameIpOrLoopback, vec![], vec![]),
        source(
            ConnectionSourceType::Any,
            vec![range("10.9.0.0", 16)],
            vec![5000],
        ),
        source(
            ConnectionSourceType::Any,
            vec![range("10.9.0.0", 16)],
            vec![],
        ),
        source(ConnectionSourceType::Any, vec![], vec![]),
    ]);

    let from = |remote: &str| {
        ConnInfo::plain(
            "10.0.0.1:80".parse().expect("address"),
            remote.parse().expect("address"),
        )
    };

    assert_eq!(tree.find(&from("127.0.0.1:1")), Some(0));
    assert_eq!(tree.find(&from("10.0.0.1:1")), Some(0));
    assert_eq!(tree.find(&from("10.9.1.1:5000")), Some(1));
    assert_eq!(tree.find(&from("10.9.1.1:5001")), Some(2));
    assert_eq!(tree.find(&from("8.8.8.8:5001")), Some(3));
}

#[test]
fn equal_matches_are_refused() {
    let mut tree = tree(&[with(port(1), "tls", &["a", "b"])]);
    assert!(
        tree.insert(Some(&with(port(1), "tls", &["b"])), 1, &mut Scope::new())
            .is_err()
    );

    assert!(
        tree.insert(
            Some(&with(port(1), "raw_buffer", &["b"])),
            1,
            &mut Scope::new()
        )
        .is_ok()
    );

    assert!(
        tree.insert(Some(&port(70_000)), 2, &mut Scope::new())
            .is_err()
    );

    let partial = FilterChainMatch {
        server_names: vec!["a*.com".into()],
        ..Default::default()
    };

    assert!(tree.insert(Some(&partial), 2, &mut Scope::new()).is_err());
}

proptest! {
    /// The tree on ports and ranges is the same as looking at every chain for the most specific
    /// one.
    #[test]
    fn the_tree_equals_a_search(
        chains in prop::collection::vec((prop::option::of(1u32..4), prop::option::of((0u8..4, 8u32..33))), 1..8),
        wanted in (1u16..4, 0u8..4),
    ) {
        let messages: Vec<FilterChainMatch> = chains.iter().map(|(port, prefix)| FilterChainMatch {
            destination_port: port.map(|value| UInt32Value { value }),
            prefix_ranges: prefix.iter().map(|(last, length)| range(&format!("10.0.0.{last}"), *length)).collect(),
            ..Default::default()
        }).collect();
        let mut built = ChainTree::default();
        let mut kept = Vec::new();
        for message in &messages {
            if built.insert(Some(message), kept.len(), &mut Scope::new()).is_ok() {
                kept.push(message.clone());
            }
        }
        let local = format!("10.0.0.{}:{}", wanted.1, wanted.0);
        let found = built.find(&conn(&local));
        let address: IpAddr = format!("10.0.0.{}", wanted.1).parse().expect("address");
        let by_port = |port: Option<u32>| kept.iter().enumerate()
            .filter(move |(_, message)| message.destination_port.as_ref().map(|port| port.value) == port);
        let port = if by_port(Some(u32::from(wanted.0))).next().is_some() { Some(u32::from(wanted.0)) } else { None };
        let naive = by_port(port)
            .filter_map(|(number, message)| match message.prefix_ranges.first() {
                None => Some((-1i32, number)),
                Some(prefix) => {
                    let cidr = Cidr::compile(prefix, &mut Scope::new()).expect("range");
                    cidr.contains(address).then_some((i32::from(cidr.length()), number))
                }
            })
            .max()
            .map(|(_, number)| number);
        prop_assert_eq!(found, naive);
    }
}
