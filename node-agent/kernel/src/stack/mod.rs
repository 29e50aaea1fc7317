//! What the node's stack holds for pods and other nodes.

mod health;
mod host;
mod pod_mtus;
#[cfg(test)]
mod tests;
mod vxlan;

pub use health::Health;
pub use host::{Host, up};
pub use pod_mtus::PodMtus;
pub use vxlan::Vxlan;
