//! What the node's stack holds for pods and other nodes.

mod health;
mod host;
mod pod_mtus;
mod vxlan;

pub(crate) use health::Health;
pub(crate) use host::{Host, up};
pub(crate) use pod_mtus::PodMtus;
pub(crate) use vxlan::Vxlan;
