//! What a newcomer meets first: the access log, what is in force from before, ways in, events.

use crate::mesh::Plan;
use crate::objects::both;
use crate::peers::{App, Peers, curl, yaml};

const LOG_OFF: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                       data:\n  mesh: |\n    accessLogFile: ''\n";

#[test]
fn requests_are_logged_and_where_they_are_not_the_log_says_so() {
    let Some(peers) = Peers::of("requests_are_logged_and_where_they_are_not_the_log_says_so")
    else {
        return;
    };
    let apps = [peers.recorder("ledger"), App::idle("inside")];
    let mesh = Plan::new().file("apps.yaml", &yaml(&apps)).start();

    let call = || curl(&mesh, "inside", &["http://ledger:9080/asked"]).status == 200;
    let proxy_log = |workload: &str| both(&mesh.cli(&["logs", workload, "-c", "proxy"]));
    mesh.wait("the service answers", call);
    mesh.wait("the request is logged on both sides", || {
        ["inside", "ledger"]
            .iter()
            .all(|workload| proxy_log(workload).contains("GET /asked"))
    });
    assert!(!proxy_log("inside").contains("note:"));
    let gateway = ["logs", "istio-ingressgateway", "-n", "istio-system"];
    assert!(!both(&mesh.cli(&gateway)).contains("note:"));

    // Somewhere to begin: the settings are an object.
    let settings = mesh.cli_ok(&["get", "cm", "istio", "-n", "istio-system", "-o", "yaml"]);
    assert!(
        settings.contains("accessLogFile: /dev/stdout"),
        "{settings}"
    );

    mesh.write("settings.yaml", LOG_OFF);
    let remedy = "accessLogFile: /dev/stdout";
    mesh.wait("a log that is off is said to be", || {
        proxy_log("inside").contains(remedy) && both(&mesh.cli(&gateway)).contains(remedy)
    });
    assert!(
        !both(&mesh.cli(&["logs", "inside"])).contains(remedy),
        "the program's log has nothing to do with it"
    );

    // Settings that say nothing about it leave it on.
    mesh.write(
        "settings.yaml",
        &LOG_OFF.replace("accessLogFile: ''", "enableAutoMtls: true"),
    );
    mesh.wait("it is on again", || !proxy_log("inside").contains("note:"));
}
