//! What the user chooses in one word in the spec of the ClusterNetwork.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether and how an XDP program sits on the uplinks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum XdpMode {
    /// Driver mode where it costs no offload; elsewhere generic mode, but only
    /// under a flood of packets that it drops earlier.
    #[default]
    Auto,
    /// Driver mode.
    Driver,
    /// Generic mode.
    Generic,
    /// None.
    Off,
}

/// Who translates what is sent to Services.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ServiceTranslation {
    /// The host's stack, by kube-proxy's rules.
    KubeProxy,
    /// The programs at the pods' veths, before a packet enters the stack. kube-proxy goes on
    /// beside them, for the nodes themselves and for what the programs leave to the stack.
    #[default]
    Pods,
    /// The programs too for the nodes' own sockets and for `NodePorts`, and veer refuses what
    /// nobody serves: inside the cluster no kube-proxy is needed.
    Full,
}

impl ServiceTranslation {
    /// Whether the programs translate what pods send.
    pub fn by_programs(self) -> bool {
        match self {
            Self::KubeProxy => false,
            Self::Pods | Self::Full => true,
        }
    }

    /// Whether the programs translate what the nodes' own sockets send, too.
    pub fn is_full(self) -> bool {
        match self {
            Self::KubeProxy | Self::Pods => false,
            Self::Full => true,
        }
    }
}

/// When network policies are enforced. (Enforcement itself is not there yet.)
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum PolicyEnforcement {
    /// For pods that a policy selects.
    #[default]
    Default,
    /// For all pods.
    Always,
    /// Never.
    Never,
}
