use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::google::protobuf::BoolValue;
use proptest::prelude::*;

use super::*;
use crate::compiler::Compiler;
use crate::tests::{simple, tcp_proxy};

fn listener(name: &str, address: SocketAddr) -> proto::Listener {
    let ip = address.ip().to_string();
    let port = u32::from(address.port());
    simple(name, &ip, port, vec![tcp_proxy("c")])
}

/// A listener that hands connections over, as sidecars have one for captured traffic.
fn capturing() -> proto::Listener {
    proto::Listener {
        use_original_dst: Some(BoolValue { value: true }),
        ..listener("virtualOutbound", at("0.0.0.0:15001"))
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn compiled(messages: &[proto::Listener]) -> Vec<Arc<Listener>> {
    let compiler = Compiler::default();
    let compile = |message| compiler.listener(message).expect("compiles").0;
    messages.iter().map(compile).collect()
}

fn snapshot(listeners: Vec<Arc<Listener>>) -> ProxySnapshot {
    ProxySnapshot::default().next(SnapshotParts {
        listeners,
        ..SnapshotParts::default()
    })
}

/// The name of the listener that serves a captured connection.
fn serving(snapshot: &ProxySnapshot, destination: SocketAddr) -> Arc<str> {
    let arrived = snapshot.listener("virtualOutbound").expect("is there");
    snapshot.find_listener(arrived, destination).name.clone()
}

#[test]
fn a_captured_connection_goes_to_the_listener_of_its_destination() {
    let snapshot = snapshot(compiled(&[
        capturing(),
        listener("0.0.0.0_9080", at("0.0.0.0:9080")),
        listener("10.45.0.1_3306", at("10.45.0.1:3306")),
        listener("[::]_9443", at("[::]:9443")),
    ]));

    for (destination, name) in [
        ("10.45.0.7:9080", "0.0.0.0_9080"),
        ("10.45.0.1:3306", "10.45.0.1_3306"),
        ("10.45.0.2:3306", "virtualOutbound"),
        ("[::ffff:10.45.0.1]:3306", "10.45.0.1_3306"),
        ("[fd00::1]:9443", "[::]_9443"),
        // The unspecified address of one family does not serve the other.
        ("10.45.0.1:9443", "virtualOutbound"),
        ("[fd00::1]:9080", "virtualOutbound"),
    ] {
        assert_eq!(&*serving(&snapshot, at(destination)), name, "{destination}");
    }

    // Without `use_original_dst` a listener serves what arrives at it.
    let own = snapshot.listener("0.0.0.0_9080").expect("is there");
    let found = snapshot.find_listener(own, at("10.45.0.1:3306"));
    assert!(Arc::ptr_eq(found, own));
}

#[test]
fn the_table_of_listeners_is_shared_while_none_changes() {
    let mut listeners = compiled(&[capturing(), listener("a", at("10.45.0.1:80"))]);
    let first = snapshot(listeners.clone());

    let parts = |listeners: &[Arc<Listener>]| SnapshotParts {
        listeners: listeners.to_vec(),
        ..SnapshotParts::default()
    };
    let second = first.next(parts(&listeners));
    assert!(second.has_listeners_of(&first));

    // A listener that is gone serves nothing more.
    listeners.truncate(1);
    let third = second.next(parts(&listeners));
    assert!(!third.has_listeners_of(&second));
    assert_eq!(&*serving(&third, at("10.45.0.1:80")), "virtualOutbound");
}

/// Envoy's rule, as `getBalancedHandlerByAddress` has it: a table of addresses as text; the
/// destination itself, then the unspecified address of its family with its port.
fn by_envoys_rule(listeners: &[(String, SocketAddr)], destination: SocketAddr) -> Option<&str> {
    let find = |text: String| {
        listeners
            .iter()
            .find(|(_, address)| address.to_string() == text)
            .map(|(name, _)| name.as_str())
    };
    let any = match destination {
        SocketAddr::V4(_) => format!("0.0.0.0:{}", destination.port()),
        SocketAddr::V6(_) => format!("[::]:{}", destination.port()),
    };

    find(destination.to_string()).or_else(|| find(any))
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop::sample::select(vec!["0.0.0.0", "10.0.0.1", "10.0.0.2", "[::]", "[fd00::1]"]);
    (ip, 1_u16..4).prop_map(|(ip, port)| at(&format!("{ip}:{port}")))
}

proptest! {
    #[test]
    fn the_index_finds_what_envoy_finds(
        addresses in prop::collection::vec(address(), 0..8),
        destination in address(),
    ) {
        let named: Vec<(String, SocketAddr)> = addresses
            .into_iter()
            .enumerate()
            .map(|(number, address)| (format!("l{number}"), address))
            .collect();
        let mut messages: Vec<proto::Listener> =
            named.iter().map(|(name, address)| listener(name, *address)).collect();
        messages.push(capturing());

        let found = serving(&snapshot(compiled(&messages)), destination);
        let wanted = by_envoys_rule(&named, destination).unwrap_or("virtualOutbound");
        prop_assert_eq!(&*found, wanted);
    }
}
