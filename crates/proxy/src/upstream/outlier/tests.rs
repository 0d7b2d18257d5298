use super::*;

const S: u64 = 1000;

fn terms() -> OutlierDetection {
    use meltemi_proxy_config::cluster::{FailurePercentage, SuccessRate};

    let (minimum_hosts, request_volume) = (5, 10);
    OutlierDetection {
        consecutive_5xx: 3,
        enforcing_5xx: 100,
        consecutive_gateway: 2,
        enforcing_gateway: 0,
        split_local: false,
        consecutive_local: 2,
        enforcing_local: 100,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection: Duration::from_secs(70),
        jitter: Duration::ZERO,
        max_ejection_percent: 50,
        always_eject_one: false,
        success_rate: SuccessRate {
            enforcing: 0,
            enforcing_local: 0,
            minimum_hosts,
            request_volume,
            stdev_factor: 1900,
        },
        failure_percentage: FailurePercentage {
            threshold: 85,
            enforcing: 0,
            enforcing_local: 0,
            minimum_hosts,
            request_volume,
        },
    }
}

/// A cluster without anything else.
struct Cluster {
    outlier: Outlier,
    records: Vec<Record>,
}

impl Cluster {
    fn new(hosts: usize, terms: OutlierDetection) -> Self {
        let outlier = Outlier::new(terms);
        assert!(
            !outlier.is_due(1),
            "the first asker begins the first interval"
        );
        Self {
            outlier,
            records: (0..hosts).map(|_| Record::default()).collect(),
        }
    }

    fn report(&self, host: usize, result: HostResult, now: u64) -> bool {
        let reasons = self.outlier.note(&self.records[host], result);
        let eject = |reason| {
            self.outlier
                .eject(&self.records[host], reason, now, self.records.iter())
        };

        reasons
            .into_iter()
            .flatten()
            .filter(|reason| eject(*reason))
            .count()
            > 0
    }

    fn statuses(&self, host: usize, statuses: &[u16], now: u64) -> bool {
        statuses
            .iter()
            .filter(|status| self.report(host, HostResult::Status(**status), now))
            .count()
            > 0
    }

    /// Looks at each tick up to a moment.
    fn until(&self, now: u64) -> Vec<usize> {
        for tick in 1..=now / (10 * S) {
            if self.outlier.is_due(tick * 10 * S + 1) {
                self.outlier.look(tick * 10 * S + 1, self.records.iter());
            }
        }
        (0..self.records.len())
            .filter(|host| self.records[*host].is_ejected())
            .collect()
    }
}

#[test]
fn failures_in_a_row_eject_until_an_interval_ends_and_longer_each_time() {
    let cluster = Cluster::new(2, terms());
    assert!(
        !cluster.statuses(0, &[500, 500, 200, 500, 500], 5 * S),
        "a success ends the row"
    );

    assert!(cluster.statuses(0, &[500], 5 * S));
    assert_eq!(cluster.until(30 * S), [0]);
    assert_eq!(
        cluster.until(40 * S),
        [0_usize; 0],
        "35 s, at the next look"
    );

    assert!(cluster.statuses(0, &[500, 500, 500], 45 * S));
    assert_eq!(cluster.until(100 * S), [0], "twice as long");
    assert_eq!(cluster.until(110 * S), [0_usize; 0]);
    assert!(cluster.statuses(0, &[500, 500, 500], 111 * S));
    assert_eq!(cluster.until(180 * S), [0]);
    assert_eq!(cluster.until(190 * S), [0_usize; 0], "70 s are the most");

    // Three intervals in service forgive three ejections.
    cluster.until(240 * S);
    assert!(cluster.statuses(0, &[500, 500, 500], 241 * S));
    assert_eq!(cluster.until(280 * S), [0_usize; 0]);
}

#[test]
fn a_share_of_the_endpoints_stays() {
    let three = [500, 500, 500];
    let cluster = Cluster::new(2, terms());
    assert!(cluster.statuses(0, &three, S) && !cluster.statuses(1, &three, S));
    assert_eq!(cluster.outlier.overflow.load(Relaxed), 1);

    // Envoy's default of 10 % lets none of three go, unless one always may.
    let tenth = OutlierDetection {
        max_ejection_percent: 10,
        ..terms()
    };

    assert!(!Cluster::new(3, tenth.clone()).statuses(0, &three, S));
    let cluster = Cluster::new(
        3,
        OutlierDetection {
            always_eject_one: true,
            ..tenth
        },
    );

    assert!(cluster.statuses(0, &three, S) && !cluster.statuses(1, &three, S));
}

#[test]
fn what_is_not_enforced_is_only_detected() {
    let cluster = Cluster::new(2, terms());
    assert!(!cluster.statuses(0, &[503, 503], S));
    assert_eq!(
        cluster.outlier.ejections(Reason::ConsecutiveGatewayFailure),
        (1, 0)
    );

    assert!(
        cluster.report(0, HostResult::LocalFailure, S),
        "a local failure counts as a 503"
    );

    assert_eq!(cluster.outlier.ejections(Reason::Consecutive5xx), (1, 1));

    let half = OutlierDetection {
        enforcing_5xx: 50,
        max_ejection_percent: 100,
        ..terms()
    };

    let cluster = Cluster::new(1000, half);
    let ejected = (0..1000)
        .filter(|host| cluster.statuses(*host, &[500, 500, 500], S))
        .count();
    assert!((400..600).contains(&ejected), "{ejected}");
}

#[test]
fn local_failures_can_be_counted_by_themselves() {
    let cluster = Cluster::new(
        2,
        OutlierDetection {
            split_local: true,
            ..terms()
        },
    );

    let fail = || cluster.report(0, HostResult::LocalFailure, S);
    assert!(!fail());
    assert!(
        !cluster.statuses(0, &[500], S),
        "an answer ends the row of local failures"
    );

    assert!(!fail() && fail());
    assert_eq!(
        cluster
            .outlier
            .ejections(Reason::ConsecutiveLocalOriginFailure),
        (1, 1)
    );
}

#[test]
fn what_is_worse_than_the_others_or_fails_too_often_is_ejected_at_the_next_look() {
    let mut by_rate = OutlierDetection {
        consecutive_5xx: 0,
        ..terms()
    };

    by_rate.success_rate.enforcing = 100;
    let of_ten = |cluster: &Cluster, host, failures: usize| {
        (0..10)
            .for_each(|n| _ = cluster.statuses(host, &[if n < failures { 500 } else { 200 }], S));
    };

    // Success rates of 50, 100, 100, 100, 100: mean 90, deviation 20, bound 52.
    let cluster = Cluster::new(5, by_rate.clone());
    (0..5).for_each(|host| of_ten(&cluster, host, if host == 2 { 5 } else { 0 }));
    assert_eq!(cluster.until(10 * S), [2]);

    // With fewer endpoints nobody is compared.
    let cluster = Cluster::new(4, by_rate.clone());
    (0..4).for_each(|host| of_ten(&cluster, host, if host == 2 { 10 } else { 0 }));
    assert_eq!(cluster.until(10 * S), [0_usize; 0]);

    let mut by_share = OutlierDetection {
        consecutive_5xx: 0,
        ..terms()
    };

    by_share.failure_percentage.enforcing = 100;
    let cluster = Cluster::new(5, by_share);
    (0..5).for_each(|host| of_ten(&cluster, host, if host < 2 { 9 } else { 8 }));
    assert_eq!(cluster.until(10 * S), [0, 1]);

    // Another interval begins at nothing.
    assert_eq!(cluster.until(50 * S), [0_usize; 0]);
}
