//! The questions of veer-cni and the `veer` command to the agent over its socket.
//!
//! One request per connection: a JSON object on one line, answered by a JSON
//! object on one line; to one who listens ([`Request::Monitor`]) events follow until
//! either end closes ([`stream`]). The socket is root's alone (mode 0600).

#![forbid(unsafe_code)]

pub mod client;
pub mod file;
pub mod host_port;
#[cfg(feature = "packet")]
pub mod packet;
pub mod service;
pub mod stream;
mod traffic;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use host_port::{HostAddress, HostPort};
pub use service::{BackendRow, Frontend, FrontendName, ServiceRow};
pub use traffic::TrafficRow;

/// Path of the agent's socket.
pub const SOCKET: &str = "/run/veer/agent.sock";
/// File beside the socket whose time of change says when pods could last be wired.
pub const SERVED_NAME: &str = "served";
/// Directory in which veer-cni stores a DEL that found no agent.
pub const DELETE_QUEUE: &str = "/var/lib/veer/queue";
/// Where the agent names the sandboxes that the plugin portmap made rules for, in
/// files that are the standard input of its DEL. A reboot empties the folder, and
/// takes those rules as well.
pub const PORTMAP_RULES: &str = "/run/veer/portmap";
/// Default directory of runtimes' CNI configurations.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// veer's own there: early in the alphabet, since the first file counts.
pub const CONFLIST: &str = "05-veer.conflist";
/// Longest request, in bytes, the newline included.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Longest answer, likewise: a full flow table is 262,144 rows of some 200 bytes.
pub const MAX_ANSWER: usize = 128 << 20;

/// Addresses that one [`Request::Who`] may ask for.
pub const MAX_ADDRESSES: usize = 1024;

/// Frontends that one [`Request::Frontends`] may ask for.
pub const MAX_FRONTENDS: usize = 64;

/// CNI error codes (CNI specification 1.1, "Error").
pub mod code {
    /// Invalid environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Failed to decode content.
    pub const DECODE: u32 = 6;
    /// Invalid network configuration.
    pub const INVALID_CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin is not available: it cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Anything else.
    pub const INTERNAL: u32 = 999;
}

/// A request.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Wire a pod's sandbox.
    Add(Add),
    /// Unwire it; succeeds when there is nothing to do.
    Del(Del),
    /// Is it still wired as ADD left it?
    Check(Check),
    /// Unwire all but these.
    Gc {
        /// Attachments that are still wanted.
        valid: Vec<Attachment>,
    },
    /// Can ADD be served?
    Status,
    /// The node at a glance.
    NodeStatus,
    /// Local pods.
    Endpoints,
    /// Identities known.
    Identities,
    /// Which pods have these addresses.
    Who {
        /// At most [`MAX_ADDRESSES`]; the rest stays unanswered.
        addresses: Vec<IpAddr>,
    },
    /// Which Services these frontends are.
    Frontends {
        /// At most [`MAX_FRONTENDS`]; the rest stays unanswered.
        frontends: Vec<Frontend>,
    },
    /// Rows of the ipcache map.
    Ipcache,
    /// Other nodes.
    Remotes,
    /// Counters of the programs.
    Counters,
    /// Flows that have an entry.
    Flows,
    /// Ports of Services.
    Services,
    /// Who talks to whom.
    Traffic,
    /// Samples of dropped packets.
    Drops,
    /// Decisions of the programs from now on, as [`stream`].
    Monitor {
        /// The wanted verdicts: bit n is number n.
        verdicts: u64,
        /// The wanted reasons of drops: bit n is the n-th.
        reasons: u32,
    },
}

/// A MAC for people.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// One interface of one sandbox.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl Attachment {
    /// Name of a file about it.
    pub fn file_name(&self) -> String {
        format!("{}-{}.json", self.container_id, self.ifname).replace('/', "_")
    }
}

/// See [`Request::Add`].
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Add {
    /// Which interface of which sandbox.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Path of its network namespace.
    pub netns: String,
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `K8S_POD_NAME`.
    pub pod_name: String,
    /// `K8S_POD_UID`; a static pod's is its config hash.
    #[serde(default)]
    pub pod_uid: String,
    /// The pod's hostPorts, where the runtime said something of them: it does not
    /// when there are none, and when another plugin is to make them.
    #[serde(default)]
    pub host_ports: Option<Vec<HostPort>>,
}

/// See [`Request::Del`].
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Del {
    /// Which interface of which sandbox.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Path of its network namespace, where there still is one.
    #[serde(default)]
    pub netns: Option<String>,
}

/// See [`Request::Check`].
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Check {
    /// Which interface of which sandbox.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Path of its network namespace.
    pub netns: String,
    /// Addresses that the result of ADD named.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The result of ADD.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Added {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The gateway of each family in use.
    pub gateways: Vec<IpAddr>,
    /// Host side of the veth.
    pub host_ifname: String,
    /// Its MAC.
    pub host_mac: String,
    /// MAC of the pod's side.
    pub container_mac: String,
    /// MTU of the pod's default route, in bytes.
    pub mtu: u32,
}

/// Why not.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Failure {
    /// See [`code`].
    pub code: u32,
    /// One line: what is wrong, for which pod, what to do.
    pub msg: String,
    /// More, or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// An answer: the value asked for, or why not.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// The value.
    Ok(T),
    /// Why not.
    Error(Failure),
}

/// Answer of [`Request::NodeStatus`].
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// Whether pods can be wired, and if not, why.
    pub ready: bool,
    /// One line that says why not.
    pub reason: String,
    /// Version of the agent.
    pub version: String,
    /// Running kernel.
    pub kernel: String,
    /// `Tunnel` or `Native`, as applied.
    pub mode: String,
    /// Phase of the applied epoch.
    pub phase: String,
    /// Number of the applied epoch.
    pub epoch: i64,
    /// `BPF`: pod traffic does not pass the host's stack.
    pub host_routing: String,
    /// Who translates what is sent to Services: `kube-proxy`, or `veer` and for whom.
    #[serde(default)]
    pub services: String,
    /// Blocks of pod addresses.
    pub pod_cidrs: Vec<String>,
    /// Gateways of the pods.
    pub gateways: Vec<IpAddr>,
    /// Addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Uplinks.
    pub uplinks: Vec<String>,
    /// MTU of routes to pods of other nodes, in bytes; 1500 before the first round.
    pub mtu: u32,
    /// `tcx` or `clsact`.
    pub attach: String,
    /// Pods wired here.
    pub endpoints: usize,
    /// Those of them that lack an address of a family that new pods get.
    #[serde(default)]
    pub lacking: usize,
    /// Pods of other nodes known here.
    pub remote_endpoints: usize,
    /// Other nodes known here.
    pub remotes: usize,
    /// Identities known here.
    pub identities: usize,
    /// How often something that another program changed was put back, by what.
    pub repairs: Vec<(String, u64)>,
}

/// Answer of [`Request::Monitor`], before the stream.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct MonitorStart {
    /// The node.
    pub node: String,
    /// Bytes of one record of the stream.
    pub event_bytes: usize,
    /// Version of the layout of maps and events.
    pub layout: u32,
}

/// A local pod.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its address.
    pub address: IpAddr,
    /// Its number on this node.
    pub id: u16,
    /// Its security identity.
    pub identity: u32,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// Interface index of the host side of its veth.
    pub ifindex: u32,
    /// Name of that device.
    pub ifname: String,
    /// MAC of its eth0.
    pub mac: String,
    /// MAC of the host side.
    pub node_mac: String,
}

/// A pod by its address.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PodName {
    /// Its address.
    pub address: IpAddr,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// Its node.
    pub node: String,
}

/// A security identity.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct IdentityRow {
    /// The number.
    pub identity: u32,
    /// `Reserved`, `Active` or `Retiring`.
    pub state: String,
    /// `key=value`, sorted; a reserved number has `reserved:<name>`.
    pub labels: Vec<String>,
}

/// A row of the ipcache map.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct IpcacheRow {
    /// Prefix.
    pub prefix: String,
    /// Security identity.
    pub identity: u32,
    /// Address of the node it is on; unspecified (0.0.0.0) for local pods.
    pub tunnel_endpoint: IpAddr,
    /// The agent's number for that node.
    pub node_id: u32,
}

/// Another node, or this one (its pod CIDRs belong in the table too).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct RemoteRow {
    /// The node.
    pub node: String,
    /// The agent's number for it.
    pub node_id: u32,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// Destination of tunnel packets for it.
    pub address: IpAddr,
    /// `tunnel`, `native`, `local` or `none`.
    pub form: String,
    /// Next hop of the native form; of IPv4 packets, where both families are used.
    pub next_hop: Option<IpAddr>,
    /// Uplink of the native form, by that next hop.
    pub uplink: String,
    /// Next hop of IPv6 packets in the native form, where IPv4 packets have another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop_v6: Option<IpAddr>,
    /// Uplink by that next hop.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uplink_v6: String,
    /// Whether bare packets from it are accepted.
    pub accept_native: bool,
    /// Epoch that wrote the entry.
    pub epoch: u32,
    /// Seconds after which the pair has its earlier form back unless probes
    /// confirm the present one.
    #[serde(default)]
    pub falls_back_in: Option<u64>,
    /// Why the pair does not have the form that the mode leads to; empty: it has.
    #[serde(default)]
    pub trouble: String,
}

/// A counter of the programs.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct CounterRow {
    /// The program.
    pub program: String,
    /// Verdict or reason.
    pub outcome: String,
    /// Whether the outcome is a drop.
    pub drop: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// States of flows, [`FlowRow::state`].
pub mod flow_state {
    /// TCP: no reply was seen.
    pub const SYN_SENT: &str = "syn-sent";
    /// TCP: a reply was seen, and nothing after it of the end that opened the flow.
    pub const SYN_RECEIVED: &str = "syn-received";
    /// TCP: the end that opened the flow went on after a reply.
    pub const ESTABLISHED: &str = "established";
    /// TCP: the FIN of one end was seen.
    pub const HALF_CLOSED: &str = "half-closed";
    /// TCP: RST was seen, or the FINs of both ends.
    pub const CLOSED: &str = "closed";
    /// Not TCP: no reply was seen.
    pub const UNREPLIED: &str = "unreplied";
    /// Not TCP: a reply was seen.
    pub const REPLIED: &str = "replied";
    /// UDP: a reply was seen, and the flow went on more than two seconds after it began.
    pub const STREAM: &str = "stream";
    /// All of them.
    pub const ALL: [&str; 8] = [
        SYN_SENT,
        SYN_RECEIVED,
        ESTABLISHED,
        HALF_CLOSED,
        CLOSED,
        UNREPLIED,
        REPLIED,
        STREAM,
    ];
}

/// A flow that has an entry.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct FlowRow {
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    pub protocol: String,
    /// One of [`flow_state`].
    #[serde(default)]
    pub state: String,
    /// Address and port of the end that opened the flow. An ICMP query has its identifier
    /// in place of the port; where there is neither, the address stands alone.
    pub source: String,
    /// The other end, in the same form.
    pub destination: String,
    /// Who translates the flow: `host`, the host's stack, or `veer`, the programs.
    #[serde(default)]
    pub translation: String,
    /// Where the programs send what is for the other end, in the same form; `None`: the
    /// host's stack knows, or the flow's second entry was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Seconds since the flow began; `None`: not known.
    #[serde(default)]
    pub age: Option<u64>,
    /// Seconds until the flow entry expires.
    pub expires_in: u64,
}

/// A packet that a program dropped: of each reason the first in some 134 ms per CPU, of
/// which the last four are kept.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct DropRow {
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// Why.
    pub reason: String,
    /// The program.
    pub program: String,
    /// The device that it is attached to.
    pub device: String,
    /// `namespace/name` of the pod behind the device; empty: none.
    pub pod: String,
    /// `tcp`, `udp`, `icmp`, `arp`, another protocol's number, or an `EtherType`.
    pub protocol: String,
    /// Source address and port; a MAC where it has no address.
    pub source: String,
    /// Destination address and port; a MAC where it has no address.
    pub destination: String,
    /// Bytes of the frame.
    pub bytes: u32,
    /// Security identity of the source as derived here; 0: it was not looked up.
    pub identity: u32,
    /// The other node that it came from or was to go to; empty: none.
    pub node: String,
}
