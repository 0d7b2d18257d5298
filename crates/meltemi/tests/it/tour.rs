//! The Bookinfo tour with Istio's own files, unchanged: each file in, its effect in real requests,
//! the file out, the effect gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::http::Client;
use crate::mesh::{Mesh, Plan};
use crate::peers::has_namespaces;

/// Istio's file of this name.
fn networking(samples: &Path, name: &str) -> PathBuf {
    samples.join("bookinfo/networking").join(name)
}

/// Who answered for reviews, by what the page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    /// reviews v1: no stars.
    None,
    /// reviews v2.
    Black,
    /// reviews v3.
    Red,
    /// The stars could not be had.
    NoRatings,
    /// The reviews could not be had.
    NoReviews,
}

fn page(mesh: &Mesh, user: Option<&str>) -> (Shown, String) {
    let cookie = user.map(|user| format!("session={user}"));
    let headers: Vec<(&str, &str)> = cookie
        .iter()
        .map(|cookie| ("cookie", cookie.as_str()))
        .collect();

    let answer = mesh.get("/productpage", &headers);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let has = |text: &str| answer.body.contains(text);
    let shown = if has("reviews are currently unavailable") {
        Shown::NoReviews
    } else if has("Ratings service is currently unavailable") {
        Shown::NoRatings
    } else if has("color:red") {
        Shown::Red
    } else if has("color:black") {
        Shown::Black
    } else {
        Shown::None
    };

    (shown, answer.body)
}

fn shown(mesh: &Mesh, user: Option<&str>) -> Shown {
    page(mesh, user).0
}

fn tally(mesh: &Mesh, user: Option<&str>, requests: usize) -> BTreeMap<Shown, usize> {
    let mut tally = BTreeMap::new();
    for _ in 0..requests {
        *tally.entry(shown(mesh, user)).or_default() += 1;
    }
    tally
}

/// Waits until `user` sees only `wanted`, ten times in a row.
fn settles(mesh: &Mesh, what: &str, user: Option<&str>, wanted: Shown) {
    mesh.wait(what, || (0..10).all(|_| shown(mesh, user) == wanted));
}

/// Whether `count` of `n` lies within five standard deviations of the share `p`: a chance of one in
/// a million to be wrong.
fn is_share(count: usize, n: usize, p: f64) -> bool {
    let (count, n) = (count as f64, n as f64);
    (count - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt()
}

fn start(samples: &Path, plan: Plan) -> Mesh {
    plan.sample(&samples.join("bookinfo/platform/kube/bookinfo.yaml"))
        .sample(&networking(samples, "bookinfo-gateway.yaml"))
        .sample(&networking(samples, "destination-rule-all.yaml"))
        .start()
}

/// What a browser sends along after the login form was sent.
fn log_in(mesh: &Mesh, user: &str) -> String {
    let gateway = mesh.published(8080).expect("the gateway's port");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let mut client = Client::connect(gateway).expect("a connection");
    let answer = client
        .send(
            "POST",
            "/login",
            &form,
            &format!("username={user}&passwd=x"),
        )
        .expect("an answer");

    assert_eq!(
        (answer.status, answer.header("location")),
        (302, Some("/productpage"))
    );

    let cookie = answer.header("set-cookie").expect("a session").to_owned();

    cookie.split(';').next().expect("a cookie").to_owned()
}

/// Whether productpage's sidecar has a cluster for this subset of reviews that demands mutual TLS
/// of every endpoint, rather than of those that have a sidecar.
fn demands_mutual_tls(mesh: &Mesh, subset: &str) -> bool {
    let dump = mesh.exec(
        "productpage-v1",
        &["curl", "-sf", "http://127.0.0.1:15000/config_dump"],
    );

    let dump: Value = serde_json::from_slice(&dump.stdout).expect("JSON");
    let name = format!("outbound|9080|{subset}|reviews.default.svc.cluster.local");
    let configs = dump["configs"].as_array().expect("configs").iter();
    let mut clusters = configs.flat_map(|config| {
        config["dynamic_active_clusters"]
            .as_array()
            .into_iter()
            .flatten()
    });

    clusters.any(|one| {
        one["cluster"]["name"] == *name && one["cluster"]["transport_socket"].is_object()
    })
}

/// The whole tour, on a mesh whose sidecars are whichever proxies.
pub fn tour(samples: &Path, plan: Plan) {
    let mesh = start(samples, plan);
    mesh.wait("the page through the gateway", || {
        mesh.get("/productpage", &[]).status == 200
    });
    let everyone = |mesh: &Mesh| tally(mesh, None, 60);
    let versions_rotate = |mesh: &Mesh| {
        let tally = everyone(mesh);
        [Shown::None, Shown::Black, Shown::Red]
            .iter()
            .all(|version| tally.contains_key(version))
    };

    mesh.wait("all three versions take turns", || versions_rotate(&mesh));
    assert!(
        page(&mesh, None).1.contains("1234567890"),
        "details are on the page"
    );

    assert_eq!(
        mesh.get("/nowhere", &[]).status,
        404,
        "the gateway routes what bookinfo-gateway.yaml names"
    );

    assert_eq!(mesh.get("/api/v1/products/0/ratings", &[]).status, 200);

    let file = |name: &str| networking(samples, name);

    // One after the other: in, the effect, out, the effect gone.
    let through = |name: &str, effect: &dyn Fn(&Mesh)| {
        println!("tour: {name}");
        mesh.put(&file(name));
        effect(&mesh);
        mesh.take_out(name);
        mesh.wait(&format!("{name} is gone"), || versions_rotate(&mesh));
    };

    through("virtual-service-all-v1.yaml", &|mesh| {
        settles(mesh, "all v1: no stars", None, Shown::None);
        assert_eq!(
            tally(mesh, Some("jason"), 30),
            BTreeMap::from([(Shown::None, 30)])
        );
    });

    for (name, first, second, share) in [
        (
            "virtual-service-reviews-80-20.yaml",
            Shown::None,
            Shown::Black,
            0.2,
        ),
        (
            "virtual-service-reviews-90-10.yaml",
            Shown::None,
            Shown::Black,
            0.1,
        ),
        (
            "virtual-service-reviews-50-v3.yaml",
            Shown::None,
            Shown::Red,
            0.5,
        ),
        (
            "virtual-service-reviews-v2-v3.yaml",
            Shown::Black,
            Shown::Red,
            0.5,
        ),
    ] {
        through(name, &|mesh| {
            mesh.wait(name, || {
                tally(mesh, None, 40)
                    .keys()
                    .all(|shown| [first, second].contains(shown))
            });

            let n = 400;
            let tally = tally(mesh, None, n);
            assert_eq!(tally.values().sum::<usize>(), n);
            assert!(
                tally.keys().all(|shown| [first, second].contains(shown)),
                "{name}: {tally:?}"
            );

            let count = tally.get(&second).copied().unwrap_or_default();
            assert!(is_share(count, n, share), "{name}: {tally:?}");
        });
    }

    through("certmanager-gateway.yaml", &|mesh| {
        // A second Gateway on the same port; what its route leads to does not run.
        let status = |path: &str| mesh.get(path, &[]).status;
        mesh.wait("the route of a second gateway", || {
            status("/.well-known/acme-challenge/token") == 503
        });
        assert_eq!(
            status("/productpage"),
            200,
            "the first gateway's routes stay"
        );
    });

    mesh.wait("no such route", || {
        mesh.get("/.well-known/acme-challenge/token", &[]).status == 404
    });
    through("virtual-service-reviews-v3.yaml", &|mesh| {
        settles(mesh, "all v3: red stars", None, Shown::Red)
    });
    through("virtual-service-reviews-test-v2.yaml", &|mesh| {
        settles(mesh, "jason sees v2", Some("jason"), Shown::Black);
        settles(mesh, "everybody else sees v1", None, Shown::None);
        assert_eq!(
            tally(mesh, Some("anna"), 20),
            BTreeMap::from([(Shown::None, 20)])
        );

        // As with a browser.
        let cookie = log_in(mesh, "jason");
        let body = mesh.get("/productpage", &[("cookie", &cookie)]).body;
        assert!(
            body.contains("color:black") && body.contains("jason"),
            "{body}"
        );
    });

    through("virtual-service-reviews-jason-v2-v3.yaml", &|mesh| {
        settles(mesh, "jason sees v2", Some("jason"), Shown::Black);
        settles(mesh, "everybody else sees v3", None, Shown::Red);
    });

    // Faults on the way to ratings are seen where reviews has stars.
    mesh.put(&file("virtual-service-reviews-v3.yaml"));
    settles(&mesh, "red stars before the faults", None, Shown::Red);
    mesh.put(&file("virtual-service-ratings-test-abort.yaml"));
    settles(&mesh, "an abort for jason", Some("jason"), Shown::NoRatings);
    assert_eq!(
        tally(&mesh, None, 30),
        BTreeMap::from([(Shown::Red, 30)]),
        "nobody else is hit"
    );

    mesh.take_out("virtual-service-ratings-test-abort.yaml");
    settles(&mesh, "the abort is gone", Some("jason"), Shown::Red);

    mesh.put(&file("virtual-service-ratings-test-delay.yaml"));

    // The page waits twice 3 s for reviews, which waits 7 s for ratings.
    mesh.wait("a delay for jason", || {
        shown(&mesh, Some("jason")) == Shown::NoReviews
    });
    let before = Instant::now();
    assert_eq!(shown(&mesh, None), Shown::Red);
    assert!(before.elapsed().as_secs() < 5, "nobody else waits");
    mesh.take_out("virtual-service-ratings-test-delay.yaml");
    settles(&mesh, "the delay is gone", Some("jason"), Shown::Red);

    // Versions that do not run: no healthy upstream, and the page says so.
    mesh.put(&file("virtual-service-ratings-db.yaml"));
    settles(&mesh, "ratings v2 does not run", None, Shown::NoRatings);
    mesh.take_out("virtual-service-ratings-db.yaml");
    mesh.take_out("virtual-service-reviews-v3.yaml");
    mesh.wait("three versions again", || versions_rotate(&mesh));

    for name in [
        "fault-injection-details-v1.yaml",
        "virtual-service-details-v2.yaml",
    ] {
        through(name, &|mesh| {
            mesh.wait(name, || {
                page(mesh, None)
                    .1
                    .contains("product details are currently unavailable")
            });
        });

        mesh.wait("details are back", || {
            page(&mesh, None).1.contains("1234567890")
        });
    }

    for name in [
        "virtual-service-ratings-mysql.yaml",
        "virtual-service-ratings-mysql-vm.yaml",
    ] {
        // All reviews from v3, and ratings from versions that do not run.
        through(name, &|mesh| settles(mesh, name, None, Shown::NoRatings));
    }

    // Without a DestinationRule no subset exists; each file that brings them is seen to.
    mesh.put(&file("virtual-service-reviews-v3.yaml"));
    settles(&mesh, "v3 by destination-rule-all.yaml", None, Shown::Red);
    assert!(!demands_mutual_tls(&mesh, "v3"));
    mesh.take_out("destination-rule-all.yaml");
    settles(
        &mesh,
        "a subset that nobody defines",
        None,
        Shown::NoReviews,
    );

    for (name, mutual_tls) in [
        ("destination-rule-all-mtls.yaml", true),
        ("destination-rule-reviews.yaml", false),
    ] {
        println!("tour: {name}");
        mesh.put(&file(name));
        settles(&mesh, name, None, Shown::Red);
        assert_eq!(demands_mutual_tls(&mesh, "v3"), mutual_tls, "{name}");
        mesh.take_out(name);
        settles(&mesh, &format!("{name} is gone"), None, Shown::NoReviews);
    }
}

#[test]
fn bookinfo_with_istios_files() {
    const TEST: &str = "bookinfo_with_istios_files";
    let Some(shared) = crate::shared() else {
        return crate::skip(TEST, "Istio's samples are not beside the workspace");
    };
    if !has_namespaces(TEST) {
        return;
    }
    tour(&shared.join("istio/samples"), Plan::new());
}
