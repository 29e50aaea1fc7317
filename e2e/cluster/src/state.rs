//! What is remembered of a cluster between two calls: its configuration and
//! its nodes. Processes are not remembered; they are found by their control
//! group.

use std::{fs, net::Ipv4Addr, os::unix::fs::MetadataExt};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, IoContext, Result},
    family::{Families, Family},
    paths::{Paths, STATE_ROOT},
};

/// The network between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// All nodes and the world on one link.
    Bridge,
    /// Each node and the world on a link of its own, a router between them.
    Router,
}

/// How kube-proxy translates services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// By nftables.
    Nftables,
    /// By iptables.
    Iptables,
    /// No kube-proxy at all.
    None,
}

/// What a cluster is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// The name: 1 to 20 lower-case letters and digits. Everything made
    /// carries it.
    pub name: String,
    /// Nodes beside the control plane's, 0 to 20.
    pub workers: u8,
    /// The network between the nodes.
    pub underlay: Underlay,
    /// MTU of the underlay's links in bytes.
    pub mtu: u16,
    /// kube-proxy's mode.
    pub proxy_mode: ProxyMode,
    /// How the names of pods' devices on a node begin: by them kube-proxy knows its
    /// own node's pods. `None`: by the addresses of the cluster's pods, as kubeadm
    /// sets it up, which takes those of other nodes for its own node's.
    #[serde(default)]
    pub pod_devices: Option<String>,
    /// Whether each node has a second uplink, eth1, in a network of its own.
    pub second_uplink: bool,
    /// Zones that the workers belong to in turn, by their label; 0: no worker has
    /// one.
    #[serde(default)]
    pub zones: u8,
    /// The address families of nodes and services.
    #[serde(default, skip_serializing_if = "Families::is_default")]
    pub families: Families,
}

impl Config {
    /// Two workers on one link with an MTU of 1500, IPv4 alone.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            workers: 2,
            underlay: Underlay::Bridge,
            mtu: 1500,
            proxy_mode: ProxyMode::Nftables,
            pod_devices: None,
            second_uplink: false,
            zones: 0,
            families: Families::default(),
        }
    }

    /// The zone of the node with this number: the first worker's is `zone1`, and
    /// the control plane's node has none.
    pub(crate) fn zone(&self, number: u8) -> Option<String> {
        let worker = number.checked_sub(2)?;
        let zone = worker.checked_rem(self.zones)?;
        Some(format!("zone{}", zone + 1))
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        if self.workers > 20 {
            return Err(Error::State(format!(
                "{} workers: at most 20",
                self.workers
            )));
        }
        // RFC 791, RFC 8200: below, the kernel takes the family off the link.
        let least = if self.families.has(Family::V6) {
            1280
        } else {
            576
        };
        if self.mtu < least {
            return Err(Error::State(format!(
                "an MTU of {}: at least {least}",
                self.mtu
            )));
        }
        Ok(())
    }
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= 20
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if good {
        return Ok(());
    }
    Err(Error::State(format!(
        "the name {name:?} of a cluster or node: take 1 to 20 lower-case letters and digits"
    )))
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs the control plane, and a kubelet.
    ControlPlane,
    /// Runs a kubelet.
    Worker,
    /// Has a Node object and no kubelet: the harness calls the CNI plugins, and tests
    /// start what else they need.
    Light,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name, as Kubernetes knows it.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// 1 for the first node; chooses the link in a router underlay.
    pub number: u8,
    /// Its address on eth0, in the plan of the underlay: [`Families`] tells in which
    /// families it has it.
    pub address: Ipv4Addr,
}

/// A cluster as recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// What it was asked to be.
    pub config: Config,
    /// Distinguishes the addresses of clusters on one machine.
    pub index: u8,
    /// All nodes, the control plane's first.
    pub nodes: Vec<NodeInfo>,
}

impl State {
    pub(crate) fn load(paths: &Paths) -> Result<Self> {
        let path = paths.state();
        let text = fs::read(&path).what(|| {
            format!(
                "read {}: is there a cluster {}? veer-cluster up {} makes it",
                path.display(),
                paths.cluster(),
                paths.cluster()
            )
        })?;
        serde_json::from_slice(&text).map_err(|source| Error::Json {
            what: path.display().to_string(),
            source,
        })
    }

    pub(crate) fn save(&self, paths: &Paths) -> Result<()> {
        let path = paths.state();
        let text = serde_json::to_vec_pretty(self).map_err(|source| Error::Json {
            what: path.display().to_string(),
            source,
        })?;
        let temporary = path.with_extension("new");
        fs::write(&temporary, text).what(|| format!("write {}", temporary.display()))?;
        fs::rename(&temporary, &path).what(|| format!("write {}", path.display()))
    }

    pub(crate) fn node(&self, name: &str) -> Result<&NodeInfo> {
        self.nodes.iter().find(|n| n.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
            Error::State(format!("no node {name}; there are {}", names.join(", ")))
        })
    }

    /// The node that runs the control plane.
    pub(crate) fn control(&self) -> Result<&NodeInfo> {
        self.nodes
            .iter()
            .find(|n| n.role == Role::ControlPlane)
            .ok_or_else(|| Error::State("the cluster has no control plane node".to_owned()))
    }
}

/// A lock on the names and indices of clusters, held until dropped.
pub(crate) fn lock() -> Result<fs::File> {
    let path = format!("{STATE_ROOT}/.lock");
    loop {
        fs::create_dir_all(STATE_ROOT).what(|| format!("make {STATE_ROOT}"))?;
        let file = fs::File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)
            .what(|| format!("open {path}"))?;
        file.lock().what(|| format!("lock {path}"))?;
        let held = file.metadata().what(|| format!("look at {path}"))?.ino();
        // Who removed the last cluster removed the file too, while we waited.
        if fs::metadata(&path).is_ok_and(|there| there.ino() == held) {
            return Ok(file);
        }
    }
}

/// A limit of the whole machine that a dozen nodes exceed: a kubelet holds
/// seven, and the default is 128.
const INOTIFY: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Enough for every cluster that fits into memory.
const INOTIFY_NEEDED: u32 = 2048;

/// Raises the machine's limits as far as needed and notes what they were.
/// Call under [`lock`].
pub(crate) fn raise_limits() -> Result<()> {
    let old = fs::read_to_string(INOTIFY).what(|| format!("read {INOTIFY}"))?;
    if old.trim().parse::<u32>().is_ok_and(|n| n < INOTIFY_NEEDED) {
        let note = format!("{STATE_ROOT}/.inotify");
        fs::write(&note, &old).what(|| format!("write {note}"))?;
        let new = INOTIFY_NEEDED.to_string();
        fs::write(INOTIFY, new).what(|| format!("write {INOTIFY}"))?;
    }
    Ok(())
}

/// After the last cluster: restores the limits and removes what is left. Call
/// under [`lock`].
pub(crate) fn forget_all() {
    let note = format!("{STATE_ROOT}/.inotify");
    if let Ok(old) = fs::read_to_string(&note) {
        let _as_it_is = fs::write(INOTIFY, old);
    }
    for file in [note, format!("{STATE_ROOT}/.lock")] {
        let _absent = fs::remove_file(file);
    }
    // Stays if somebody keeps something else there.
    let _not_empty = fs::remove_dir(STATE_ROOT);
}

/// Clusters with a directory of state.
pub(crate) fn recorded() -> Vec<String> {
    let Ok(entries) = fs::read_dir(STATE_ROOT) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| e.path().is_dir())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// The lowest index that no recorded cluster has. Call under [`lock`].
pub(crate) fn free_index() -> Result<u8> {
    let used: Vec<u8> = recorded()
        .iter()
        .filter_map(|name| State::load(&Paths::of(name)).ok())
        .map(|state| state.index)
        .collect();
    (0..=255)
        .find(|i| !used.contains(i))
        .ok_or_else(|| Error::State("256 clusters exist; veer-cluster down --all".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_not_fit_everywhere_are_refused() {
        for bad in ["", "Upper", "a-b", "a.b", "a/b", "twenty1characterslong"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("dev2").is_ok());
    }

    #[test]
    fn workers_belong_to_zones_in_turn_and_the_control_plane_to_none() {
        let config = Config {
            zones: 3,
            ..Config::new("a")
        };
        let found: Vec<Option<String>> = (1..=7).map(|n| config.zone(n)).collect();
        let wanted = ["zone1", "zone2", "zone3", "zone1", "zone2", "zone3"];
        let wanted = wanted.map(|z| Some(z.to_owned()));
        assert_eq!(found[0], None);
        assert_eq!(found[1..], wanted);
        assert_eq!(Config::new("a").zone(2), None);
    }

    #[test]
    fn a_configuration_out_of_bounds_is_refused_with_the_bound() {
        let bad = [
            (
                Config {
                    workers: 21,
                    ..Config::new("a")
                },
                "at most 20",
            ),
            (
                Config {
                    mtu: 575,
                    ..Config::new("a")
                },
                "at least 576",
            ),
            (
                Config {
                    mtu: 1279,
                    families: Families::V4V6,
                    ..Config::new("a")
                },
                "at least 1280",
            ),
        ];
        for (config, says) in bad {
            let error = config.check().expect_err("out of bounds").to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_record_of_an_ipv4_cluster_is_as_it_was_before_there_was_a_choice() {
        let text = |config: &Config| serde_json::to_string(config).expect("JSON");
        let mut config = Config::new("a");
        let old = text(&config);
        assert!(!old.contains("families"), "{old}");
        let read: Config = serde_json::from_str(&old).expect("a record of before");
        assert_eq!(read.families, Families::V4);
        config.families = Families::V6V4;
        let read: Config = serde_json::from_str(&text(&config)).expect("a record");
        assert_eq!(read.families, Families::V6V4);
    }
}
