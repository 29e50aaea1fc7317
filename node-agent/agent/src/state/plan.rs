//! The engine's last decisions, for those who act between its rounds.

use std::{collections::BTreeMap, sync::Arc};

use veer_agent_core::{facts::Facts, mtu::Mtu, peers::Peers, switch::RoutingStep};

/// The engine's last decisions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The node.
    pub(crate) facts: Facts,
    /// Other nodes.
    pub(crate) peers: Arc<Peers>,
    /// What the epoch asks.
    pub(crate) step: RoutingStep,
    /// Why pairs do not have the form that the epoch leads to, by the peer's name.
    pub(crate) troubles: BTreeMap<String, String>,
    /// MTU of veths.
    pub(crate) link_mtu: Mtu,
    /// Why ADD cannot be served; empty: it can.
    pub(crate) not_ready: String,
    /// The node is being cleaned up or was.
    pub(crate) decommission: bool,
}
