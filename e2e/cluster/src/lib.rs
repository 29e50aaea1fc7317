//! A real Kubernetes on one machine, for tests and the demo.
//!
//! etcd, API server, controller manager, scheduler, `CoreDNS`, kube-proxy,
//! containerd and kubelet are the real programs; a node is a set of
//! namespaces with its own disk. What the cluster does not have is a pod
//! network: that is the product's.
//!
//! Invariants: everything made carries the cluster's name; nothing has to be
//! remembered to remove it (processes are found by control group, and all
//! else ends with them); nothing leaves the machine.

#![forbid(unsafe_code)]

mod addons;
mod capture;
mod cgroup;
mod change;
mod cluster;
mod cni;
mod control;
pub mod decode;
mod error;
mod family;
mod kubectl;
mod light;
mod machine;
mod netfilter;
mod node;
mod own;
pub mod paths;
pub mod pcap;
mod pki;
mod pod;
mod progress;
mod ready;
mod run;
mod state;
mod underlay;
mod wait;

pub use capture::Capture;
pub use cluster::Cluster;
pub use cni::LightPod;
pub use control::{API_PORT, API_SERVICE, COMPONENTS, DNS_SERVICE, POD_CIDR, SERVICE_CIDR};
pub use decode::{Mac, Packet, Transport};
pub use error::{Error, Result};
pub use family::{Families, Family};
pub use kubectl::Kubectl;
pub use machine::Machine;
pub use netfilter::{HOOKS, NetfilterCounters};
pub use own::own_name;
pub use pcap::Captured;
pub use pod::{Device, Pod};
pub use progress::Progress;
pub use run::Output;
pub use state::{Config, NodeInfo, ProxyMode, Role, State, Underlay};
pub use underlay::OUTSIDE;
pub use wait::{attempt, await_condition, patience};
