//! The mesh's settings that the node brings: ConfigMap `istio`, key `mesh`, as on Kubernetes. One of
//! the user replaces it.

/// Written to a file that the control plane reads, so that `meltemi get configmap` shows where the
/// settings are made.
pub(crate) const OBJECTS: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |
    accessLogFile: /dev/stdout
    enableAutoMtls: true
    outboundTrafficPolicy:
      mode: ALLOW_ANY
";
