//! `extensions.istio.io`: code that runs in proxies.

use serde_json::Value;

use crate::schema::{message, words};
use crate::shared::{TargetReference, WorkloadSelector};

message! {
    /// A WebAssembly module in the filter chain.
    pub struct WasmPlugin {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// One target instead of workloads.
        target_ref: Option<TargetReference> = "targetRef",
        /// Targets instead of workloads.
        target_refs: Vec<TargetReference> = "targetRefs",
        /// `http://`, `https://`, `file://`, `oci://` (also without scheme).
        url: String = "url" [required, non_empty],
        /// Checksum of the module.
        sha256: String = "sha256",
        /// When an image is fetched.
        image_pull_policy: PullPolicy = "imagePullPolicy",
        /// Secret for the registry.
        image_pull_secret: String = "imagePullSecret" [non_empty],
        /// Not implemented by Istio.
        verification_key: String = "verificationKey",
        /// For the module, as written.
        plugin_config: Option<Value> = "pluginConfig",
        /// Root id.
        plugin_name: String = "pluginName" [non_empty],
        /// Where in the chain.
        phase: PluginPhase = "phase",
        /// Higher ones first, within the phase.
        priority: Option<i32> = "priority",
        /// When the module fails.
        fail_strategy: FailStrategy = "failStrategy",
        /// Its environment.
        vm_config: Option<VmConfig> = "vmConfig",
        /// Which traffic; empty is all.
        r#match: Vec<TrafficSelector> = "match",
        /// HTTP or network filter.
        r#type: PluginType = "type",
    }

    /// A WebAssembly module or a Lua script in the filter chain.
    pub struct TrafficExtension {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// Targets instead of workloads.
        target_refs: Vec<TargetReference> = "targetRefs",
        /// Where in the chain.
        phase: ExtensionPhase = "phase",
        /// Higher ones first, within the phase.
        priority: Option<i32> = "priority",
        /// Which traffic; empty is all.
        r#match: Vec<TrafficSelector> = "match",
        /// A module.
        wasm: Option<WasmConfig> = "wasm",
        /// A script.
        lua: Option<LuaConfig> = "lua",
    }

    /// A WebAssembly module.
    pub struct WasmConfig {
        /// `http://`, `https://`, `file://`, `oci://` (also without scheme).
        url: String = "url" [required, non_empty],
        /// Checksum of the module.
        sha256: String = "sha256",
        /// When an image is fetched.
        image_pull_policy: PullPolicy = "imagePullPolicy",
        /// Secret for the registry.
        image_pull_secret: String = "imagePullSecret" [non_empty],
        /// Not implemented by Istio.
        verification_key: String = "verificationKey",
        /// For the module, as written.
        plugin_config: Option<Value> = "pluginConfig",
        /// Root id.
        plugin_name: String = "pluginName" [non_empty],
        /// When the module fails.
        fail_strategy: FailStrategy = "failStrategy",
        /// Its environment.
        vm_config: Option<VmConfig> = "vmConfig",
        /// HTTP or network filter.
        r#type: PluginType = "type",
    }

    /// A Lua script.
    pub struct LuaConfig {
        /// The script.
        inline_code: String = "inlineCode" [required, non_empty],
    }

    /// The environment of a module.
    pub struct VmConfig {
        /// Variables.
        env: Vec<WasmEnvVar> = "env",
    }

    /// A variable.
    pub struct WasmEnvVar {
        name: String = "name" [required, non_empty],
        /// Where its value comes from.
        value_from: EnvValueSource = "valueFrom",
        /// Value, for INLINE.
        value: Option<String> = "value",
    }

    /// Which traffic.
    pub struct TrafficSelector {
        /// On which side.
        mode: SelectorMode = "mode",
        /// On which ports; empty is all.
        ports: Vec<SelectorPort> = "ports",
    }

    pub struct SelectorPort {
        /// 1 to 65535.
        number: u32 = "number" [required],
    }
}

words! {
    /// When an image is fetched.
    pub enum PullPolicy {
        /// By tag: `latest` always, others once.
        Unspecified = "UNSPECIFIED_POLICY",
        /// Once.
        IfNotPresent = "IfNotPresent",
        /// Always.
        Always = "Always",
    }

    /// Where in the chain a plugin runs.
    pub enum PluginPhase {
        /// At the end, before the router.
        Unspecified = "UNSPECIFIED_PHASE",
        /// Before authentication.
        Authn = "AUTHN",
        /// After authentication, before authorization.
        Authz = "AUTHZ",
        /// After authorization, before statistics.
        Stats = "STATS",
    }

    /// Where in the chain an extension runs.
    pub enum ExtensionPhase {
        /// At the end, before the router.
        Unspecified = "UNSPECIFIED",
        /// Before authentication.
        Authn = "AUTHN",
        /// After authentication, before authorization.
        Authz = "AUTHZ",
        /// After authorization, before statistics.
        Stats = "STATS",
    }

    /// When a module fails.
    pub enum FailStrategy {
        /// Requests fail.
        FailClose = "FAIL_CLOSE",
        /// Requests pass.
        FailOpen = "FAIL_OPEN",
        /// The module is started again.
        FailReload = "FAIL_RELOAD",
    }

    /// HTTP or network filter.
    pub enum PluginType {
        /// As `HTTP`.
        Unspecified = "UNSPECIFIED_PLUGIN_TYPE",
        /// HTTP filter.
        Http = "HTTP",
        /// Network filter.
        Network = "NETWORK",
    }

    /// Where a variable's value comes from.
    pub enum EnvValueSource {
        /// Written here.
        Inline = "INLINE",
        /// The proxy's environment.
        Host = "HOST",
    }

    /// On which side of a call.
    pub enum SelectorMode {
        /// As both.
        Undefined = "UNDEFINED",
        /// The caller's.
        Client = "CLIENT",
        /// The callee's.
        Server = "SERVER",
        /// Both.
        ClientAndServer = "CLIENT_AND_SERVER",
    }
}
