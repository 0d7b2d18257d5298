use meltemi_filters::http::Override;
use meltemi_filters::metadata::Metadata;
use meltemi_filters::{RequestHead, Scope};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::route::v3 as proto;
use meltemi_proto::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use meltemi_proto::google::protobuf::{BoolValue, UInt32Value};
use proptest::prelude::*;
use prost::Message;
use proto::route_match::PathSpecifier;

use super::*;
use crate::compiler::compile_route;

fn host(name: &str, domains: &[&str], routes: Vec<proto::Route>) -> proto::VirtualHost {
    proto::VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes,
        ..Default::default()
    }
}

fn action(cluster: &str) -> proto::RouteAction {
    proto::RouteAction {
        cluster_specifier: Some(proto::route_action::ClusterSpecifier::Cluster(
            cluster.into(),
        )),
        ..Default::default()
    }
}

fn route(path: PathSpecifier, action: proto::RouteAction) -> proto::Route {
    proto::Route {
        r#match: Some(proto::RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(proto::route::Action::Route(action)),
        ..Default::default()
    }
}

fn prefix(path: &str, cluster: &str) -> proto::Route {
    route(PathSpecifier::Prefix(path.into()), action(cluster))
}

fn table(hosts: Vec<proto::VirtualHost>) -> std::sync::Arc<RouteTable> {
    let message = proto::RouteConfiguration {
        name: "80".into(),
        virtual_hosts: hosts,
        ..Default::default()
    };
    let (table, warnings) = compile_route(&message).expect("compiles");
    assert_eq!(warnings, []);
    table
}

fn cluster_of(table: &RouteTable, head: &RequestHead, random: u64) -> Option<String> {
    let metadata = Metadata::default();
    let decision = table.select(
        head,
        &RouteContext {
            random,
            metadata: &metadata,
            conn: None,
        },
    )?;

    assert!(table.at(decision.position).is_some());

    match decision.chosen {
        Chosen::Forward(forward) => forward.cluster(head).map(str::to_owned),
        _ => None,
    }
}

/// The action of the first route.
fn action_of(table: &RouteTable) -> &RouteAction {
    match &table.hosts[0].routes[0].target {
        Target::Forward(action) => action,
        other => panic!("{other:?} does not forward"),
    }
}

fn get(table: &RouteTable, authority: &str, path: &str) -> Option<String> {
    cluster_of(table, &RequestHead::of("GET", authority, path), 0)
}

fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.into(),
        ..Default::default()
    }
}

#[test]
fn hosts_are_found_in_envoys_order() {
    let host_of = |name: &str, domain: &str| host(name, &[domain], vec![prefix("/", name)]);
    let table = table(vec![
        host_of("any", "*"),
        host_of("prefix", "www.example.*"),
        host_of("suffix", "*.example.com"),
        host_of("longer", "*.b.example.com"),
        host_of("dash", "*-x.example.com"),
        host_of("exact", "Www.Example.com"),
        host_of("port", "www.example.com:8080"),
    ]);

    for (authority, wanted) in [
        ("www.example.com", "exact"),
        ("WWW.EXAMPLE.COM", "exact"),
        ("www.example.com:8080", "port"),
        // Another name, whatever DNS makes of it: what policies are told is the name as it came.
        ("www.example.com.", "prefix"),
        ("www.example.com.:8080", "prefix"),
        ("a.example.com", "suffix"),
        ("a.b.example.com", "longer"),
        ("a-x.example.com", "dash"),
        (".example.com", "any"),
        ("www.example.org", "prefix"),
        ("www.example.com:80", "prefix"),
        ("other", "any"),
    ] {
        assert_eq!(
            get(&table, authority, "/").as_deref(),
            Some(wanted),
            "{authority}"
        );
    }
}

#[test]
fn ports_are_stripped_where_the_table_says_so() {
    let message = proto::RouteConfiguration {
        virtual_hosts: vec![host("a", &["a.com", "[::1]"], vec![prefix("/", "a")])],
        ignore_port_in_host_matching: true,
        ..Default::default()
    };

    let (table, _) = compile_route(&message).expect("compiles");
    for authority in ["a.com", "a.com:80", "A.com:9", "[::1]:80", "[::1]"] {
        assert_eq!(
            get(&table, authority, "/").as_deref(),
            Some("a"),
            "{authority}"
        );
    }

    assert_eq!(get(&table, "b.com:80", "/"), None);
    assert_eq!(get(&table, "a.com.:80", "/"), None);
}

#[test]
fn two_hosts_cannot_have_one_domain() {
    let message = proto::RouteConfiguration {
        virtual_hosts: vec![host("a", &["x"], vec![]), host("b", &["X"], vec![])],
        ..Default::default()
    };

    assert!(
        compile_route(&message)
            .expect_err("refused")
            .reason
            .contains("\"x\"")
    );
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let ignore_case = |mut route: proto::Route| {
        if let Some(matcher) = &mut route.r#match {
            matcher.case_sensitive = Some(BoolValue { value: false });
        }
        route
    };

    let table = table(vec![host(
        "h",
        &["*"],
        vec![
            route(PathSpecifier::Path("/exact".into()), action("exact")),
            ignore_case(route(PathSpecifier::Prefix("/Case".into()), action("case"))),
            route(
                PathSpecifier::PathSeparatedPrefix("/sep".into()),
                action("separated"),
            ),
            route(
                PathSpecifier::SafeRegex(regex("/v[0-9]+/.*")),
                action("regex"),
            ),
            route(
                PathSpecifier::ConnectMatcher(Default::default()),
                action("connect"),
            ),
            prefix("/se", "rest"),
        ],
    )]);

    for (path, wanted) in [
        ("/exact", Some("exact")),
        ("/exact?q=1", Some("exact")),
        ("/exactly", None),
        ("/cAsE/x", Some("case")),
        ("/sep", Some("separated")),
        ("/sep/x", Some("separated")),
        ("/sepx", Some("rest")),
        ("/v12/x?y", Some("regex")),
        ("/x/v12/x", None),
    ] {
        assert_eq!(get(&table, "h", path).as_deref(), wanted, "{path}");
    }

    assert_eq!(
        cluster_of(&table, &RequestHead::of("CONNECT", "h:443", ""), 0).as_deref(),
        Some("connect")
    );
}

#[test]
fn conditions_beyond_the_path() {
    use proto::header_matcher::HeaderMatchSpecifier;

    let mut by_header = prefix("/", "jason");
    let mut by_share = prefix("/", "share");
    if let (Some(header), Some(share)) = (&mut by_header.r#match, &mut by_share.r#match) {
        #[expect(deprecated, reason = "Istio sends the older field")]
        header.headers.push(proto::HeaderMatcher {
            name: "end-user".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::ExactMatch("jason".into())),
            ..Default::default()
        });

        share.runtime_fraction = Some(core::RuntimeFractionalPercent {
            default_value: Some(meltemi_proto::envoy::r#type::v3::FractionalPercent {
                numerator: 30,
                denominator: 0,
            }),
            runtime_key: String::new(),
        });
    }

    let table = table(vec![host(
        "h",
        &["*"],
        vec![by_header, by_share, prefix("/", "rest")],
    )]);

    let mut head = RequestHead::of("GET", "h", "/");
    let shares = (0..100)
        .filter(|random| cluster_of(&table, &head, *random).as_deref() == Some("share"))
        .count();
    assert_eq!(shares, 30);
    head.append("end-user", b"jason");
    assert_eq!(cluster_of(&table, &head, 99).as_deref(), Some("jason"));
}

fn weighted(clusters: &[(&str, u32)]) -> proto::RouteAction {
    let clusters = clusters
        .iter()
        .map(|(name, weight)| proto::weighted_cluster::ClusterWeight {
            name: (*name).to_owned(),
            weight: Some(UInt32Value { value: *weight }),
            request_headers_to_add: vec![core::HeaderValueOption {
                header: Some(core::HeaderValue {
                    key: "x-cluster".into(),
                    value: (*name).to_owned(),
                    raw_value: vec![],
                }),
                ..Default::default()
            }],
            ..Default::default()
        });

    let weighted = proto::WeightedCluster {
        clusters: clusters.collect(),
        ..Default::default()
    };

    proto::RouteAction {
        cluster_specifier: Some(proto::route_action::ClusterSpecifier::WeightedClusters(
            weighted,
        )),
        ..Default::default()
    }
}

#[test]
fn weights_are_exact_over_a_cycle() {
    let split = weighted(&[("v1", 80), ("v2", 20), ("v3", 0)]);
    let table = table(vec![host(
        "h",
        &["*"],
        vec![route(PathSpecifier::Prefix("/".into()), split)],
    )]);

    let head = RequestHead::of("GET", "h", "/");
    let v2 = (0..1000)
        .filter(|random| cluster_of(&table, &head, *random).as_deref() == Some("v2"))
        .count();
    assert_eq!(v2, 200);
    let metadata = Metadata::default();
    let decision = table
        .select(
            &head,
            &RouteContext {
                random: 85,
                metadata: &metadata,
                conn: None,
            },
        )
        .expect("route");

    let mut changed = head.clone();
    decision
        .request_headers()
        .for_each(|ops| ops.apply(&mut changed, &meltemi_filters::format::NoFacts));
    assert_eq!(changed.get("x-cluster"), Some(b"v2".as_slice()));
    let broken = proto::RouteConfiguration {
        virtual_hosts: vec![host(
            "h",
            &["*"],
            vec![route(
                PathSpecifier::Prefix("/".into()),
                weighted(&[("a", 0)]),
            )],
        )],
        ..Default::default()
    };

    assert!(compile_route(&broken).is_err());
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let mut with_prefix = action("a");
    with_prefix.prefix_rewrite = "/new".into();
    with_prefix.host_rewrite_specifier =
        Some(proto::route_action::HostRewriteSpecifier::HostRewriteLiteral("other".into()));
    let mut with_regex = action("b");
    with_regex.regex_rewrite = Some(RegexMatchAndSubstitute {
        pattern: Some(regex("^/service/([^/]+)(/.*)$")),
        substitution: r"\2/instance/\1".into(),
    });

    let table = table(vec![host(
        "h",
        &["*"],
        vec![
            route(PathSpecifier::Prefix("/old".into()), with_prefix),
            route(PathSpecifier::Prefix("/service".into()), with_regex),
            prefix("/", "c"),
        ],
    )]);

    let rewrite = |path: &str| {
        let head = RequestHead::of("GET", "h", path);
        let metadata = Metadata::default();
        let decision = table
            .select(
                &head,
                &RouteContext {
                    random: 0,
                    metadata: &metadata,
                    conn: None,
                },
            )
            .expect("route");

        let mut out = Vec::new();
        let changed = decision.route.rewrite_path(&head, &mut out);
        (changed, String::from_utf8(out).expect("text"))
    };

    assert_eq!(rewrite("/old/x?q=/old"), (true, "/new/x?q=/old".to_owned()));
    assert_eq!(
        rewrite("/service/foo/v1/api"),
        (true, "/v1/api/instance/foo".to_owned())
    );

    assert!(!rewrite("/z").0);
    let mut host = Vec::new();
    let action = action_of(&table);
    assert!(action.rewrite_host(None, &RequestHead::of("GET", "h", "/"), None, &mut host));
    assert_eq!(host, b"other");
}

#[test]
fn timeouts_and_retries_have_envoys_defaults() {
    use std::time::Duration;

    let seconds = |seconds| Some(meltemi_proto::google::protobuf::Duration { seconds, nanos: 0 });
    let compile = |action: proto::RouteAction| {
        let table = table(vec![host(
            "h",
            &["*"],
            vec![route(PathSpecifier::Prefix("/".into()), action)],
        )]);

        let action = action_of(&table);
        (
            action.timeouts.request,
            action.retry.as_ref().map(|retry| retry.num_retries),
        )
    };

    assert_eq!(compile(action("a")), (Some(Duration::from_secs(15)), None));
    assert_eq!(
        compile(proto::RouteAction {
            timeout: seconds(0),
            ..action("a")
        }),
        (None, None)
    );

    let retry = proto::RetryPolicy {
        retry_on: "connect-failure".into(),
        num_retries: Some(UInt32Value { value: 2 }),
        ..Default::default()
    };

    let with_retry = proto::RouteAction {
        timeout: seconds(3),
        retry_policy: Some(retry),
        ..action("a")
    };

    assert_eq!(compile(with_retry), (Some(Duration::from_secs(3)), Some(2)));
}

#[test]
fn the_most_specific_setting_wins() {
    use meltemi_proto::pack;

    let disabled = |disabled| {
        pack(&proto::FilterConfig {
            disabled,
            ..Default::default()
        })
    };

    let name = "envoy.filters.http.fault".to_owned();
    let mut off = prefix("/off", "a");
    off.typed_per_filter_config
        .insert(name.clone(), disabled(true));
    let mut general = host("h", &["*"], vec![off, prefix("/", "b")]);
    general
        .typed_per_filter_config
        .insert(name.clone(), disabled(false));
    let table = table(vec![general]);
    let setting = |path: &str| {
        let head = RequestHead::of("GET", "h", path);
        let metadata = Metadata::default();
        let decision = table
            .select(
                &head,
                &RouteContext {
                    random: 0,
                    metadata: &metadata,
                    conn: None,
                },
            )
            .expect("route");

        decision
            .settings(&name)
            .most_specific()
            .map(|setting| matches!(setting, Override::Disabled))
    };

    assert_eq!(setting("/off"), Some(true));
    assert_eq!(setting("/"), Some(false));
}

#[test]
fn unknown_conditions_and_settings_are_refused() {
    let mut with_state = prefix("/", "a");
    if let Some(matcher) = &mut with_state.r#match {
        matcher.filter_state.push(Default::default());
    }
    let mut with_setting = prefix("/", "a");
    with_setting.typed_per_filter_config.insert(
        "x".into(),
        meltemi_proto::Any {
            type_url: "type.googleapis.com/unknown.Filter".into(),
            value: vec![],
        },
    );

    for route in [with_state, with_setting, proto::Route::default()] {
        let message = proto::RouteConfiguration {
            virtual_hosts: vec![host("h", &["*"], vec![route])],
            ..Default::default()
        };
        let error = compile_route(&message).expect_err("refused");
        assert!(
            error.path.starts_with("virtual_hosts[0].routes[0]"),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn no_message_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), authority in "[a-zA-Z.:\\[\\]0-9]{0,20}", path in "/[a-z?#%.]{0,10}") {
        if let Ok(message) = proto::RouteConfiguration::decode(bytes.as_slice()) {
            let _ = compile_route(&message);
        }
        if let Ok(message) = proto::RouteMatch::decode(bytes.as_slice())
            && let Ok(matcher) = RouteMatch::compile(&message, &mut Scope::new())
        {
            let metadata = Metadata::default();
            let head = RequestHead::of("GET", &authority, &path);
            matcher.is_match(&head, &RouteContext { random: 0, metadata: &metadata, conn: None });
        }
        let message = proto::RouteConfiguration {
            virtual_hosts: vec![host("h", &["a.b", "*.b", "a.*", "*"], vec![prefix("/", "c")])],
            ..Default::default()
        };
        let (table, _) = compile_route(&message).expect("compiles");
        get(&table, &authority, &path);
    }

    /// The index finds the same host as Envoy's rule applied to every domain.
    #[test]
    fn the_index_equals_a_search(domains in prop::collection::btree_set("(\\*|\\*[.-])?[ab]{1,2}(\\.[ab])?(\\.\\*)?", 0..8), host_name in "[ab]{1,2}(\\.[ab]){0,2}") {
        let domains: Vec<String> = domains.into_iter().filter(|domain| domain.matches('*').count() < 2).collect();
        let hosts = domains.iter().map(|domain| host(domain, &[domain], vec![prefix("/", domain)])).collect();
        let table = table(hosts);
        let found = get(&table, &host_name, "/");
        let exact = domains.iter().find(|domain| **domain == host_name);
        let wild = |strip: fn(&str) -> Option<&str>, fits: fn(&str, &str) -> bool| domains.iter()
            .filter(|domain| strip(domain).is_some_and(|rest| rest.len() < host_name.len() && fits(&host_name, rest)))
            .max_by_key(|domain| domain.len());
        let naive = exact
            .or_else(|| wild(|domain| domain.strip_prefix('*'), |host, rest| host.ends_with(rest)))
            .or_else(|| wild(|domain| domain.strip_suffix('*'), |host, rest| host.starts_with(rest)));
        prop_assert_eq!(found.as_ref(), naive);
    }
}

#[test]
fn a_text_that_would_end_a_head_is_refused() {
    use proto::redirect_action::PathRewriteSpecifier;
    use proto::route_action::HostRewriteSpecifier;
    use proto::weighted_cluster::cluster_weight;

    const BAD: &str = "a\r\nx-injected: 1";
    let refused = |change: &dyn Fn(&mut proto::Route)| {
        let mut one = prefix("/", "c");
        change(&mut one);
        let message = proto::RouteConfiguration {
            name: "r".into(),
            virtual_hosts: vec![host("h", &["*"], vec![one])],
            ..Default::default()
        };
        let error = compile_route(&message).expect_err("refused");
        assert!(error.to_string().contains("line break"), "{error}");
    };
    let of_action = |change: &dyn Fn(&mut proto::RouteAction)| {
        refused(&|one| {
            let mut forward = action("c");
            change(&mut forward);
            one.action = Some(proto::route::Action::Route(forward));
        });
    };
    let of_redirect = |redirect: proto::RedirectAction| {
        refused(&|one| one.action = Some(proto::route::Action::Redirect(redirect.clone())));
    };

    of_action(&|one| one.prefix_rewrite = BAD.into());
    of_action(&|one| one.path_rewrite = BAD.into());
    of_action(&|one| {
        one.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(regex("a")),
            substitution: BAD.into(),
        });
    });
    of_action(&|one| {
        one.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(BAD.into()));
    });
    of_action(&|one| {
        let mut list = weighted(&[("a", 1)]);
        if let Some(proto::route_action::ClusterSpecifier::WeightedClusters(list)) =
            &mut list.cluster_specifier
        {
            list.clusters[0].host_rewrite_specifier = Some(
                cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(BAD.into()),
            );
        }
        *one = list;
    });
    of_action(&|one| {
        one.request_mirror_policies = vec![proto::route_action::RequestMirrorPolicy {
            cluster: "m".into(),
            host_rewrite_literal: BAD.into(),
            ..Default::default()
        }];
    });
    of_action(&|one| {
        one.hash_policy = vec![proto::route_action::HashPolicy {
            terminal: false,
            policy_specifier: Some(proto::route_action::hash_policy::PolicySpecifier::Cookie(
                proto::route_action::hash_policy::Cookie {
                    name: "s".into(),
                    path: BAD.into(),
                    ..Default::default()
                },
            )),
        }];
    });

    of_redirect(proto::RedirectAction {
        host_redirect: BAD.into(),
        ..Default::default()
    });
    of_redirect(proto::RedirectAction {
        path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect(BAD.into())),
        ..Default::default()
    });
    of_redirect(proto::RedirectAction {
        path_rewrite_specifier: Some(PathRewriteSpecifier::PrefixRewrite(BAD.into())),
        ..Default::default()
    });
}

#[test]
fn the_routes_host_wins_over_the_weighted_clusters() {
    use proto::route_action::HostRewriteSpecifier;
    use proto::weighted_cluster::cluster_weight;

    let host_of = |of_route: Option<&str>| {
        let mut forward = weighted(&[("a", 1)]);
        if let Some(proto::route_action::ClusterSpecifier::WeightedClusters(list)) =
            &mut forward.cluster_specifier
        {
            list.clusters[0].host_rewrite_specifier = Some(
                cluster_weight::HostRewriteSpecifier::HostRewriteLiteral("dest.test".into()),
            );
        }
        forward.host_rewrite_specifier =
            of_route.map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.into()));

        let table = table(vec![host(
            "h",
            &["*"],
            vec![route(PathSpecifier::Prefix("/".into()), forward)],
        )]);
        let action = action_of(&table);
        let ClusterChoice::Weighted(clusters) = &action.cluster else {
            panic!("weighted")
        };
        let (_, cluster) = clusters.pick(0).expect("a cluster");

        let mut host = Vec::new();
        let head = RequestHead::of("GET", "h", "/");
        assert!(action.rewrite_host(Some(cluster), &head, None, &mut host));
        String::from_utf8(host).expect("text")
    };

    assert_eq!(host_of(None), "dest.test");
    assert_eq!(host_of(Some("route.test")), "route.test");
}
