//! Ports of Services, as the agent knows them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Who translates, [`ServiceRow::mode`].
pub mod translator {
    /// veer's programs, at the pods' veths.
    pub const VEER: &str = "veer";
    /// The host's stack, by kube-proxy's rules.
    pub const KUBE_PROXY: &str = "kube-proxy";
}

/// States of backends, [`BackendRow::state`].
pub mod backend_state {
    /// It takes new flows.
    pub const READY: &str = "ready";
    /// It ends, and still serves: new flows go there only where none is ready.
    pub const TERMINATING: &str = "terminating";
    /// It takes none.
    pub const NOT_READY: &str = "not-ready";
}

/// Frontends of one port of a Service in one family, all for clients inside or all for those
/// outside, and all translated by the same one.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServiceRow {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the port; empty: it has none.
    pub port: String,
    /// `tcp`, `udp`, `sctp` or a number.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Whether the frontends are external IPs and addresses of load balancers, and not
    /// cluster IPs.
    pub external: bool,
    /// What clients send to.
    pub frontends: Vec<SocketAddr>,
    /// Who translates what this node's pods send there: one of [`translator`].
    pub mode: String,
    /// Seconds for which a client keeps its backend; 0: each flow is on its own.
    pub affinity: u32,
    /// Why no backend gets new connections; empty: some do, or the agent has not read all
    /// Services and their endpoints yet.
    pub unserved: String,
    /// The endpoints of the family.
    pub backends: Vec<BackendRow>,
}

/// A backend of a port.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct BackendRow {
    /// Where packets go.
    pub address: SocketAddr,
    /// One of [`backend_state`].
    pub state: String,
    /// Whether new flows of this node's pods may go there.
    pub chosen: bool,
    /// Its node, where that is known.
    #[serde(default)]
    pub node: Option<String>,
}

/// What clients of a Service send to.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// Address and port.
    pub at: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

/// A frontend with its Service.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct FrontendName {
    /// The frontend.
    pub frontend: Frontend,
    /// `namespace/name` of the Service, and `:` and the port's name where it has one.
    pub service: String,
}
