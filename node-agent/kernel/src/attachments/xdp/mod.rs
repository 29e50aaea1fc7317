//! XDP on the uplinks: the mode and its reason.
//!
//! In Auto, driver mode is attached where the driver keeps its offloads. On all other
//! uplinks the tc program does the same checks, and generic mode is attached only
//! during a flood of packets that they drop and for some minutes after it.

mod flood;

use std::{collections::BTreeMap, time::Instant};

use veer_bpf_common::{
    outcome::{DropReason, Program},
    program,
};
use veer_crds::v1alpha1::XdpMode;

use crate::{
    datapath::{self, Datapath, XdpAttach},
    error::{Error, netlink},
    lock::Lock,
    netlink::link::Link,
};
use flood::{Change, Flood};
use veer_agent_core::{
    facts::Uplink,
    repair::{Kind, RoundLog},
};

/// Drivers whose driver-mode XDP keeps the offloads that TCP streams live on.
/// A veth loses its peer's segmentation offload, for example.
const DRIVERS: [&str; 4] = ["mlx5_core", "ice", "i40e", "ixgbe"];

/// What `uplink_xdp` drops before an skb exists, and `uplink_ingress` otherwise.
const DROPPED_EARLIER: [DropReason; 3] = [
    DropReason::TunnelSourceNotNode,
    DropReason::Malformed,
    DropReason::DeniedPrefix,
];

/// Why generic mode is on in Auto.
const UNDER_FLOOD: &str = "under a flood of packets that are dropped earlier so";

#[derive(Debug, Default)]
pub(super) struct Xdp {
    /// Mode and why, by uplink.
    uplinks: BTreeMap<String, (XdpMode, String)>,
    flood: Flood,
}

impl Xdp {
    /// Attaches and takes off what is to be; `links` are all of the node's, as they
    /// are now.
    pub(super) fn converge(
        &mut self,
        done: &mut RoundLog,
        datapath: &Lock<Datapath>,
        links: &[Link],
        uplinks: &[Uplink],
        wanted: XdpMode,
    ) {
        let change = if wanted == XdpMode::Auto {
            self.watch(&datapath.lock(), uplinks)
        } else {
            self.flood = Flood::default();
            None
        };
        let mut under_flood = Vec::new();
        for uplink in uplinks.iter().filter(|u| u.ethernet) {
            let (mut mode, mut reason) = xdp_mode(wanted, uplink);
            if wanted == XdpMode::Auto && mode == XdpMode::Off {
                under_flood.push(uplink.name.as_str());
                if self.flood.under_way() {
                    (mode, reason) = (XdpMode::Generic, UNDER_FLOOD.into());
                }
            }
            let how = match mode {
                XdpMode::Driver => Some(XdpAttach::Driver),
                XdpMode::Generic => Some(XdpAttach::Generic),
                XdpMode::Auto | XdpMode::Off => None,
            };
            let known = self.uplinks.get(&uplink.name);
            let known = known.is_some_and(|(now, _)| *now == mode);
            let mut datapath = datapath.lock();
            if known && (how.is_none() || runs(&datapath, links, uplink)) {
                continue;
            }
            let entry = match attach(&mut datapath, uplink, how) {
                Ok(()) => {
                    if known {
                        let name = program::UPLINK_XDP;
                        let what = format!("program {name} on {} was detached", uplink.name);
                        done.repaired(Kind::Program, what);
                    }
                    (mode, reason)
                }
                Err(error) => {
                    let text = veer_crds::condition::explain(&error);
                    tracing::error!(uplink = uplink.name, error = %text, "no XDP on the uplink");
                    (XdpMode::Off, text)
                }
            };
            self.uplinks.insert(uplink.name.clone(), entry);
        }
        self.uplinks
            .retain(|name, _| uplinks.iter().any(|u| u.name == *name));
        if let Some(change) = change {
            tell(done, change, &under_flood.join(", "));
        }
    }

    /// The mode on an uplink and why.
    pub(super) fn of(&self, uplink: &str) -> (XdpMode, String) {
        let off = || (XdpMode::Off, String::new());
        self.uplinks.get(uplink).cloned().unwrap_or_else(off)
    }

    fn watch(&mut self, datapath: &Datapath, uplinks: &[Uplink]) -> Option<Change> {
        if !self.flood.is_watched()
            && self.uplinks.is_empty()
            && uplinks.iter().any(|u| datapath.has_generic_xdp(&u.name))
        {
            // An agent before this one met it.
            self.flood = Flood::found();
        }
        match dropped(datapath) {
            Ok(packets) => self.flood.observe(Instant::now(), packets),
            Err(error) => {
                tracing::warn!(error = %veer_crds::condition::explain(&error), "cannot read how much is dropped");
                None
            }
        }
    }
}

/// How many packets the uplinks' programs have dropped of those that XDP drops.
/// Once it is attached it does, so both count.
fn dropped(datapath: &Datapath) -> Result<u64, datapath::Error> {
    let mut packets = 0;
    for program in [Program::UplinkIngress, Program::UplinkXdp] {
        for reason in DROPPED_EARLIER {
            packets += datapath.maps.counter(program, reason as u32)?.packets;
        }
    }
    Ok(packets)
}

fn tell(done: &mut RoundLog, change: Change, uplinks: &str) {
    if uplinks.is_empty() {
        return;
    }
    match change {
        Change::Began(rate) => {
            let note = format!(
                "{rate} packets a second are dropped that no node sent, that are malformed or come \
                 from denied prefixes: XDP in generic mode drops them on {uplinks} now; veer \
                 metrics list says which"
            );
            done.warn("Flood", note);
        }
        Change::Ended => {
            let note = format!("the flood is over: no XDP on {uplinks} any more");
            done.inform("FloodOver", note);
        }
    }
}

/// Whether veer's XDP program runs on the uplink.
fn runs(datapath: &Datapath, links: &[Link], uplink: &Uplink) -> bool {
    let found = links.iter().find(|l| l.index == uplink.index);
    found.is_some_and(|l| l.xdp != 0 && Some(l.xdp) == datapath.xdp_id())
}

fn attach(datapath: &mut Datapath, uplink: &Uplink, how: Option<XdpAttach>) -> Result<(), Error> {
    datapath
        .detach_xdp(&uplink.name, how)
        .map_err(netlink("take XDP off an uplink"))?;
    if let Some(how) = how {
        datapath.attach_xdp(&uplink.name, how)?;
    }
    Ok(())
}

fn xdp_mode(wanted: XdpMode, uplink: &Uplink) -> (XdpMode, String) {
    match wanted {
        XdpMode::Driver => (XdpMode::Driver, "asked for".into()),
        XdpMode::Generic => (XdpMode::Generic, "asked for".into()),
        XdpMode::Off => (XdpMode::Off, "asked for".into()),
        XdpMode::Auto => match driver(&uplink.name) {
            Some(driver) if DRIVERS.contains(&driver.as_str()) => (
                XdpMode::Driver,
                format!("driver {driver} keeps its offloads"),
            ),
            Some(driver) => (
                XdpMode::Off,
                format!("driver {driver} is not known to keep its offloads"),
            ),
            None => (
                XdpMode::Off,
                format!("a {} device loses offloads with XDP", kind(uplink)),
            ),
        },
    }
}

fn kind(uplink: &Uplink) -> &str {
    if uplink.kind.is_empty() {
        "virtual"
    } else {
        &uplink.kind
    }
}

fn driver(device: &str) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/class/net/{device}/device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_bpf_common::device::IfIndex;

    #[test]
    fn auto_stays_off_where_xdp_costs_offloads() {
        let uplink = Uplink {
            name: "no-such-device".into(),
            index: IfIndex::from_kernel(1),
            mtu: None,
            kind: "veth".into(),
            ethernet: true,
        };
        let (mode, reason) = xdp_mode(XdpMode::Auto, &uplink);
        assert_eq!(mode, XdpMode::Off);
        assert!(reason.contains("veth"));
        assert_eq!(xdp_mode(XdpMode::Generic, &uplink).0, XdpMode::Generic);
    }
}
