//! Every kind of packet that claims to come from where it cannot come from, sent to a
//! node on the wire: none may arrive anywhere, and each must be counted.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Family, Mac, Machine, Underlay, await_condition};

use crate::{
    blocks, client,
    forge::{self, Receiver},
    lab::Mode,
    maps, pods,
    scene::Scene,
    site::Site,
    workloads::{STARTED, UDP},
};

/// The node that they are sent to, and another one.
const NODE: &str = "worker1";
const OTHER: &str = "worker2";
/// Devices that the suite makes: one end in the world, one on the node, and a bridge
/// there. No uplink is called so.
const OUTER: &str = "e2e-stranger";
const INNER: &str = "e2e-door";
const BRIDGE: &str = "e2e-bridge";

/// The node's address on such a device with the prefix length, and an honest one of its
/// neighbour's.
fn link(family: Family) -> (&'static str, IpAddr) {
    match family {
        Family::V4 => ("172.31.251.2/24", Ipv4Addr::new(172, 31, 251, 1).into()),
        Family::V6 => (
            "fd76:6565:7201::2/64",
            Ipv6Addr::new(0xfd76, 0x6565, 0x7201, 0, 0, 0, 0, 1).into(),
        ),
    }
}

/// How packets enter the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// By its uplink, from a stranger on the same link.
    Uplink,
    /// By a veth of the node's that is none of veer's.
    Veth,
    /// The same with the veth in a bridge, as docker0 is one.
    Bridge,
}

/// Who they claim to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    RemotePod,
    RemoteHealth,
    OwnPod,
    OwnHealth,
}

impl Claim {
    const ALL: [Self; 4] = [
        Self::RemotePod,
        Self::RemoteHealth,
        Self::OwnPod,
        Self::OwnHealth,
    ];

    fn address(self, scene: &Scene) -> Result<IpAddr> {
        let health = |node| blocks::health(&scene.lab.pod_cidr(node, scene.family)?);
        match self {
            Self::RemotePod => Ok(scene.other_on(OTHER)?.address),
            Self::RemoteHealth => health(OTHER),
            Self::OwnPod => Ok(scene.other_on(NODE)?.address),
            Self::OwnHealth => health(NODE),
        }
    }

    /// Whether such packets cannot be told from honest ones: nodes send bare packets
    /// while the native form is accepted, and they arrive by the uplink.
    fn is_believed(self, mode: Mode, entry: Entry) -> bool {
        let remote = matches!(self, Self::RemotePod | Self::RemoteHealth);
        remote && entry == Entry::Uplink && mode != Mode::Tunnel
    }
}

/// Who they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Pod,
    Node,
    ClusterIp,
    NodePort,
    World,
}

impl Target {
    const ALL: [Self; 5] = [
        Self::Pod,
        Self::Node,
        Self::ClusterIp,
        Self::NodePort,
        Self::World,
    ];
}

/// Where frames enter the node. What was made for it goes when this is dropped.
struct Door {
    node: Site,
    world: Site,
    entry: Entry,
    device: &'static str,
    from: Mac,
    to: Mac,
}

fn mac_of(site: &Site, device: &str) -> Result<Mac> {
    let links = pods::links(site)?;
    let link = links.iter().find(|l| l.name == device);
    Ok(link
        .with_context(|| format!("{} has no {device}", site.name))?
        .mac)
}

impl Door {
    fn open(scene: &Scene, entry: Entry) -> Result<Self> {
        let machine = scene.lab.node(NODE)?;
        let mut door = Self {
            node: Site::of_machine(&machine)?,
            world: scene.lab.world()?,
            entry,
            device: if entry == Entry::Uplink {
                "eth0"
            } else {
                OUTER
            },
            from: Mac::default(),
            to: Mac::default(),
        };
        let inner = match entry {
            Entry::Uplink => "eth0",
            Entry::Veth => INNER,
            Entry::Bridge => BRIDGE,
        };
        if entry != Entry::Uplink {
            door.make(scene, &machine, inner)?;
        }
        door.from = mac_of(&door.world, door.device)?;
        door.to = mac_of(&door.node, inner)?;
        Ok(door)
    }

    fn make(&self, scene: &Scene, machine: &Machine, inner: &str) -> Result<()> {
        // What a run that was cut short left.
        self.remove();
        let init = machine.init()?.to_string();
        let ip = |site: &Site, words: &[&str]| site.exec(&[&["ip"], words].concat());
        // Where the id of the node's process means something.
        scene.lab.cluster.world().network_exec(&[
            "ip", "link", "add", OUTER, "type", "veth", "peer", "name", INNER, "netns", &init,
        ])?;
        if inner == BRIDGE {
            ip(&self.node, &["link", "add", BRIDGE, "type", "bridge"])?;
            ip(&self.node, &["link", "set", INNER, "master", BRIDGE, "up"])?;
        }
        let add = ["address", "add", link(scene.family).0, "dev", inner];
        ip(&self.node, &[&add, scene.family.flags()].concat())?;
        ip(&self.node, &["link", "set", inner, "up"])?;
        ip(&self.world, &["link", "set", OUTER, "up"])?;
        // A bridge forwards from the moment on at which its port does.
        await_condition("the device of a stranger is up", STARTED, || {
            let text = |e: anyhow::Error| format!("{e:#}");
            let state = ip(&self.node, &["-o", "link", "show", inner]).map_err(text)?;
            Ok(state.stdout.contains("LOWER_UP").then_some(()))
        })?;
        Ok(())
    }

    fn remove(&self) {
        if self.entry != Entry::Uplink {
            let _gone = self.world.exec_any(&["ip", "link", "del", OUTER]);
            let _gone = self.node.exec_any(&["ip", "link", "del", BRIDGE]);
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What the suite sent and saw refused.
#[derive(Debug, Clone, Copy, Default)]
pub struct Refused {
    /// Kinds of packets.
    pub kinds: u32,
    /// Packets of all of them.
    pub packets: u64,
}

/// Packets that the rules of the table `inet veer` counted: those that drop have
/// counters.
fn counted_by_rules(node: &Machine) -> Result<u64> {
    let out = node.exec(&["nft", "-j", "list", "table", "inet", "veer"])?;
    let list: Value = serde_json::from_str(&out.stdout).context("nft -j")?;
    let objects = list["nftables"].as_array().context("nft printed no list")?;
    let of_objects = objects
        .iter()
        .filter_map(|o| o["counter"]["packets"].as_u64());
    let of_rules = objects
        .iter()
        .filter_map(|o| o["rule"]["expr"].as_array())
        .flatten()
        .filter_map(|e| e["counter"]["packets"].as_u64());
    Ok(of_objects.chain(of_rules).sum())
}

/// Packets that a node dropped, for whatever reason.
fn counted(node: &Machine) -> Result<u64> {
    Ok(maps::all_drops(node)? + counted_by_rules(node)?)
}

/// Packets that `veer metrics list` says the node dropped.
fn listed(scene: &Scene) -> Result<u64> {
    let rows = scene.lab.veer_json(NODE, &["metrics", "list"])?;
    let rows = rows.as_array().context("metrics without rows")?;
    let drops = rows.iter().filter(|r| r["drop"] == true);
    Ok(drops.filter_map(|r| r["packets"].as_u64()).sum())
}

/// Everything that packets could arrive at.
struct Stage<'a> {
    scene: &'a Scene,
    node: Machine,
    at_pod: Receiver,
    at_node: Receiver,
    at_world: Receiver,
}

impl<'a> Stage<'a> {
    fn new(scene: &'a Scene) -> Result<Self> {
        let any = SocketAddr::from((scene.family.unspecified(), 0));
        let outside = SocketAddr::from((scene.family.outside(), 0));
        Ok(Self {
            scene,
            node: scene.lab.node(NODE)?,
            at_pod: Receiver::device(&scene.fixed_on(NODE)?.site, "eth0")?,
            at_node: Receiver::socket(&scene.lab.node_site(NODE)?, any)?,
            at_world: Receiver::socket(&scene.lab.world()?, outside)?,
        })
    }

    /// Forged datagrams that arrived anywhere since the last call.
    fn arrived(&self) -> Result<u64> {
        Ok(self.at_pod.drain()? + self.at_node.drain()? + self.at_world.drain()?)
    }

    fn address(&self, target: Target) -> Result<(IpAddr, u16)> {
        let pod = self.scene.fixed_on(NODE)?;
        let node = self.scene.address(NODE)?;
        let service = || self.scene.service(&pod.name, "udp");
        Ok(match target {
            Target::Pod => (pod.address, UDP),
            Target::Node => (node, self.at_node.port()),
            Target::ClusterIp => (service()?.address, service()?.port),
            Target::NodePort => (node, service()?.node_port),
            Target::World => (self.scene.family.outside(), self.at_world.port()),
        })
    }

    /// Honest packets arrive: a suite that sees nothing would prove nothing.
    fn sees_honest_packets(&self, door: &Door) -> Result<()> {
        let honest = match door.entry {
            Entry::Uplink => forge::own_source(&door.world, self.scene.address(NODE)?)?,
            Entry::Veth | Entry::Bridge => link(self.scene.family).1,
        };
        for target in [Target::Node, Target::NodePort] {
            for tagged in [false, true] {
                let (to, port) = self.address(target)?;
                let packet = forge::datagram(honest, to, port)?;
                let frame = forge::frame(door.from, door.to, tagged, &packet);
                forge::burst(&door.world, door.device, &frame, 1)?;
                self.await_one()
                    .with_context(|| format!("{honest} to {target:?}, tagged: {tagged}"))?;
            }
        }
        let (to, port) = self.address(Target::World)?;
        let pod = &self.scene.fixed_on(NODE)?.site;
        pod.within(|| {
            let socket = client::udp_socket(to)?;
            Ok(socket.send_to(forge::TEXT, (to, port))?)
        })?;
        self.await_one().context("a pod to the world")
    }

    fn await_one(&self) -> Result<()> {
        await_condition("an honest packet arrives", STARTED, || {
            let arrived = self.arrived().map_err(|e| format!("{e:#}"))?;
            Ok((arrived > 0).then_some(()))
        })?;
        Ok(())
    }

    /// Sends `count` packets of one kind: all must be counted and none arrive.
    fn refuses(&self, door: &Door, frame: &[u8], count: u64) -> Result<()> {
        let before = counted(&self.node)?;
        forge::burst(&door.world, door.device, frame, count)?;
        let text = |e: anyhow::Error| format!("{e:#}");
        let outcome = await_condition("all are counted as dropped", COUNTED, || {
            let arrived = self.arrived().map_err(text)?;
            if arrived > 0 {
                return Ok(Some(Err(anyhow!("{arrived} of {count} arrived"))));
            }
            let rose = counted(&self.node).map_err(text)? - before;
            if rose >= count {
                Ok(Some(Ok(())))
            } else {
                Err(format!("{rose} of {count}"))
            }
        })?;
        outcome?;
        let late = self.arrived()?;
        ensure!(late == 0, "{late} of {count} arrived");
        Ok(())
    }
}

/// How long counters may take. They are written as the packets are dropped.
const COUNTED: Duration = Duration::from_secs(30);
/// Enough to know what is open; each costs up to that.
const ENOUGH: usize = 4;

/// Sends `count` packets of every kind to a node by an entry. It is an error when one
/// arrives, or was not counted.
pub fn refused(scene: &Scene, entry: Entry, count: u64) -> Result<Refused> {
    let underlay = scene.lab.cluster.state().config.underlay;
    if entry == Entry::Uplink && underlay != Underlay::Bridge {
        eprintln!("forged: no stranger is on a node's link where a router is between; left out");
        return Ok(Refused::default());
    }
    let stage = Stage::new(scene)?;
    let door = Door::open(scene, entry)?;
    stage.sees_honest_packets(&door)?;
    let listed_before = listed(scene)?;
    let mut refused = Refused::default();
    let mut failed: Vec<String> = Vec::new();
    for claim in Claim::ALL {
        if claim.is_believed(scene.mode, entry) {
            continue;
        }
        let source = claim.address(scene)?;
        for target in Target::ALL {
            let (to, port) = stage.address(target)?;
            let packet = forge::datagram(source, to, port)?;
            for tagged in [false, true] {
                let frame = forge::frame(door.from, door.to, tagged, &packet);
                refused.kinds += 1;
                refused.packets += count;
                if let Err(error) = stage.refuses(&door, &frame, count) {
                    let tag = if tagged { ", tagged" } else { "" };
                    failed.push(format!("{claim:?} to {target:?}{tag}: {error:#}"));
                }
                if failed.len() >= ENOUGH {
                    bail!("by {entry:?}, the first of more:\n{}", failed.join("\n"));
                }
            }
        }
    }
    ensure!(failed.is_empty(), "by {entry:?}:\n{}", failed.join("\n"));
    let rose = listed(scene)? - listed_before;
    ensure!(
        rose >= refused.packets,
        "{} were dropped, `veer metrics list` counts {rose}",
        refused.packets
    );
    Ok(refused)
}
