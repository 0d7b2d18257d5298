//! Which hosts a sidecar serves on which port.

use meltemi_proto::envoy::config::core::v3::address;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::{type_url, unpack};
use meltemi_translate::Proxy;

use super::{caller, destination_rule, host, table, translated};

/// `known` has port 80, `other` port 9000, `udpfirst` UDP and TCP on port 80.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: known, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: unknown, namespace: shop}
spec: {ports: [{name: http, port: 9001}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {ports: [{name: http, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: udpfirst, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: quic, port: 80, protocol: UDP, targetPort: 9}, {name: http, port: 80, targetPort: 8080}]
";

fn domains(objects: &str, port: &str) -> Vec<String> {
    let world = translated(&caller(), &format!("{SERVICES}---\n{objects}"));
    let mut all: Vec<String> = table(&world, port)
        .virtual_hosts
        .into_iter()
        .flat_map(|host| host.domains)
        .collect();
    all.sort();
    all
}

fn virtual_service(hosts: &str, to: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\nspec: {{hosts: [{hosts}], http: [{{directResponse: {{status: {to}}}}}]}}\n"
    )
}

#[test]
fn a_host_that_no_service_has_is_served_on_port_80_alone() {
    let outside = virtual_service("api.example.org", "201");
    let has = |objects: &str, port: &str, wanted: &str| {
        domains(objects, port).iter().any(|domain| domain == wanted)
    };

    assert!(has(&outside, "80", "api.example.org"));
    assert!(!has(&outside, "9000", "api.example.org"));

    // On the ports of a service that the same object names, it is served as well.
    let both = virtual_service("api.example.org, other", "201");
    assert!(has(&both, "9000", "api.example.org"));
    assert!(!has(&both, "9001", "api.example.org"));

    // A host whose service has other ports only is no service's on port 80.
    let elsewhere = virtual_service("other", "201");
    assert!(has(&elsewhere, "80", "other.shop.svc.cluster.local"));
}

#[test]
fn a_wildcard_that_matches_a_service_stands_for_services_alone() {
    let wild = virtual_service("'*.cluster.local'", "201");
    let on_80 = domains(&wild, "80");
    assert!(
        !on_80.iter().any(|domain| domain == "*.cluster.local"),
        "{on_80:?}"
    );

    let world = translated(&caller(), &format!("{SERVICES}---\n{wild}"));
    let known = host(&world, "80", "known.shop.svc.cluster.local");
    assert!(format!("{known:?}").contains("201"), "{known:?}");

    // One that matches none is served as it is written, on port 80.
    let outside = virtual_service("'*.example.org'", "201");
    assert!(
        domains(&outside, "80")
            .iter()
            .any(|one| one == "*.example.org")
    );
    assert!(
        !domains(&outside, "9000")
            .iter()
            .any(|one| one == "*.example.org")
    );
}

#[test]
fn a_udp_port_hides_no_tcp_port_of_the_same_number() {
    let routed = virtual_service("udpfirst", "201");
    let world = translated(&caller(), &format!("{SERVICES}---\n{routed}"));
    let found = host(&world, "80", "udpfirst.shop.svc.cluster.local");
    assert!(format!("{found:?}").contains("201"), "{found:?}");

    // The endpoints are those of the TCP port.
    let name = "outbound|80||udpfirst.shop.svc.cluster.local";
    let endpoints = world
        .of(type_url::ENDPOINT)
        .iter()
        .find(|one| one.name == name)
        .expect("endpoints");
    let text = format!(
        "{:?}",
        unpack::<meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment>(&endpoints.any)
            .expect("an assignment")
    );
    assert!(text.contains("PortValue(8080)"), "{text}");
}

#[test]
fn the_default_route_of_a_hashed_service_retries_at_another_endpoint() {
    let rule = destination_rule("{loadBalancer: {consistentHash: {useSourceIp: true}}}");
    let world = translated(&caller(), &rule);
    let found = host(&world, "80", "web.shop.svc.cluster.local");
    let text = format!("{:?}", found.routes);
    assert!(
        text.contains("hash_policy: [HashPolicy") && text.contains("previous_hosts"),
        "{text}"
    );
}

fn service_entry(name: &str, host: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: ['{host}'], ports: [{{number: 443, name: https, protocol: HTTPS}}], resolution: NONE}}\n"
    )
}

#[test]
fn a_partial_wildcard_costs_no_chain_but_its_own() {
    let entries = format!(
        "{}{}",
        service_entry("partial", "*shop.example"),
        service_entry("plain", "*.example.org")
    );
    let world = translated(&caller(), &format!("{SERVICES}{entries}"));
    let listener = world
        .of(type_url::LISTENER)
        .iter()
        .find(|one| one.name == "0.0.0.0_443")
        .expect("a listener");
    let listener: Listener = unpack(&listener.any).expect("a listener");

    let names: Vec<String> = listener
        .filter_chains
        .into_iter()
        .filter_map(|chain| chain.filter_chain_match)
        .flat_map(|matched| matched.server_names)
        .collect();
    assert_eq!(names, ["*.example.org"]);

    let told = world.diagnostics.iter().find(|one| one.code == "MEL0508");
    assert_eq!(told.expect("told").object.name, "partial");
}

#[test]
fn a_service_on_a_proxys_own_port_costs_no_listener() {
    let taken = "
apiVersion: v1
kind: Service
metadata: {name: taken, namespace: shop}
spec: {clusterIP: 10.45.9.9, ports: [{name: http, port: 15006}, {name: tcp, port: 15001}]}
";
    let world = translated(&caller(), taken);
    let names: Vec<&str> = world
        .of(type_url::LISTENER)
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    // The address of a service is its own; the wildcard address is the proxy's.
    assert!(!names.contains(&"0.0.0.0_15006"), "{names:?}");
    assert!(names.contains(&"10.45.9.9_15001"), "{names:?}");
    assert!(world.diagnostics.iter().any(|one| one.code == "MEL0507"));
}

#[test]
fn weights_that_sum_up_to_too_much_keep_their_ratio() {
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: heavy, namespace: shop}
spec:
  hosts: [heavy.example.org]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.1.1.1, weight: 4294967295}, {address: 10.1.1.2, weight: 4294967295}, {address: 10.1.1.3, weight: 1}]
";
    let world = translated(&caller(), entry);
    let endpoints = world
        .of(type_url::ENDPOINT)
        .iter()
        .find(|one| one.name == "outbound|80||heavy.example.org")
        .expect("endpoints");
    let endpoints: meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment =
        unpack(&endpoints.any).expect("an assignment");

    let weights: Vec<u64> = endpoints.endpoints[0]
        .lb_endpoints
        .iter()
        .map(|one| u64::from(one.load_balancing_weight.expect("a weight").value))
        .collect();
    assert!(
        weights.iter().sum::<u64>() <= u64::from(u32::MAX),
        "{weights:?}"
    );
    assert!(weights[0] == weights[1] && weights[0] > 1_000_000 && weights[2] == 1);
}

/// Addresses and ports of the listeners, `BIND_PORT` as their names.
fn binds(proxy: &Proxy, objects: &str) -> Vec<(String, String)> {
    let world = translated(proxy, &format!("{SERVICES}---\n{objects}"));
    let bind = |listener: Listener| {
        let Some(address::Address::SocketAddress(at)) = listener.address.and_then(|a| a.address)
        else {
            panic!("no socket address");
        };
        (listener.name, at.address)
    };

    let listeners = world.of(type_url::LISTENER).iter();
    listeners
        .map(|one| bind(unpack(&one.any).expect("a listener")))
        .collect()
}

/// Source: Istio `getWildcardsAndLocalHost`.
#[test]
fn a_workload_with_ipv6_alone_listens_on_its_wildcard() {
    const GATEWAY: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: edge}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 8000, name: http, protocol: HTTP}, hosts: ['*']}]}";
    let caller = |ips: &[&str]| Proxy {
        ips: ips
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect(),
        ..caller()
    };
    let gateway = |ips: &[&str]| Proxy {
        ips: ips
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect(),
        ..crate::entry()
    };

    for (ips, wildcard) in [
        (&["fd00::9"][..], "::"),
        (&["10.44.1.9"], "0.0.0.0"),
        (&["10.44.1.9", "fd00::9"], "0.0.0.0"),
    ] {
        let sidecar = binds(&caller(ips), "");
        for name in ["virtualOutbound".to_owned(), format!("{wildcard}_80")] {
            let bind = sidecar.iter().find(|(own, _)| *own == name);
            assert_eq!(bind.map(|(_, at)| &**at), Some(wildcard), "{sidecar:?}");
        }

        let gateway = gateway(ips);
        let name = format!("{wildcard}_8000");
        assert_eq!(binds(&gateway, GATEWAY), [(name, wildcard.to_owned())]);
        table(&translated(&gateway, GATEWAY), "http.8000");
    }
}

/// As with Istio, whose empty list of routes gives Envoy's 404 with `NR`.
#[test]
fn a_gateway_port_without_routes_has_none() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: edge}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 8000, name: http, protocol: HTTP}, hosts: ['*']}]}";
    let world = translated(&crate::entry(), gateway);
    let hosts = table(&world, "http.8000").virtual_hosts;
    let hosts: Vec<_> = hosts
        .iter()
        .map(|host| (&*host.name, &*host.domains, host.routes.len()))
        .collect();
    assert_eq!(hosts, [("blackhole:8000", &["*".to_owned()][..], 0)]);
}
