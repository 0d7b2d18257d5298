//! State that all workloads of a node share: configuration, token signer, views of the mesh, and
//! the channel to the supervisor.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use meltemi_ca::{Caller, TokenSigner};
use meltemi_store::World;
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::dialler::Dialler;
use crate::events::Event;
use crate::gateways;
use crate::services::Services;
use crate::spec::WorkloadSpec;
use crate::token::TokenFile;

pub(crate) struct Context {
    pub(crate) config: NodeConfig,
    pub(crate) dialler: Arc<Dialler>,
    pub(crate) signer: TokenSigner,
    pub(crate) services: watch::Receiver<Arc<Services>>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    /// Machine address by port of the ingress gateway, for every published port.
    pub(crate) published: Mutex<BTreeMap<u16, SocketAddr>>,
    /// True once the control plane has written its root certificate and answers.
    pub(crate) control_ready: watch::Receiver<bool>,
    /// The whole node is stopping: a workload that ends need not wait for its callers to notice.
    pub(crate) is_stopping: AtomicBool,
    /// Environment of the mesh's own programs.
    pub(crate) base_env: BTreeMap<String, String>,
}

impl Context {
    /// Creates the token file that a workload's proxy inherits.
    pub(crate) fn token(&self, spec: &WorkloadSpec) -> anyhow::Result<TokenFile> {
        let caller = Caller {
            namespace: spec.key.namespace.clone(),
            service_account: spec.service_account.clone(),
            pod: Some(spec.key.pod.clone()),
        };
        TokenFile::new(&self.signer, caller)
    }

    /// The part of the environment that every application gets: selected variables of the user's
    /// environment, and `HOSTNAME`. The container's own variables are added later.
    pub(crate) fn app_env(&self, spec: &WorkloadSpec) -> BTreeMap<String, String> {
        const PASSED: [&str; 10] = [
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "TZ",
            "TMPDIR",
            "TERM",
            "LD_LIBRARY_PATH",
        ];

        let passed = self
            .base_env
            .iter()
            .filter(|(name, _)| PASSED.contains(&name.as_str()) || name.starts_with("LC_"));

        let mut env: BTreeMap<String, String> =
            passed.map(|(k, v)| (k.clone(), v.clone())).collect();
        env.insert("HOSTNAME".into(), spec.key.pod.clone());

        env
    }

    /// Socket at which a gateway requests listening sockets of the machine; `None` for everything
    /// but the ingress gateway, the only one that is published.
    pub(crate) fn host_socket(&self, spec: &WorkloadSpec) -> Option<PathBuf> {
        (spec.is_gateway() && spec.workload == gateways::INGRESS)
            .then(|| self.config.run_dir.join("host.sock"))
    }

    /// Logs a warning and shows it to the user.
    pub(crate) async fn warn(&self, text: String) {
        tracing::warn!("{text}");
        self.dialler.show(Event::Warning(text)).await;
    }

    /// The current time in RFC 3339, for `creationTimestamp`.
    pub(crate) fn now(&self) -> String {
        rfc3339(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
        )
    }
}

/// Formats seconds since 1970 as RFC 3339. The calendar algorithm is Howard Hinnant's
/// `civil_from_days`.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };

    let year = year_of_era + era * 400 + u64::from(month <= 2);

    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_is_written_as_kubernetes_does() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(super::rfc3339(1_795_219_199), "2026-11-20T23:59:59Z");
    }
}
