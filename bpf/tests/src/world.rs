//! One node's view of a small cluster, for test runs: pods A and B here, C on
//! node 2, and a node 3 that has no form yet. All have addresses of both families: those
//! here, and what [`Family::of`] makes of them.

use crate::{
    datapath::{Context, Datapath},
    family::Family,
    packet::{Headers, Packet},
};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};
use veer_bpf_common::{
    DEFAULT_TUNNEL_PORT,
    address::{FAMILY_V4, IpKey},
    device::IfIndex,
    identity::Identity,
    node::NodeId,
    outcome::{Program, outcome_name},
    tables::{
        Config, Endpoint, FORM_NATIVE, FORM_NONE, FORM_TUNNEL, FlowEntry, Interface, Remote, Tuple,
    },
};

/// The identity with this number.
///
/// # Panics
///
/// Where there is none.
#[allow(clippy::expect_used, reason = "an assertion of tests")]
pub const fn identity(number: u32) -> Identity {
    Identity::new(number).expect("24 bits, and not 0")
}

/// The id of another node.
///
/// # Panics
///
/// Where there is none.
#[allow(clippy::expect_used, reason = "an assertion of tests")]
pub const fn node(number: u32) -> NodeId {
    NodeId::remote(number).expect("an id of another node")
}

/// Codes of tc programs.
pub const UNSPEC: i32 = -1;
/// See [`UNSPEC`].
pub const SHOT: i32 = 2;
/// See [`UNSPEC`].
pub const REDIRECT: i32 = 7;

/// A test run's packet comes in on the loopback device.
pub const A_IFINDEX: IfIndex = IfIndex::from_kernel(1);
/// Local pod, the sender in `pod_egress`.
pub const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
/// Its identity.
pub const A_IDENTITY: Identity = identity(1000);
/// Its MAC.
pub const A_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x0a];
/// The host side of its veth.
pub const A_NODE_MAC: [u8; 6] = [0x0e, 0, 0, 0, 0, 0x0a];

/// Local pod.
pub const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
/// Its identity.
pub const B_IDENTITY: Identity = identity(2000);
/// Its MAC.
pub const B_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x0b];
/// The host side of its veth.
pub const B_NODE_MAC: [u8; 6] = [0x0e, 0, 0, 0, 0, 0x0b];
/// Index of the host side of its veth.
pub const B_IFINDEX: IfIndex = IfIndex::from_kernel(77);

/// Pod on node 2.
pub const C: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 20);
/// Its identity.
pub const C_IDENTITY: Identity = identity(3000);

/// Pod on node 3.
pub const D: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 30);

/// The gateway of this node's pods, which is its health address.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// The health address of node 2.
pub const HEALTH_2: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// This node.
pub const NODE_1: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Another node.
pub const NODE_2: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Another node, whose entry has no form.
pub const NODE_3: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Outside.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Id of [`NODE_2`].
pub const ID_2: NodeId = node(2);
/// Id of [`NODE_3`].
pub const ID_3: NodeId = node(3);
/// Index of the VXLAN device.
pub const VXLAN: IfIndex = IfIndex::from_kernel(55);
/// Index of the uplink.
pub const UPLINK: IfIndex = IfIndex::from_kernel(66);

/// Largest inner packet in the tunnel.
pub const TUNNEL_MTU: u32 = 1450;
/// Largest packet on the uplink.
pub const NATIVE_MTU: u32 = 1500;

/// [`NODE_2`]'s entry in this form. The tunnel's outer packets are IPv4.
pub fn remote(form: u8) -> Remote {
    Remote {
        tunnel_address: *IpKey::v4(NODE_2.octets()).addr(),
        next_hop: *IpKey::v4(NODE_2.octets()).addr(),
        next_hop_v6: octets_v6(NODE_2),
        address_v4: NODE_2.octets(),
        address_v6: octets_v6(NODE_2),
        ifindex: UPLINK.get(),
        ifindex_v6: UPLINK.get(),
        flags: if form == FORM_NATIVE {
            Remote::ACCEPT_NATIVE
        } else {
            0
        },
        form,
        previous_form: if form == FORM_NATIVE {
            FORM_TUNNEL
        } else {
            FORM_NATIVE
        },
        tunnel_family: FAMILY_V4,
        next_hop_family: FAMILY_V4,
        ..Remote::default()
    }
}

/// An entry without next hops.
#[must_use]
pub fn without_next_hop(entry: Remote) -> Remote {
    Remote {
        next_hop_family: 0,
        ifindex_v6: 0,
        ..entry
    }
}

/// The IPv6 address that one of IPv4 stands for.
pub fn octets_v6(address: Ipv4Addr) -> [u8; 16] {
    *IpKey::from(Family::V6.of(address)).addr()
}

/// The node's configuration.
pub fn config() -> Config {
    Config {
        vxlan_ifindex: VXLAN.get(),
        tunnel_mtu: TUNNEL_MTU,
        native_mtu: NATIVE_MTU,
        tunnel_port: DEFAULT_TUNNEL_PORT.to_be_bytes(),
        ..with_gateway(Config::default(), GATEWAY, 24)
    }
}

/// A configuration with this gateway in a block of as many bits.
#[must_use]
pub fn with_gateway(config: Config, gateway: Ipv4Addr, bits: u8) -> Config {
    Config {
        gateway_v4: gateway.octets(),
        gateway_v6: octets_v6(gateway),
        block_bits_v4: bits,
        block_bits_v6: if bits == 0 { 0 } else { 96 + bits },
        ..config
    }
}

/// What may come from pod A.
pub fn interface() -> Interface {
    Interface {
        identity: A_IDENTITY.get(),
        endpoint_id: 1,
        mac: A_MAC,
        node_mac: A_NODE_MAC,
        v4: A.octets(),
        v6: octets_v6(A),
        ..Interface::default()
    }
}

/// Loads these programs and fills the maps.
pub fn load(programs: &[Program]) -> Result<Datapath> {
    load_from(veer_bpf_object::OBJECT, programs)
}

/// The same of another object.
pub fn load_from(object: &[u8], programs: &[Program]) -> Result<Datapath> {
    filled(Datapath::load_from(object, programs)?)
}

/// As [`load`], with programs as after an upgrade: see [`Datapath::load_upgrading`].
pub fn upgrading(until: u64, programs: &[Program]) -> Result<Datapath> {
    filled(Datapath::load_upgrading(until, programs)?)
}

fn filled(mut node: Datapath) -> Result<Datapath> {
    node.set_config(config())?;
    node.set_interface(A_IFINDEX, interface())?;
    let pods = [
        (
            A,
            Endpoint {
                ifindex: A_IFINDEX.get(),
                identity: A_IDENTITY.get(),
                endpoint_id: 1,
                flags: 0,
                mac: A_MAC,
                node_mac: A_NODE_MAC,
            },
        ),
        (
            B,
            Endpoint {
                ifindex: B_IFINDEX.get(),
                identity: B_IDENTITY.get(),
                endpoint_id: 2,
                flags: 0,
                mac: B_MAC,
                node_mac: B_NODE_MAC,
            },
        ),
    ];
    let net = |a, b| (Ipv4Addr::new(10, 0, a, 0), b);
    let rows = [
        (net(1, 24), Identity::INIT, NodeId::LOCAL),
        (net(2, 24), Identity::INIT, ID_2),
        (net(3, 24), Identity::INIT, ID_3),
        ((GATEWAY, 32), Identity::HEALTH, NodeId::LOCAL),
        ((HEALTH_2, 32), Identity::HEALTH, ID_2),
        ((NODE_1, 32), Identity::HOST, NodeId::LOCAL),
        ((NODE_2, 32), Identity::REMOTE_NODE, ID_2),
        ((NODE_3, 32), Identity::REMOTE_NODE, ID_3),
        ((A, 32), A_IDENTITY, NodeId::LOCAL),
        ((B, 32), B_IDENTITY, NodeId::LOCAL),
        ((C, 32), C_IDENTITY, ID_2),
    ];
    for family in Family::ALL {
        for (address, endpoint) in pods {
            node.set_endpoint(family.of(address), endpoint)?;
        }
        for (prefix, identity, node_id) in rows {
            node.set_prefix(family.prefix(prefix), identity, node_id)?;
        }
        for (address, id) in [(NODE_1, NodeId::LOCAL), (NODE_2, ID_2), (NODE_3, ID_3)] {
            node.set_node(family.of(address), id)?;
        }
    }
    node.set_remote(ID_2, remote(FORM_TUNNEL))?;
    node.set_remote(ID_3, remote(FORM_NONE))?;
    Ok(node)
}

/// The packet as it leaves pod A.
#[must_use]
pub fn from_a(packet: Packet) -> Packet {
    packet.macs(A_MAC, A_NODE_MAC)
}

/// UDP from A to `destination`, as it leaves A.
pub fn a_to(destination: impl Into<IpAddr>) -> Packet {
    from_a(Packet::udp((A, 1111), (destination, 2222)))
}

/// Nanoseconds of `CLOCK_MONOTONIC`, as programs read it.
pub fn now() -> Result<u64> {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(t.tv_sec().cast_unsigned() * 1_000_000_000 + t.tv_nsec().cast_unsigned())
}

/// An outcome for messages.
pub fn name(outcome: u32) -> &'static str {
    outcome_name(outcome).unwrap_or("unknown")
}

/// The headers of a frame that must have some.
///
/// # Panics
///
/// Where the frame is not of IP.
#[allow(clippy::expect_used, reason = "an assertion of tests")]
pub fn headers(frame: &[u8]) -> Headers {
    Headers::of(frame).expect("an IP frame")
}

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// Gives a flow an entry that lasts for a minute.
pub fn live(node: &mut Datapath, key: Tuple) -> Result<()> {
    node.set_flow(
        key,
        FlowEntry {
            expires_at: now()? + 60 * SECOND,
            ..FlowEntry::default()
        },
    )
}

/// Runs a packet with a mark; its outcome.
pub fn outcome(
    node: &mut Datapath,
    family: Family,
    program: Program,
    packet: &Packet,
    mark: u32,
) -> Result<u32> {
    let context = Context {
        mark,
        ..Context::default()
    };
    Ok(node
        .run(program, &packet.frame_of(family), context)?
        .decision
        .outcome)
}
