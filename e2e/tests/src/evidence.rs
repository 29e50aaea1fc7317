//! Evidence of the path a packet took: what tcpdump saw on each device, and
//! whether netfilter's hooks saw it at all.
//!
//! A [`Watch`] is set up on chosen devices and nodes, something is sent, and
//! the [`Trace`] says which device saw what. Every claim of a test or of the
//! demo about a path is a question to a trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use veer_e2e_cluster::{Capture, Family, Mac, NetfilterCounters, Packet, decode::VXLAN_PORT};

use crate::{
    client::{self, Pings},
    lab::{Lab, Mode},
    pods::{Pod, Wire},
};

/// The tunnel's device on every node.
pub const TUNNEL: &str = "veer_vxlan";
/// The nodes' uplink.
pub const UPLINK: &str = "eth0";

/// A place to watch.
#[derive(Debug, Clone)]
pub enum Place<'a> {
    /// A device of a node, or of the world.
    Node(&'a str, &'a str),
    /// A pod's eth0.
    Pod(&'a Pod),
}

/// What one wants to watch.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    devices: Vec<(String, Place<'a>, String)>,
    hooks: Vec<(String, IpAddr, IpAddr)>,
}

/// Devices and hooks that are being watched.
#[derive(Debug)]
pub struct Watch {
    captures: Vec<(String, Capture)>,
    hooks: Vec<(String, NetfilterCounters)>,
}

/// What a [`Watch`] saw.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Per device watched, by its label: its packets in order.
    pub devices: Vec<(String, Vec<Packet>)>,
    /// Per node watched: what each of its netfilter hooks counted of the pair.
    pub hooks: Vec<(String, BTreeMap<String, u64>)>,
}

impl<'a> Plan<'a> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A device, under a label; `filter` is tcpdump's.
    #[must_use]
    pub fn device(mut self, label: &str, place: Place<'a>, filter: &str) -> Self {
        self.devices
            .push((label.to_owned(), place, filter.to_owned()));
        self
    }

    /// The netfilter hooks of a node, for packets between two addresses.
    #[must_use]
    pub fn hooks(mut self, node: &str, a: IpAddr, b: IpAddr) -> Self {
        self.hooks.push((node.to_owned(), a, b));
        self
    }

    /// Starts all of it at once.
    pub fn start(self, lab: &Lab) -> Result<Watch> {
        let start = |place: &Place<'_>, filter: &str| match place {
            Place::Node(node, device) => lab.cluster.capture(node, device, filter),
            Place::Pod(pod) => lab.cluster.capture_in_pod(&pod.inner, "eth0", filter),
        };
        let start = &start;
        let captures: Result<Vec<(String, Capture)>> = thread::scope(|scope| {
            let threads: Vec<_> = self
                .devices
                .iter()
                .map(|(label, place, filter)| (label, scope.spawn(move || start(place, filter))))
                .collect();
            threads
                .into_iter()
                .map(|(label, thread)| {
                    let capture = thread.join().map_err(|_| anyhow!("a capture panicked"))?;
                    Ok((
                        label.clone(),
                        capture.with_context(|| format!("watch {label}"))?,
                    ))
                })
                .collect()
        });
        let hooks: Result<Vec<(String, NetfilterCounters)>> = self
            .hooks
            .iter()
            .map(|(node, a, b)| {
                let machine = lab.node(node)?;
                Ok((node.clone(), machine.count_netfilter(*a, *b)?))
            })
            .collect();
        Ok(Watch {
            captures: captures?,
            hooks: hooks?,
        })
    }
}

impl Watch {
    /// Ends the watch.
    pub fn stop(self) -> Result<Trace> {
        let mut trace = Trace::default();
        for (node, hooks) in self.hooks {
            trace.hooks.push((node, hooks.read()?));
        }
        for (label, capture) in self.captures {
            let packets = capture.finish().with_context(|| format!("watch {label}"))?;
            trace
                .devices
                .push((label, packets.into_iter().map(|c| c.packet).collect()));
        }
        Ok(trace)
    }
}

impl Trace {
    /// The packets of a device.
    pub fn of(&self, label: &str) -> &[Packet] {
        self.devices
            .iter()
            .find(|(l, _)| l == label)
            .map_or(&[], |(_, packets)| packets)
    }

    /// How many packets all hooks of all watched nodes saw of the pair.
    pub fn hook_passes(&self) -> u64 {
        self.hooks.iter().flat_map(|(_, h)| h.values()).sum()
    }

    /// The counters of all hooks, one line per node.
    pub fn hooks_seen(&self) -> String {
        let line = |(node, hooks): &(String, BTreeMap<String, u64>)| {
            let counts: Vec<String> = veer_e2e_cluster::HOOKS
                .iter()
                .map(|hook| format!("{hook} {}", hooks.get(*hook).copied().unwrap_or_default()))
                .collect();
            format!("{node}: {}", counts.join(", "))
        };
        self.hooks.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// All of it, for error texts.
    pub fn sight(&self) -> String {
        let mut text = String::new();
        for (label, packets) in &self.devices {
            let _infallible = write!(text, "{label}: {} packets", packets.len());
            for packet in packets.iter().take(4) {
                let _infallible = write!(text, "\n    {packet}");
            }
            text.push('\n');
        }
        text + &self.hooks_seen()
    }
}

/// The form in which pings between pods of two nodes leave the first one, by a
/// capture of nothing else, so that it may be asked under load.
pub fn form_on_wire(lab: &Lab, source: &Pod, target: &Pod) -> Result<Mode> {
    const PINGS: u32 = 3;
    let outer = lab.primary();
    let ends = (source.address, target.address);
    let filter = format!(
        "({} and src {} and dst {}) or ({})",
        echo_filter(source.address),
        ends.0,
        ends.1,
        tunnel_filter(outer, ends)?
    );
    let capture = lab.cluster.capture(&source.node, UPLINK, &filter)?;
    let answered = client::reaches(&source.site, target.address, PINGS);
    let packets = capture.finish()?;
    answered?;
    let wrapped = packets.iter().filter(|p| p.packet.vxlan.is_some()).count();
    match (wrapped, packets.len() - wrapped) {
        (0, 1..) => Ok(Mode::Native),
        (1.., 0) => Ok(Mode::Tunnel),
        (wrapped, bare) => bail!(
            "{PINGS} pings {} → {} left {} as {wrapped} packets in the tunnel and {bare} bare ones",
            source.name,
            target.name,
            source.node
        ),
    }
}

/// tcpdump's filter for echoes from an address and for nothing else of its control
/// protocol: in IPv6 it also asks for neighbours.
pub fn echo_filter(source: IpAddr) -> &'static str {
    match Family::of(source) {
        Family::V4 => "icmp",
        Family::V6 => "icmp6 and (ip6[40] = 128 or ip6[40] = 129)",
    }
}

/// tcpdump's filter for what the tunnel, whose outside is of a family, carries of the
/// control protocol from one pod to another. No keyword of it looks inside.
fn tunnel_filter(outer: Family, ends: (IpAddr, IpAddr)) -> Result<String> {
    // Octets of the tunnel's datagram: its own 8, 8 of VXLAN, 14 of Ethernet, and then
    // the inner IP header.
    const INNER: usize = 30;
    let octet = |at: usize, size: usize| match outer {
        Family::V4 => format!("udp[{}:{size}]", INNER + at),
        // tcpdump does not look for UDP's header here.
        Family::V6 => format!("ip6[{}:{size}]", 40 + INNER + at),
    };
    let (protocol, number, octets) = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => (9, 1, [from.octets(), to.octets()].concat()),
        (IpAddr::V6(from), IpAddr::V6(to)) => (6, 58, [from.octets(), to.octets()].concat()),
        (from, to) => bail!("{from} and {to} are of different families"),
    };
    // Both addresses stand at the end of either header.
    let first = match Family::of(ends.0) {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    let mut filter = format!(
        "udp port {VXLAN_PORT} and {} = {number}",
        octet(protocol, 1)
    );
    for (index, word) in octets.chunks_exact(4).enumerate() {
        let word = word.iter().fold(0_u32, |word, o| word << 8 | u32::from(*o));
        let _infallible = write!(filter, " and {} = {word:#x}", octet(first + 4 * index, 4));
    }
    Ok(filter)
}

/// Labels of the devices on the way of a ping between two pods.
pub mod at {
    /// eth0 of the pod that asks.
    pub const SOURCE_POD: &str = "source eth0";
    /// Host side of its veth.
    pub const SOURCE_VETH: &str = "source veth";
    /// Uplink of its node.
    pub const SOURCE_UPLINK: &str = "source uplink";
    /// Tunnel device of its node.
    pub const SOURCE_TUNNEL: &str = "source veer_vxlan";
    /// Uplink of the other node.
    pub const TARGET_UPLINK: &str = "target uplink";
    /// Tunnel device of the other node.
    pub const TARGET_TUNNEL: &str = "target veer_vxlan";
    /// Host side of the veth of the pod that answers.
    pub const TARGET_VETH: &str = "target veth";
    /// Its eth0.
    pub const TARGET_POD: &str = "target eth0";
}

/// A ping from pod to pod with everything on its way watched.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Address of the pod that asks.
    pub source: IpAddr,
    /// Address of the pod that answers.
    pub target: IpAddr,
    /// Its wire.
    pub source_wire: Wire,
    /// The wire of the pod that answers.
    pub target_wire: Wire,
    /// What ping said.
    pub pings: Pings,
    /// What was seen.
    pub trace: Trace,
}

/// Echo requests and replies of one walk on one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Echoes {
    /// Bare requests.
    pub requests: usize,
    /// Bare replies.
    pub replies: usize,
    /// VNIs of requests in the tunnel's packets.
    pub request_vnis: BTreeSet<u32>,
    /// VNIs of replies in the tunnel's packets.
    pub reply_vnis: BTreeSet<u32>,
    /// Requests in the tunnel's packets.
    pub wrapped_requests: usize,
    /// Replies in the tunnel's packets.
    pub wrapped_replies: usize,
    /// MACs (source, destination) around bare requests and replies.
    pub macs: BTreeSet<(Mac, Mac)>,
    /// MACs inside the tunnel's packets around requests.
    pub inner_request_macs: BTreeSet<(Mac, Mac)>,
    /// TTLs of all of them.
    pub ttls: BTreeSet<u8>,
}

impl Echoes {
    /// Whether the device saw nothing of it.
    pub fn none(&self) -> bool {
        self.requests + self.replies + self.wrapped_requests + self.wrapped_replies == 0
    }
}

impl Walk {
    /// Sends `count` pings from one pod to another under watch. One ping goes
    /// before, unwatched: who asks for whose MAC is not the question.
    pub fn ping(lab: &Lab, source: &Pod, target: &Pod, count: u32) -> Result<Self> {
        let (from, to) = (source.address, target.address);
        let echo = echo_filter(from);
        let (source_wire, target_wire) = (source.wire()?, target.wire()?);
        let _warm = client::ping(&source.site, to, 1)?;
        let uplink = format!("({echo}) or udp port {VXLAN_PORT}");
        let (near, far) = (source.node.as_str(), target.node.as_str());
        let mut plan = Plan::new()
            .device(at::SOURCE_POD, Place::Pod(source), echo)
            .device(
                at::SOURCE_VETH,
                Place::Node(near, &source_wire.host_name),
                echo,
            )
            .device(at::SOURCE_UPLINK, Place::Node(near, UPLINK), &uplink)
            .device(at::SOURCE_TUNNEL, Place::Node(near, TUNNEL), echo)
            .device(
                at::TARGET_VETH,
                Place::Node(far, &target_wire.host_name),
                echo,
            )
            .device(at::TARGET_POD, Place::Pod(target), echo)
            .hooks(near, from, to);
        if near != far {
            plan = plan
                .device(at::TARGET_UPLINK, Place::Node(far, UPLINK), &uplink)
                .device(at::TARGET_TUNNEL, Place::Node(far, TUNNEL), echo)
                .hooks(far, from, to);
        }
        let watch = plan.start(lab)?;
        let pings = client::ping(&source.site, to, count)?;
        let trace = watch.stop()?;
        Ok(Self {
            source: from,
            target: to,
            source_wire,
            target_wire,
            pings,
            trace,
        })
    }

    /// The walk's echoes on a device.
    pub fn echoes(&self, label: &str) -> Echoes {
        let mut echoes = Echoes::default();
        for packet in self.trace.of(label) {
            let inner = packet.innermost();
            let request = inner.is_echo_request() && inner.is_between(self.source, self.target);
            let reply = inner.is_echo_reply() && inner.is_between(self.target, self.source);
            if !request && !reply {
                continue;
            }
            echoes.ttls.extend(inner.ip.map(|ip| ip.ttl));
            match &packet.vxlan {
                None => {
                    let count = if request {
                        &mut echoes.requests
                    } else {
                        &mut echoes.replies
                    };
                    *count += 1;
                    echoes
                        .macs
                        .insert((packet.source_mac, packet.destination_mac));
                }
                Some(vxlan) if request => {
                    echoes.wrapped_requests += 1;
                    echoes.request_vnis.insert(vxlan.vni);
                    echoes
                        .inner_request_macs
                        .insert((inner.source_mac, inner.destination_mac));
                }
                Some(vxlan) => {
                    echoes.wrapped_replies += 1;
                    echoes.reply_vnis.insert(vxlan.vni);
                }
            }
        }
        echoes
    }

    /// The path in words, from what was seen.
    pub fn path(&self) -> String {
        let uplink = self.echoes(at::SOURCE_UPLINK);
        if uplink.wrapped_requests > 0 {
            return "VXLAN tunnel".to_owned();
        }
        if uplink.requests > 0 {
            return "native routing".to_owned();
        }
        if self.echoes(at::TARGET_POD).requests > 0 {
            return "redirect to the peer on the node".to_owned();
        }
        "nowhere".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_for_the_tunnel_names_the_octets_of_the_inner_header() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let four = (address("10.244.1.7"), address("10.244.2.9"));
        assert_eq!(
            tunnel_filter(Family::V4, four).expect("a filter"),
            "udp port 8472 and udp[39:1] = 1 and udp[42:4] = 0xaf40107 and udp[46:4] = 0xaf40209"
        );
        let six = (address("fd00::7"), address("fd00::9"));
        let filter = tunnel_filter(Family::V6, six).expect("a filter");
        assert!(
            filter.starts_with("udp port 8472 and ip6[76:1] = 58 and ip6[78:4] = 0xfd000000"),
            "{filter}"
        );
        assert!(filter.ends_with("ip6[106:4] = 0x9"), "{filter}");
        assert!(tunnel_filter(Family::V4, (four.0, six.1)).is_err());
    }
}
