//! What the agent keeps of the API server's word, so that it can start without it:
//! its block, the cluster's settings, the epoch in force.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veer_crds::v1alpha1::{ClusterNetworkSpec, Epoch};

use crate::switch::Pairs;

/// The content of `held.json` in the state folder.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Blocks assigned from.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// UID and spec of the ClusterNetwork.
    #[serde(default)]
    pub cluster: Option<(String, ClusterNetworkSpec)>,
    /// The last epoch taken up.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// The last epoch acknowledged.
    #[serde(default)]
    pub applied: Option<Epoch>,
    /// What probes of other nodes found in that epoch or the one under way.
    #[serde(default)]
    pub pairs: Pairs,
    /// The node was told to clean up and has.
    #[serde(default)]
    pub decommissioned: bool,
}
