//! veer's pinned maps as bpftool dumps them, decoded by the documented layout
//! (maps-v5): addresses, ports and MACs in network byte order, integers in the
//! machine's. Nothing of the product's code is used, so a mistake there cannot
//! hide here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use veer_e2e_cluster::{Family, Mac, Machine};

/// Where the links are pinned, by device and direction.
const LINKS: &str = "/sys/fs/bpf/veer/links";
/// `BPF_LINK_TYPE_TCX` (`include/uapi/linux/bpf.h`), for which older bpftools
/// have no name.
const TCX: u64 = 11;

/// Where the maps of layout 5 are pinned.
pub const PINS: &str = "/sys/fs/bpf/veer/maps-v5";
/// Outcomes of one program in COUNTERS; drop reasons begin at 128.
const OUTCOMES: u32 = 192;
/// First number of a drop reason.
const FIRST_DROP: u32 = 128;

/// Programs in the order of COUNTERS.
pub const PROGRAMS: [&str; 7] = [
    "pod_egress",
    "pod_ingress",
    "overlay_ingress",
    "overlay_egress",
    "uplink_ingress",
    "uplink_egress",
    "uplink_xdp",
];

/// Where another node's entry has the number of the epoch that wrote it: higher
/// after each change of mode, whatever the mode.
pub const REMOTE_EPOCH: std::ops::Range<usize> = 48..52;

/// Node id of the node itself in the ipcache.
pub const LOCAL_NODE: u32 = 1;

/// A local pod (map ENDPOINTS).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// One of its addresses.
    pub address: IpAddr,
    /// Interface index of the host side of its veth.
    pub ifindex: u32,
    /// Its identity.
    pub identity: u32,
    /// Its number on the node.
    pub id: u16,
    /// MAC of its eth0.
    pub mac: Mac,
    /// MAC of the host side.
    pub node_mac: Mac,
}

/// A row of the map IPCACHE.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpcacheRow {
    /// Base address.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u32,
    /// Identity.
    pub identity: u32,
    /// 1: this node; from 2: another one, by this agent's count; 0: none.
    pub node_id: u32,
}

impl IpcacheRow {
    /// Whether it is of one address, not of a block.
    pub fn is_whole(&self) -> bool {
        self.prefix == u32::from(Family::of(self.address).bits())
    }
}

/// Another node (map REMOTES).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Outer destination in the tunnel.
    pub tunnel_address: IpAddr,
    /// 1: tunnel, 2: native.
    pub form: u8,
}

/// One entry of a dump: key and value in octets.
type Entry = (Vec<u8>, Vec<u8>);

fn octets(value: &Value) -> Result<Vec<u8>> {
    let list = value.as_array().context("bpftool printed no octets")?;
    list.iter()
        .map(|o| {
            let text = o.as_str().context("an octet is a string")?;
            u8::from_str_radix(text.trim_start_matches("0x"), 16).context("an octet")
        })
        .collect()
}

fn bpftool(node: &Machine, words: &[&str]) -> Result<Value> {
    let mut all = vec!["bpftool", "-j"];
    all.extend(words);
    let out = node.exec(&all)?;
    serde_json::from_str(&out.stdout)
        .with_context(|| format!("bpftool {} on {}", words.join(" "), node.name()))
}

/// All entries of a map that has one value per key.
pub fn dump(node: &Machine, map: &str) -> Result<Vec<Entry>> {
    let path = format!("{PINS}/{map}");
    let entries = bpftool(node, &["map", "dump", "pinned", &path])?;
    let list = entries.as_array().context("bpftool printed no list")?;
    list.iter()
        .map(|e| Ok((octets(&e["key"])?, octets(&e["value"])?)))
        .collect()
}

fn u32_of(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    four.map(u32::from_ne_bytes)
        .ok_or_else(|| anyhow!("a value of {} octets is too short", bytes.len()))
}

fn u64_of(bytes: &[u8], at: usize) -> Result<u64> {
    let eight = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    eight
        .map(u64::from_ne_bytes)
        .ok_or_else(|| anyhow!("a value of {} octets is too short", bytes.len()))
}

fn mac_of(bytes: &[u8], at: usize) -> Result<Mac> {
    let six = bytes.get(at..at + 6).and_then(|b| b.try_into().ok());
    six.map(Mac)
        .ok_or_else(|| anyhow!("a value of {} octets is too short", bytes.len()))
}

/// The address of family 4 or 6 that begins at `at`, where there are 16 octets for it.
fn address_of(bytes: &[u8], at: usize, family: u8) -> Result<IpAddr> {
    let all: Option<[u8; 16]> = bytes.get(at..at + 16).and_then(|b| b.try_into().ok());
    let all = all.context("an address is cut short")?;
    match family {
        4 => Ok(Ipv4Addr::new(all[0], all[1], all[2], all[3]).into()),
        6 => Ok(Ipv6Addr::from(all).into()),
        _ => Err(anyhow!("an address of the family {family}")),
    }
}

/// A key that is an address behind its family's tag, from `at` on.
fn tagged(key: &[u8], at: usize) -> Result<IpAddr> {
    let family = *key.get(at).context("a key is cut short")?;
    address_of(key, at + 4, family)
}

/// An address as a key has it.
pub fn key(address: IpAddr) -> [u8; 20] {
    let mut key = [0; 20];
    match address {
        IpAddr::V4(address) => {
            key[0] = 4;
            key[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            key[0] = 6;
            key[4..].copy_from_slice(&address.octets());
        }
    }
    key
}

/// The addresses of a node's pods.
pub fn endpoints(node: &Machine) -> Result<Vec<Endpoint>> {
    let mut rows = Vec::new();
    for (key, value) in dump(node, "ENDPOINTS")? {
        let id = value.get(8..10).and_then(|b| b.try_into().ok());
        rows.push(Endpoint {
            address: tagged(&key, 0)?,
            ifindex: u32_of(&value, 0)?,
            identity: u32_of(&value, 4)?,
            id: id
                .map(u16::from_ne_bytes)
                .context("an endpoint is cut short")?,
            mac: mac_of(&value, 12)?,
            node_mac: mac_of(&value, 18)?,
        });
    }
    rows.sort();
    Ok(rows)
}

/// The rows of a node's ipcache.
pub fn ipcache(node: &Machine) -> Result<Vec<IpcacheRow>> {
    let mut rows = Vec::new();
    for (key, value) in dump(node, "IPCACHE")? {
        // Prefix length first (tag of 32 bits included), then the tagged address.
        let length = u32_of(&key, 0)?;
        rows.push(IpcacheRow {
            address: tagged(&key, 4)?,
            prefix: length
                .checked_sub(32)
                .context("a prefix shorter than its tag")?,
            identity: u32_of(&value, 0)?,
            node_id: u32_of(&value, 4)?,
        });
    }
    rows.sort();
    Ok(rows)
}

/// The entry of another node, by its id in the ipcache.
pub fn remote(node: &Machine, id: u32) -> Result<Remote> {
    let path = format!("{PINS}/REMOTES");
    let key: Vec<String> = id.to_ne_bytes().iter().map(u8::to_string).collect();
    let mut words = vec!["map", "lookup", "pinned", &path, "key"];
    words.extend(key.iter().map(String::as_str));
    let entry = bpftool(node, &words)?;
    let value = octets(&entry["value"])?;
    Ok(Remote {
        tunnel_address: address_of(&value, 8, *value.get(54).context("a remote is cut short")?)?,
        form: *value.get(52).context("a remote is cut short")?,
    })
}

/// Packets that one program of a node ended with one outcome, over all CPUs.
pub fn counter(node: &Machine, program: &str, outcome: u32) -> Result<u64> {
    let number = PROGRAMS
        .iter()
        .position(|p| *p == program)
        .and_then(|p| u32::try_from(p).ok())
        .with_context(|| format!("no program {program}"))?;
    let index = number * OUTCOMES + outcome;
    let path = format!("{PINS}/COUNTERS");
    let key: Vec<String> = index.to_ne_bytes().iter().map(u8::to_string).collect();
    let mut words = vec!["map", "lookup", "pinned", &path, "key"];
    words.extend(key.iter().map(String::as_str));
    let entry = bpftool(node, &words)?;
    let cpus = entry["values"].as_array().context("no values per CPU")?;
    cpus.iter().map(|c| u64_of(&octets(&c["value"])?, 0)).sum()
}

/// Until when the programs tell their decisions, by their clock in nanoseconds (map
/// LISTEN); 0: nobody listens.
pub fn listens_until(node: &Machine) -> Result<u64> {
    let entries = dump(node, "LISTEN")?;
    let (_, value) = entries.first().context("LISTEN has no entry")?;
    u64_of(value, 0)
}

/// Packets that one program of a node dropped, for whatever reason.
pub fn drops(node: &Machine, program: &str) -> Result<u64> {
    drops_of(node, |number| {
        PROGRAMS.get(number).is_some_and(|p| *p == program)
    })
}

/// Packets that all programs of a node dropped, for whatever reason.
pub fn all_drops(node: &Machine) -> Result<u64> {
    drops_of(node, |_| true)
}

/// Packets dropped by those programs whose place in [`PROGRAMS`] `which` wants.
fn drops_of(node: &Machine, which: impl Fn(usize) -> bool) -> Result<u64> {
    let path = format!("{PINS}/COUNTERS");
    let entries = bpftool(node, &["map", "dump", "pinned", &path])?;
    let mut sum = 0;
    for entry in entries.as_array().context("bpftool printed no list")? {
        let index = u32_of(&octets(&entry["key"])?, 0)?;
        let of_which = which(usize::try_from(index / OUTCOMES)?);
        if of_which && index % OUTCOMES >= FIRST_DROP {
            for cpu in entry["values"].as_array().context("no values per CPU")? {
                sum += u64_of(&octets(&cpu["value"])?, 0)?;
            }
        }
    }
    Ok(sum)
}

/// A program on a hook of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// Whether it runs as machine code.
    pub jited: bool,
    /// Whether its return code is the verdict: always with tcx, by its flag in
    /// a filter of clsact.
    pub direct_action: bool,
}

/// The names of all programs of a node by the pins of their links.
pub fn programs(node: &Machine) -> Result<Vec<(String, String)>> {
    let links = bpftool(node, &["-f", "link", "show"])?;
    let links = links.as_array().context("bpftool printed no list")?;
    let programs = bpftool(node, &["prog", "show"])?;
    let programs = programs.as_array().context("bpftool printed no list")?;
    let mut all = Vec::new();
    for link in links {
        let program = programs.iter().find(|p| p["id"] == link["prog_id"]);
        let program = program
            .and_then(|p| p["name"].as_str())
            .unwrap_or("nothing");
        for pin in link["pinned"].as_array().into_iter().flatten() {
            let pin = pin.as_str().and_then(|p| p.strip_prefix(LINKS));
            if let Some(pin) = pin {
                all.push((pin.trim_start_matches('/').to_owned(), program.to_owned()));
            }
        }
    }
    Ok(all)
}

/// veer's program on a device of a node; `direction` is `ingress` or `egress`.
pub fn attached(node: &Machine, device: &str, direction: &str) -> Result<Attached> {
    let pin = format!("{LINKS}/{device}-{direction}");
    let (id, direct_action) = if node.exec_any(&["test", "-e", &pin])?.code == 0 {
        let link = bpftool(node, &["link", "show", "pinned", &pin])?;
        let tcx = link["type"] == "tcx" || link["type"] == TCX;
        (link["prog_id"].as_u64(), tcx)
    } else {
        let net = bpftool(node, &["net", "show", "dev", device])?;
        let hook = net[0]["tc"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|a| a["kind"].as_str().is_some_and(|k| k.contains(direction)));
        let filters = node.exec(&["tc", "filter", "show", "dev", device, direction])?;
        (
            hook.and_then(|h| h["id"].as_u64()),
            filters.stdout.contains("direct-action"),
        )
    };
    let id = id.with_context(|| format!("no program on the {direction} of {device}"))?;
    let program = bpftool(node, &["prog", "show", "id", &id.to_string()])?;
    Ok(Attached {
        name: program["name"].as_str().unwrap_or_default().to_owned(),
        id,
        jited: program["jited"] == true,
        direct_action,
    })
}

/// Numbers of the drop reasons that tests look for.
pub mod reason {
    /// Source MAC is not the pod's.
    pub const SPOOFED_MAC: u32 = 131;
    /// Source address is not the pod's.
    pub const SPOOFED_ADDRESS: u32 = 132;
    /// Outer source of a tunnel packet is no node.
    pub const TUNNEL_SOURCE_NOT_NODE: u32 = 135;
    /// Inner source is not of the node that sent the tunnel packet.
    pub const TUNNEL_SOURCE_NOT_ON_NODE: u32 = 136;
    /// A VNI that no sender writes.
    pub const RESERVED_VNI: u32 = 137;
    /// A bare packet claims a pod from which none is accepted.
    pub const NATIVE_NOT_ACCEPTED: u32 = 138;
    /// A packet from outside claims one of the node's own pods.
    pub const OWN_SOURCE_FROM_OUTSIDE: u32 = 139;
    /// A pod sends to the tunnel port of a node.
    pub const TUNNEL_PORT_FROM_POD: u32 = 142;
    /// A pod asks for the hardware address of something else than its gateway.
    pub const NEIGHBOUR_NOT_GATEWAY: u32 = 144;
    /// A destination that no pod network carries.
    pub const UNSUPPORTED_DESTINATION: u32 = 146;
    /// A source that the user denies.
    pub const DENIED_PREFIX: u32 = 147;
    /// A router advertisement of a pod.
    pub const ROUTER_ADVERTISEMENT: u32 = 148;
    /// An `ICMPv6` redirect of a pod.
    pub const REDIRECT: u32 = 149;
    /// A neighbour message of a pod for an address that it does not have.
    pub const FOREIGN_NEIGHBOUR: u32 = 150;
    /// An IPv6 routing header.
    pub const ROUTING_HEADER: u32 = 151;
    /// More IPv6 extension headers than are read.
    pub const TOO_MANY_HEADERS: u32 = 152;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_an_address_of_the_family_that_its_tag_says() {
        for text in ["10.244.1.7", "fd00::9"] {
            let address: IpAddr = text.parse().expect("an address");
            let key = key(address);
            assert_eq!(tagged(&key, 0).expect("a key"), address);
            assert!(tagged(&key, 1).is_err(), "no family has the tag 0");
            assert!(tagged(&key[..19], 0).is_err(), "cut short");
        }
    }
}
