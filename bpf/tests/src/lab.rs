//! Nodes with pods, made of namespaces: what the agent and the CNI plugin would
//! set up, without them.
//!
//! Node `n` is 192.0.2.n on a bridge in a namespace of its own; its pods have
//! 10.0.n.0/24 and the gateway 10.0.n.1. All have the IPv6 addresses that
//! [`Family::of`] makes of these too.

use anyhow::Result;
use aya::programs::TcAttachType::{Egress, Ingress};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    time::Duration,
};
use veer_bpf_common::{
    DEFAULT_TUNNEL_PORT, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6,
    address::{FAMILY_V4, IpKey},
    identity::Identity,
    node::NodeId,
    outcome::Program,
    tables::{Config, Endpoint, FORM_NATIVE, FORM_TUNNEL, Interface, Remote},
};

use crate::{
    datapath::Datapath,
    family::Family,
    netns::{DEADLINE, Namespace},
    world,
};

/// The node's uplink, and a pod's device.
pub const ETH0: &str = "eth0";
/// The tunnel device.
pub const VXLAN: &str = "veer_vxlan";
/// MTU of the underlay and of natively routed paths.
pub const MTU: u32 = 1500;

/// The link between nodes.
pub struct Underlay {
    bridge: Namespace,
    /// The family of what pods say to each other in the test.
    pub family: Family,
    /// The family of the tunnel's outer packets.
    pub outer: Family,
}

impl Underlay {
    /// A bridge without members.
    pub fn new(family: Family, outer: Family) -> Result<Self> {
        let bridge = Namespace::new("link")?;
        bridge.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ])?;
        bridge.ip(&["link", "set", "br0", "up"])?;
        Ok(Self {
            bridge,
            family,
            outer,
        })
    }

    /// A namespace with 192.0.2.n on the bridge.
    pub fn join(&self, n: u8, role: &str) -> Result<Namespace> {
        let host = Namespace::new(role)?;
        let port = format!("p{n}");
        self.bridge.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            ETH0,
            "netns",
            host.name(),
        ])?;
        self.bridge
            .ip(&["link", "set", &port, "master", "br0", "up"])?;
        for family in Family::ALL {
            let own = prefix(family, (node_address(n), 24));
            host.ip(&["addr", "add", &own, "dev", ETH0])?;
        }
        host.ip(&["link", "set", ETH0, "up"])?;
        Ok(host)
    }

    /// Largest packet in the tunnel.
    pub fn tunnel_mtu(&self) -> u32 {
        MTU - self.outer.pick(VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6)
    }
}

fn node_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn gateway_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, n, 1)
}

fn network(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, n, 0)
}

/// Node `n`'s address.
pub fn address(family: Family, n: u8) -> IpAddr {
    family.of(node_address(n))
}

/// Node `n`'s gateway address, which is its health address too.
pub fn gateway(family: Family, n: u8) -> IpAddr {
    family.of(gateway_address(n))
}

/// A prefix as `ip` and `nft` take it.
pub fn prefix(family: Family, prefix: (Ipv4Addr, u32)) -> String {
    let (address, bits) = family.prefix(prefix);
    format!("{address}/{bits}")
}

/// The id by which other nodes know node `n`: ids begin at 2.
pub fn id(n: u8) -> NodeId {
    world::node(u32::from(n) + 1)
}

/// A pod on a node.
pub struct Pod {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address in the family of the test.
    pub address: IpAddr,
    /// Its identity.
    pub identity: Identity,
    /// MAC of its eth0.
    pub mac: [u8; 6],
    /// MAC of the host side of its veth.
    pub node_mac: [u8; 6],
    /// Name of the host side of its veth.
    pub device: String,
}

impl Pod {
    /// A UDP socket of the pod, with a timeout for receiving.
    pub fn udp(&self, port: u16) -> Result<UdpSocket> {
        self.namespace.run(|| {
            let socket = UdpSocket::bind((any(self.address), port))?;
            socket.set_read_timeout(Some(DEADLINE))?;
            Ok(socket)
        })
    }

    /// A listening TCP socket of the pod. One serves a whole test: closed and
    /// made again, its port may be in use still, by the copy that a command
    /// started in another thread holds until it is executed.
    pub fn tcp(&self, port: u16) -> Result<TcpListener> {
        let address = (self.address, port);
        self.namespace.run(|| Ok(TcpListener::bind(address)?))
    }
}

/// The unspecified address of the same family.
pub fn any(address: IpAddr) -> IpAddr {
    Family::of_address(address).of(Ipv4Addr::UNSPECIFIED)
}

/// A node with its programs attached.
pub struct Node {
    /// Its number.
    pub n: u8,
    /// The host's namespace.
    pub namespace: Namespace,
    /// Programs and maps.
    pub datapath: Datapath,
    family: Family,
    outer: Family,
}

impl Node {
    /// A node on `link`, with all programs but XDP's attached to its devices.
    pub fn new(link: &Underlay, n: u8) -> Result<Self> {
        let mut node = Self::with_bare_uplink(link, n)?;
        let datapath = &mut node.datapath;
        node.namespace.run(|| {
            datapath.attach(Program::UplinkIngress, ETH0, Ingress)?;
            datapath.attach(Program::UplinkEgress, ETH0, Egress)
        })?;
        Ok(node)
    }

    /// The same with nothing attached to its uplink.
    pub fn with_bare_uplink(link: &Underlay, n: u8) -> Result<Self> {
        let namespace = link.join(n, &format!("node{n}"))?;
        let host = &namespace;
        for family in Family::ALL {
            let health = prefix(family, (gateway_address(n), 32));
            host.ip(&["addr", "add", &health, "dev", "lo", "scope", "host"])?;
        }
        host.ip(&[
            "link",
            "add",
            VXLAN,
            "type",
            "vxlan",
            "external",
            "dstport",
            &DEFAULT_TUNNEL_PORT.to_string(),
            "nolearning",
            // The outer packets have no checksum, which IPv6 refuses otherwise.
            "udp6zerocsumrx",
        ])?;
        let mtu = MTU.to_string();
        host.ip(&["link", "set", VXLAN, "arp", "off", "addrgenmode", "none"])?;
        host.ip(&["link", "set", VXLAN, "mtu", &mtu, "up"])?;
        let mut datapath = Datapath::load(Program::ALL)?;
        datapath.set_config(Config {
            vxlan_ifindex: host.ifindex(VXLAN)?.get(),
            tunnel_mtu: link.tunnel_mtu(),
            native_mtu: MTU,
            tunnel_port: DEFAULT_TUNNEL_PORT.to_be_bytes(),
            ..world::with_gateway(Config::default(), gateway_address(n), 24)
        })?;
        for family in Family::ALL {
            for (prefix, identity) in [
                ((network(n), 24), Identity::INIT),
                ((node_address(n), 32), Identity::HOST),
                ((gateway_address(n), 32), Identity::HEALTH),
            ] {
                datapath.set_prefix(family.prefix(prefix), identity, NodeId::LOCAL)?;
            }
            datapath.set_node(address(family, n), NodeId::LOCAL)?;
        }
        namespace.run(|| {
            datapath.attach(Program::OverlayIngress, VXLAN, Ingress)?;
            datapath.attach(Program::OverlayEgress, VXLAN, Egress)
        })?;
        Ok(Self {
            n,
            namespace,
            datapath,
            family: link.family,
            outer: link.outer,
        })
    }

    /// Adds pod number `k` and wires it.
    pub fn add_pod(&mut self, k: u8, identity: Identity) -> Result<Pod> {
        let pod = Namespace::new(&format!("pod{}{k}", self.n))?;
        let device = format!("veer{k:010}");
        let address = Ipv4Addr::new(10, 0, self.n, 10 + k);
        let host = &self.namespace;
        host.ip(&[
            "link",
            "add",
            &device,
            "type",
            "veth",
            "peer",
            "name",
            ETH0,
            "netns",
            pod.name(),
        ])?;
        host.ip(&["link", "set", &device, "up"])?;
        pod.ip(&["link", "set", ETH0, "up"])?;
        let (mac, node_mac) = (pod.mac(ETH0)?, host.mac(&device)?);
        for family in Family::ALL {
            let gateway = gateway(family, self.n).to_string();
            let own = prefix(family, (address, 32));
            pod.ip(&["addr", "add", &own, "dev", ETH0])?;
            pod.ip(&["route", "add", &gateway, "dev", ETH0, "scope", "link"])?;
            pod.ip(&["route", "add", "default", "via", &gateway])?;
            host.ip(&["route", "add", &own, "dev", &device, "scope", "link"])?;
            let own = family.of(address).to_string();
            let mac = mac_text(mac);
            host.ip(&["neigh", "add", &own, "lladdr", &mac, "dev", &device])?;
        }
        let ifindex = host.ifindex(&device)?;
        let endpoint_id = u16::from(k);
        self.datapath.set_interface(
            ifindex,
            Interface {
                identity: identity.get(),
                endpoint_id,
                mac,
                node_mac,
                v4: address.octets(),
                v6: world::octets_v6(address),
                ..Interface::default()
            },
        )?;
        let endpoint = Endpoint {
            ifindex: ifindex.get(),
            identity: identity.get(),
            endpoint_id,
            flags: 0,
            mac,
            node_mac,
        };
        for family in Family::ALL {
            let own = family.prefix((address, 32));
            self.datapath.set_endpoint(own.0, endpoint)?;
            self.datapath.set_prefix(own, identity, NodeId::LOCAL)?;
        }
        let datapath = &mut self.datapath;
        host.run(|| {
            datapath.attach(Program::PodEgress, &device, Ingress)?;
            datapath.attach(Program::PodIngress, &device, Egress)
        })?;
        Ok(Pod {
            namespace: pod,
            address: self.family.of(address),
            identity,
            mac,
            node_mac,
            device,
        })
    }

    /// Tells this node of another one, in the tunnel's form.
    pub fn know(&mut self, other: u8) -> Result<()> {
        for family in Family::ALL {
            let data = &mut self.datapath;
            for (prefix, identity) in [
                ((network(other), 24), Identity::INIT),
                ((node_address(other), 32), Identity::REMOTE_NODE),
                ((gateway_address(other), 32), Identity::HEALTH),
            ] {
                data.set_prefix(family.prefix(prefix), identity, id(other))?;
            }
            data.set_node(address(family, other), id(other))?;
            let (to, own) = (
                prefix(family, (network(other), 24)),
                address(family, self.n),
            );
            let via = address(family, other);
            let mtu = MTU - self.remote(other)?.overhead();
            // A next hop of IPv6 must not have a route by another device.
            let via = family.pick(
                format!("via {via} dev {VXLAN} onlink"),
                format!("dev {VXLAN}"),
            );
            let route = format!("route add {to} {via} src {own} mtu {mtu}");
            let route: Vec<&str> = route.split(' ').collect();
            self.namespace.ip(&route)?;
        }
        self.set_form(other, FORM_TUNNEL)
    }

    /// Tells this node of a pod on another one.
    pub fn know_pod(&mut self, other: u8, pod: &Pod) -> Result<()> {
        let bits = Family::of_address(pod.address).bits();
        self.datapath
            .set_prefix((pod.address, bits), pod.identity, id(other))
    }

    /// Writes the form of packets to another node. Both forms are accepted
    /// from it.
    pub fn set_form(&mut self, other: u8, form: u8) -> Result<()> {
        let entry = Remote {
            form,
            previous_form: if form == FORM_NATIVE {
                FORM_TUNNEL
            } else {
                FORM_NATIVE
            },
            ..self.remote(other)?
        };
        self.datapath.set_remote(id(other), entry)
    }

    /// The entry of another node in the tunnel's form, to be written with
    /// changes.
    pub fn remote(&self, other: u8) -> Result<Remote> {
        let hop = |family| *IpKey::from(address(family, other)).addr();
        let uplink = self.namespace.ifindex(ETH0)?.get();
        Ok(Remote {
            tunnel_address: hop(self.outer),
            next_hop: hop(Family::V4),
            next_hop_v6: hop(Family::V6),
            address_v4: node_address(other).octets(),
            address_v6: hop(Family::V6),
            ifindex: uplink,
            ifindex_v6: uplink,
            flags: Remote::ACCEPT_NATIVE,
            form: FORM_TUNNEL,
            previous_form: FORM_TUNNEL,
            tunnel_family: self.outer.tag(),
            next_hop_family: FAMILY_V4,
            ..Remote::default()
        })
    }

    /// How many packets the host's stack has forwarded, of both families.
    pub fn forwarded(&self) -> Result<u64> {
        self.namespace.forwarded()
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// Two nodes that know each other, with pods A (identity 1000) and B (2000) on
/// the first and C (3000) on the second.
pub struct TwoNodes {
    /// The link between them.
    pub link: Underlay,
    /// Node 1.
    pub one: Node,
    /// Node 2.
    pub two: Node,
    /// On node 1.
    pub a: Pod,
    /// On node 1.
    pub b: Pod,
    /// On node 2.
    pub c: Pod,
}

impl TwoNodes {
    /// Makes them, in the tunnel's form. Pods speak `family`, the tunnel's outer packets
    /// are `outer`.
    pub fn new(family: Family, outer: Family) -> Result<Self> {
        let link = Underlay::new(family, outer)?;
        let mut one = Node::new(&link, 1)?;
        let mut two = Node::new(&link, 2)?;
        let a = one.add_pod(1, world::identity(1000))?;
        let b = one.add_pod(2, world::identity(2000))?;
        let c = two.add_pod(1, world::identity(3000))?;
        one.know(2)?;
        two.know(1)?;
        one.know_pod(2, &c)?;
        two.know_pod(1, &a)?;
        two.know_pod(1, &b)?;
        Ok(Self {
            link,
            one,
            two,
            a,
            b,
            c,
        })
    }

    /// Both directions in this form.
    pub fn set_form(&mut self, form: u8) -> Result<()> {
        self.one.set_form(2, form)?;
        self.two.set_form(1, form)
    }

    /// What each node's programs counted, for messages.
    pub fn counted(&mut self) -> Result<String> {
        let mut text = String::new();
        for node in [&mut self.one, &mut self.two] {
            for program in Program::ALL {
                let counted = node.datapath.counted(*program)?;
                if !counted.is_empty() {
                    writeln!(text, "node {} {}: {counted:?}", node.n, program.name())?;
                }
            }
        }
        Ok(text)
    }
}

/// Sends `there` from one socket to the other and `back` again; what arrived
/// last, and from where.
pub fn exchange(
    client: &UdpSocket,
    server: &UdpSocket,
    to: (IpAddr, u16),
) -> Result<(Vec<u8>, std::net::SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    client.send_to(b"there", to)?;
    let (n, from) = server
        .recv_from(&mut buffer)
        .map_err(|e| anyhow::anyhow!("the request did not arrive: {e}"))?;
    anyhow::ensure!(&buffer[..n] == b"there", "another request arrived");
    server.send_to(b"back", from)?;
    let (n, from) = client
        .recv_from(&mut buffer)
        .map_err(|e| anyhow::anyhow!("the reply did not arrive: {e}"))?;
    Ok((buffer[..n].to_vec(), from))
}

/// A timeout short enough to show that nothing comes.
pub const SILENCE: Duration = Duration::from_millis(200);
