//! Every plan in the two text forms.

use meltemi_redirect::render::iptables::{Entry, iptables, iptables_remove};
use meltemi_redirect::render::nft::nft;
use meltemi_redirect::rules::Transport;
use meltemi_redirect::{Exempt, RouterPlan, RuleSet, ServicePlan, ServiceRule, SidecarPlan};
use meltemi_types::Cidr;

fn check(name: &str, rules: &RuleSet) {
    let mut text = format!("# nft -f\n{}", nft(rules));
    text += &format!(
        "\n# iptables-restore --noflush\n{}",
        iptables(rules, false, Entry::Absent)
    );

    if rules.ipv6 {
        text += &format!(
            "\n# ip6tables-restore --noflush\n{}",
            iptables(rules, true, Entry::Absent)
        );
    }

    insta::with_settings!({ prepend_module_to_snapshot => false, snapshot_path => "../golden", omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn sidecar_by_mark() {
    let mut plan = SidecarPlan::new(Exempt::Mark(1337));
    plan.direct_dns = Some("10.44.255.253".parse().unwrap());
    check("sidecar_by_mark", &plan.rules());
}

#[test]
fn sidecar_by_owner_dual_stack() {
    let mut plan = SidecarPlan::new(Exempt::Owner {
        uids: vec![1337],
        gids: vec![1337],
    });
    plan.ipv6 = true;
    check("sidecar_by_owner_dual_stack", &plan.rules());
}

#[test]
fn sidecar_with_exceptions() {
    let mut plan = SidecarPlan::new(Exempt::Owner {
        uids: vec![1337],
        gids: vec![],
    });

    plan.dns_port = None;
    plan.include_inbound_ports = Some(vec![9080, 9443]);
    plan.include_outbound_ports = vec![5432];
    plan.exclude_outbound_ports = vec![25];
    plan.include_outbound = Some(vec![Cidr::v4(10, 0, 0, 0, 8), "fd00::/8".parse().unwrap()]);
    plan.exclude_outbound = vec![Cidr::v4(10, 9, 8, 7, 32)];
    check("sidecar_with_exceptions", &plan.rules());
}

#[test]
fn a_port_of_dns_that_is_left_alone_is_not_redirected() {
    let mut plan = SidecarPlan::new(Exempt::Mark(1337));
    plan.exclude_outbound = vec![Cidr::v4(10, 0, 0, 0, 8)];
    assert!(
        nft(&plan.rules()).contains("redirect to :15053"),
        "a block around the resolver changes nothing for names"
    );

    plan.exclude_outbound_ports = vec![53];
    let text = nft(&plan.rules());
    assert!(!text.contains("15053") && !text.contains("zone"), "{text}");
    assert!(
        text.contains("meta l4proto tcp th dport 53 return"),
        "{text}"
    );
}

#[test]
fn router() {
    let plan = RouterPlan {
        bridge: "mesh",
        pods: Cidr::v4(10, 44, 0, 0, 16),
        relay_port: 15001,
        dns_port: 53,
    };
    check("router", &plan.rules());
}

#[test]
fn services() {
    let rule = |transport, endpoints: &[&str]| ServiceRule {
        address: "10.45.0.7".parse().unwrap(),
        port: 80,
        transport,
        endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
    };

    let three = rule(
        Transport::Tcp,
        &["10.44.0.2:8080", "10.44.0.3:8080", "10.44.0.4:8080"],
    );

    let services = vec![
        three,
        rule(Transport::Udp, &["10.44.0.2:53"]),
        rule(Transport::Tcp, &[]),
    ];

    check("services", &ServicePlan { services }.rules());
}

#[test]
fn removal_undoes_what_was_added() {
    let rules = SidecarPlan::new(Exempt::Mark(1)).rules();
    let added = iptables(&rules, false, Entry::Absent);
    let removed = iptables_remove(&rules);

    for line in added.lines().filter_map(|l| l.strip_prefix("-I ")) {
        assert!(removed.contains(&format!("-D {line}")), "{line}");
    }
    for chain in added
        .lines()
        .filter_map(|l| l.strip_prefix(':')?.split(' ').next())
    {
        assert!(removed.contains(&format!("-X {chain}\n")), "{chain}");
    }

    assert!(!iptables(&rules, false, Entry::Present).contains("-I "));
}
