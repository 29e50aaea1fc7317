//! API version `veer.dev/v1alpha1`.

mod choices;
mod cluster_network;
mod node_network;
mod node_report;
mod pod_cidr;
mod pod_endpoint;
mod security_identity;

pub use choices::{PolicyEnforcement, ServiceTranslation, XdpMode};
pub use cluster_network::{
    ClusterNetwork, ClusterNetworkSpec, ClusterNetworkStatus, ExtraNodeAddresses, FailedPair,
    FailedPairs, IdentityLabels, Masquerade, NativeRouting, NodeCounts, NodeReason, PodCidrEntry,
    PodCidrState, PodCidrStatus, RolloutPolicy, Routing, RoutingMode, Tunnel,
};
pub use node_network::{
    Epoch, KeptForm, NodeNetwork, NodeNetworkSpec, NodeNetworkStatus, Phase, ProbeReport,
    UplinkStatus,
};
pub use node_report::{NodeReport, NodeReportSpec, NodeReportStatus};
pub use pod_cidr::{PodCIDR, PodCIDRSpec, PodCIDRStatus};
pub use pod_endpoint::{PodEndpoint, PodEndpointSpec, PodEndpointState};
pub use security_identity::{
    IdentityState, SecurityIdentity, SecurityIdentitySpec, SecurityIdentityStatus,
};

/// Name of the one ClusterNetwork.
pub const CLUSTER_NETWORK: &str = "default";

/// Taint of a node whose agent has not reported since the node's boot, or whose
/// container runtime calls another network's plugin.
pub const TAINT_AGENT_NOT_READY: &str = "node.veer.dev/agent-not-ready";
/// Reason of the condition `Ready` while the container runtime calls another
/// network's plugin.
pub const FOREIGN_CONFLIST: &str = "ForeignConflist";
