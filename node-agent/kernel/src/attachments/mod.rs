//! Which program runs on which device, kept so.

mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use veer_bpf_common::device::IfIndex;
use veer_crds::v1alpha1::{UplinkStatus, XdpMode};

use crate::{
    datapath::{self, Datapath, Hook},
    error::Error,
    lock::Lock,
    netlink::{VXLAN, is_host_veth, link::Link},
};
use veer_agent_core::{
    endpoint::LocalEndpoint,
    facts::Facts,
    repair::{Kind, RoundLog},
};

use xdp::Xdp;

/// How long a device may be no uplink before its programs are detached: a default
/// route is briefly absent while it is replaced.
const NO_UPLINK: Duration = Duration::from_secs(10);

/// What programs are attached by.
#[derive(Clone, Copy, Debug)]
pub struct ProgramsWanted<'a> {
    /// All links of the node.
    pub links: &'a [Link],
    /// The node.
    pub facts: &'a Facts,
    /// Local pods.
    pub pods: &'a [Arc<LocalEndpoint>],
    /// See [`Attachments::converge`].
    pub xdp: Option<XdpMode>,
}

#[derive(Debug, Default)]
pub struct Attachments {
    /// Devices and hooks that this agent has attached to or found in order.
    done: BTreeSet<(String, Option<IfIndex>, Hook)>,
    /// XDP on uplinks.
    xdp: Xdp,
    /// Uplinks on which another program comes first.
    not_first: BTreeSet<String>,
    pins_swept: bool,
    /// Devices with programs of uplinks that are none, and since when.
    former: BTreeMap<String, Instant>,
}

impl Attachments {
    /// Attaches what is not attached. Every program on every device is looked at
    /// in each round: a link can be taken off its hook by force. `xdp` is what the
    /// cluster's settings say; `None`: they are not known yet, and neither is what
    /// the uplinks are.
    ///
    /// The datapath is locked for one device at a time, so that no ADD waits long.
    pub fn converge(
        &mut self,
        done: &mut RoundLog,
        datapath: &Lock<Datapath>,
        ProgramsWanted {
            links,
            facts,
            pods,
            xdp,
        }: ProgramsWanted<'_>,
    ) -> Result<(), Error> {
        let mut wanted: Vec<(String, Option<IfIndex>, Hook)> = Vec::new();
        let mut want = |name: &str, index, hooks: [Hook; 2]| {
            wanted.extend(hooks.map(|hook| (name.to_owned(), index, hook)));
        };
        want(
            VXLAN,
            facts.vxlan_index,
            [Hook::OverlayIngress, Hook::OverlayEgress],
        );
        // The programs read Ethernet headers.
        for uplink in facts.uplinks.iter().filter(|u| u.ethernet) {
            want(
                &uplink.name,
                Some(uplink.index),
                [Hook::UplinkIngress, Hook::UplinkEgress],
            );
        }
        let devices: HashSet<(&str, Option<IfIndex>)> = links
            .iter()
            .map(|l| (l.name.as_str(), Some(l.index)))
            .collect();
        for e in pods {
            if devices.contains(&(e.host_ifname.as_str(), e.ifindex)) {
                want(
                    &e.host_ifname,
                    e.ifindex,
                    [Hook::PodEgress, Hook::PodIngress],
                );
            }
        }
        wanted.sort_by_key(|(.., hook)| hook.records());
        self.not_first.clear();
        let mut failure = None;
        for (device, index, hook) in &wanted {
            let mut datapath = datapath.lock();
            // What asks and was not replaced would not find what the new ones record.
            if hook.records() && failure.is_some() && datapath.takes_over() {
                break;
            }
            let key = (device.clone(), *index, *hook);
            let known = self.done.contains(&key);
            let mut runs = known.then(|| datapath.runs(device, *hook)).flatten();
            if runs.is_none() {
                if let Err(error) = datapath.attach(device, *hook) {
                    // One that went meanwhile needs no program, and one that
                    // refuses must not keep the others from theirs.
                    if nix::net::if_::if_nametoindex(device.as_str()).is_ok() {
                        failure = failure.or(Some(error));
                    }
                    self.done.remove(&key);
                    continue;
                }
                if known {
                    let what = format!("program {} on {device} was detached", hook.program());
                    done.repaired(Kind::Program, what);
                }
                runs = datapath.runs(device, *hook);
            }
            drop(datapath);
            if runs == Some(false) {
                self.not_first.insert(device.clone());
            }
            self.done.insert(key);
        }
        if xdp.is_some() {
            self.leave_former_uplinks(&datapath.lock(), facts);
        }
        let wanted: HashSet<(String, Option<IfIndex>, Hook)> = wanted.into_iter().collect();
        self.done.retain(|key| wanted.contains(key));
        self.xdp.converge(
            done,
            datapath,
            links,
            &facts.uplinks,
            xdp.unwrap_or(XdpMode::Off),
        );
        if !self.pins_swept {
            let names: HashSet<String> = links.iter().map(|l| l.name.clone()).collect();
            let swept = datapath.lock().unpin_all_but(&names);
            match swept {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "stale pins"),
                Err(error) => tracing::warn!(%error, "cannot sweep stale pins"),
            }
            self.pins_swept = true;
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Takes the programs off devices that are uplinks no longer, also those
    /// that an earlier agent attached to.
    fn leave_former_uplinks(&mut self, datapath: &Datapath, facts: &Facts) {
        let mut devices = match datapath.pinned_devices() {
            Ok(devices) => devices,
            Err(error) => {
                tracing::warn!(%error, "cannot list the pinned links");
                return;
            }
        };
        devices.extend(self.done.iter().map(|(device, ..)| device.clone()));
        devices.retain(|d| {
            d != VXLAN && !is_host_veth(d) && !facts.uplinks.iter().any(|u| u.name == *d)
        });
        self.former.retain(|device, _| devices.contains(device));
        for device in devices {
            let since = *self
                .former
                .entry(device.clone())
                .or_insert_with(Instant::now);
            if since.elapsed() < NO_UPLINK {
                continue;
            }
            let result = datapath
                .detach(&device)
                .and_then(|()| datapath.detach_xdp(&device, None));
            if !datapath.attaches_links() {
                datapath::remove_clsact(&device);
            }
            match result {
                Ok(()) => {
                    tracing::info!(device, "no uplink any more; its programs are off");
                    self.former.remove(&device);
                }
                Err(error) => tracing::warn!(device, %error, "cannot take programs off"),
            }
        }
    }

    /// Devices other than veer's own that have its programs, and those that all
    /// packets of such devices come by: bridges and bonds that have no other port.
    pub fn guarded(&self, links: &[Link]) -> BTreeSet<String> {
        let of_uplinks = self
            .done
            .iter()
            .filter(|(.., hook)| *hook == Hook::UplinkIngress)
            .map(|(device, ..)| device);
        let mut all: BTreeSet<String> = of_uplinks.chain(self.former.keys()).cloned().collect();
        for master in links {
            let mut ports = links
                .iter()
                .filter(|l| l.master == Some(master.index))
                .peekable();
            if ports.peek().is_some() && ports.all(|port| all.contains(&port.name)) {
                all.insert(master.name.clone());
            }
        }
        all
    }

    /// Takes clsact filters off (tcx links went with their pins).
    pub fn remove(&mut self, facts: &Facts) {
        for uplink in &facts.uplinks {
            datapath::remove_clsact(&uplink.name);
        }
        *self = Self::default();
    }

    /// The uplinks for status.
    pub fn uplinks(&self, facts: &Facts) -> Vec<UplinkStatus> {
        facts
            .uplinks
            .iter()
            .map(|u| {
                let (xdp, mut xdp_reason) = self.xdp.of(&u.name);
                if !u.ethernet {
                    xdp_reason = "no Ethernet device: no program runs on it, and other nodes \
                                  are reached through the tunnel only"
                        .into();
                }
                UplinkStatus {
                    name: u.name.clone(),
                    mtu: u.mtu.map_or(0, i32::from),
                    xdp,
                    xdp_reason,
                    first: !self.not_first.contains(&u.name),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_guarded_when_all_its_ports_are() {
        let port = |name: &str, index, master| Link {
            name: name.into(),
            master: IfIndex::new(master),
            ..Link::new(IfIndex::from_kernel(index))
        };
        let links = [
            port("eth0", 2, 5),
            port("eth1", 3, 6),
            port("tap0", 4, 6),
            port("br0", 5, 0),
            port("br1", 6, 0),
        ];
        let attachments = Attachments {
            done: ["eth0", "eth1"]
                .map(|d| (d.to_owned(), None, Hook::UplinkIngress))
                .into(),
            ..Attachments::default()
        };
        let guarded = attachments.guarded(&links);
        assert_eq!(guarded, ["br0", "eth0", "eth1"].map(String::from).into());
    }
}
