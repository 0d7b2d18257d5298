//! Which security policies hold for a workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_types::Labels;

use crate::{
    AuthorizationPolicies, AuthorizationPolicy, AuthzAction, CustomAuthorization,
    EffectivePeerAuthentication, MtlsMode, Origin, PeerAuthentication, PolicyTarget, Snapshot,
    TokenRule,
};

impl Snapshot {
    /// What a workload accepts: port over workload over namespace over mesh; of several in one
    /// scope the oldest holds.
    pub fn peer_authentication(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> EffectivePeerAuthentication {
        let all = || self.lowered.peer_authentications.values();
        let oldest = |fits: &dyn Fn(&PeerAuthentication) -> bool| {
            all()
                .filter(|pa| fits(pa))
                .min_by(|a, b| a.origin.age.cmp(&b.origin.age))
        };

        let root = self.root_namespace();
        let of_mesh = oldest(&|pa| pa.selector.is_none() && pa.origin.object.namespace == root);
        let of_namespace = oldest(&|pa| {
            pa.selector.is_none() && pa.origin.object.namespace == namespace && namespace != root
        });
        let of_workload = oldest(&|pa| {
            pa.origin.object.namespace == namespace
                && pa
                    .selector
                    .as_ref()
                    .is_some_and(|selector| selector.selects(labels))
        });

        let mut mode = MtlsMode::Permissive;
        for scope in [of_mesh, of_namespace, of_workload].into_iter().flatten() {
            mode = scope.mode.unwrap_or(mode);
        }
        let ports = of_workload
            .map(|pa| {
                pa.ports
                    .iter()
                    .map(|(port, own)| (*port, own.unwrap_or(mode)))
                    .collect()
            })
            .unwrap_or_default();

        let sources = [of_workload, of_namespace, of_mesh]
            .into_iter()
            .flatten()
            .map(|pa| pa.origin.object.clone())
            .collect();

        EffectivePeerAuthentication {
            mode,
            ports,
            sources,
        }
    }

    /// The AuthorizationPolicies of a workload: those of the root namespace, then those of its own,
    /// each oldest first.
    pub fn authorization_policies(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> AuthorizationPolicies {
        let mut applicable: Vec<_> = self
            .lowered
            .authorization_policies
            .values()
            .filter(|policy| self.is_attached(&policy.origin, &policy.target, namespace, labels))
            .collect();

        applicable.sort_by_key(|policy| self.policy_order(&policy.origin));
        let mut found = AuthorizationPolicies::default();
        let mut custom: BTreeMap<&str, Vec<Arc<AuthorizationPolicy>>> = BTreeMap::new();
        for policy in applicable {
            let list = match &policy.action {
                // To ask in a dry run would be an effect: authorizers count and remember.
                AuthzAction::Custom { .. } if policy.dry_run => continue,
                AuthzAction::Custom { provider } => custom.entry(provider).or_default(),
                AuthzAction::Deny => &mut found.deny,
                AuthzAction::Allow => &mut found.allow,
                AuthzAction::Audit => &mut found.audit,
            };
            list.push(policy.clone());
        }

        // A workload has one authorizer or none: policies of several deny. Source: Istio, without
        // PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS.
        let is_single = custom.len() == 1;
        for (provider, policies) in custom {
            let authorizer = self.authorizer(provider).ok().filter(|_| is_single);
            // Each check would need a check, without end.
            if authorizer.is_some_and(|own| self.is_behind(own, namespace, labels)) {
                continue;
            }
            found.custom.push(CustomAuthorization {
                provider: provider.to_owned(),
                authorizer: authorizer.cloned(),
                policies,
            });
        }

        found
    }

    /// The rules for tokens of a workload, in the order of its RequestAuthentications: those of the
    /// root namespace, then those of its own, each oldest first.
    pub fn token_rules(&self, namespace: &str, labels: &Labels) -> Vec<TokenRule> {
        let all = self.lowered.request_authentications.values();
        let mut applicable: Vec<_> = all
            .filter(|own| self.is_attached(&own.origin, &own.target, namespace, labels))
            .collect();
        applicable.sort_by_key(|own| self.policy_order(&own.origin));

        applicable
            .iter()
            .flat_map(|own| own.rules.iter().cloned())
            .collect()
    }

    /// Whether a policy applies to a workload.
    pub(crate) fn selects(
        &self,
        policy: &AuthorizationPolicy,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        self.is_attached(&policy.origin, &policy.target, namespace, labels)
    }

    fn is_attached(
        &self,
        origin: &Origin,
        target: &PolicyTarget,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        let declared_in = origin.object.namespace.as_str();
        (declared_in == namespace || declared_in == self.root_namespace())
            && match target {
                PolicyTarget::All => true,
                PolicyTarget::Workloads(selector) => selector.selects(labels),
                PolicyTarget::References(_) => false,
            }
    }

    fn policy_order(&self, origin: &Origin) -> (bool, crate::Age) {
        (
            origin.object.namespace != self.root_namespace(),
            origin.age.clone(),
        )
    }
}
