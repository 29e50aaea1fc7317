//! Pods as the API knows them, and their wires as the kernel knows them.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use veer_e2e_cluster::{Family, Mac, await_condition};

use crate::{lab::Lab, site::Site};

/// A running pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node it runs on.
    pub node: String,
    /// Its address in the family that is looked at: at first the primary one.
    pub address: IpAddr,
    /// All its addresses, the primary family's first.
    pub addresses: Vec<IpAddr>,
    /// Its network.
    pub site: Site,
    /// The harness's view of it.
    pub inner: veer_e2e_cluster::Pod,
}

/// A pod's veth, both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// MAC of the pod's eth0.
    pub pod_mac: Mac,
    /// `peer_ifindex` of the pod's eth0, by ethtool.
    pub host_ifindex: u32,
    /// The device of that index on the node.
    pub host_name: String,
    /// Its MAC.
    pub host_mac: Mac,
}

impl Pod {
    /// A running pod by its name.
    pub fn find(lab: &Lab, namespace: &str, name: &str) -> Result<Self> {
        let inner = lab.cluster.pod(namespace, name)?;
        let addresses = inner.addresses().to_vec();
        let address = *addresses.first().context("a pod without address")?;
        let node = inner.node().name().to_owned();
        let process = inner.node().process_of_pod(inner.uid())?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: inner.uid().to_owned(),
            site: Site::of_process(format!("pod {name} on {node}"), process),
            node,
            address,
            addresses,
            inner,
        })
    }

    /// Its address of a family.
    pub fn address_in(&self, family: Family) -> Result<IpAddr> {
        let mut all = self.addresses.iter().copied();
        all.find(|address| Family::of(*address) == family)
            .with_context(|| format!("{} has no {family} address", self.name))
    }

    /// Its IPv4 address, for what only that family has.
    pub fn v4(&self) -> Result<Ipv4Addr> {
        match self.address_in(Family::V4)? {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(address) => bail!("{address} is not IPv4"),
        }
    }

    /// Has it looked at in another family.
    pub fn turn_to(&mut self, family: Family) -> Result<()> {
        self.address = self.address_in(family)?;
        Ok(())
    }

    /// Both sides of the pod's veth, by ethtool and ip.
    pub fn wire(&self) -> Result<Wire> {
        let statistics = self.site.exec(&["ethtool", "-S", "eth0"])?.stdout;
        let host_ifindex = statistics
            .lines()
            .find_map(|l| l.trim().strip_prefix("peer_ifindex:"))
            .and_then(|v| v.trim().parse().ok())
            .with_context(|| format!("no peer_ifindex of {}: {statistics}", self.name))?;
        let host = self.inner.host_device()?;
        Ok(Wire {
            pod_mac: self.inner.eth0()?.mac,
            host_ifindex,
            host_name: host.name,
            host_mac: host.mac,
        })
    }
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC; zeros where it has none.
    pub mac: Mac,
    /// Its MTU in octets.
    pub mtu: u32,
}

/// All devices of a network.
pub fn links(site: &Site) -> Result<Vec<Link>> {
    let text = site.exec(&["ip", "-j", "link", "show"])?.stdout;
    let list: Value = serde_json::from_str(&text).context("ip -j link")?;
    let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    list.as_array()
        .context("ip printed no list")?
        .iter()
        .map(|l| {
            Ok(Link {
                name: l["ifname"]
                    .as_str()
                    .context("a device without name")?
                    .to_owned(),
                ifindex: number(&l["ifindex"]).context("a device without index")?,
                mac: l["address"]
                    .as_str()
                    .and_then(|a| a.parse().ok())
                    .unwrap_or_default(),
                mtu: number(&l["mtu"]).context("a device without MTU")?,
            })
        })
        .collect()
}

/// The running pods that a selector (`app=demo`) finds, sorted by name.
pub fn running(lab: &Lab, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
    let list = lab
        .kubectl()
        .json(&["-n", namespace, "get", "pods", "-l", selector])?;
    let items = list["items"].as_array().context("a list without items")?;
    items
        .iter()
        .filter(|p| {
            p["metadata"]["deletionTimestamp"].is_null()
                && p["status"]["phase"] == "Running"
                && !p["status"]["podIP"].is_null()
        })
        .map(|p| {
            Pod::find(
                lab,
                namespace,
                p["metadata"]["name"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

/// The first of these pods that is on a node.
pub fn on<'a>(pods: &'a [Pod], node: &str) -> Result<&'a Pod> {
    let mut pods = pods.iter();
    pods.find(|pod| pod.node == node)
        .with_context(|| format!("no pod on {node}"))
}

/// The one pod of a selector on a node.
pub fn on_node(lab: &Lab, namespace: &str, selector: &str, node: &str) -> Result<Pod> {
    let mut pods = running(lab, namespace, selector)?;
    pods.retain(|p| p.node == node);
    match pods.len() {
        1 => Ok(pods.swap_remove(0)),
        n => bail!("{n} running pods {selector} on {node}, not one"),
    }
}

/// Waits until `count` pods of a selector are Ready, none of them terminating.
pub fn await_ready(
    lab: &Lab,
    namespace: &str,
    selector: &str,
    count: usize,
    deadline: Duration,
) -> Result<Vec<Pod>> {
    let what = format!("{count} pods {selector} in {namespace} are Ready");
    let found = await_condition(&what, deadline, || {
        let list = lab
            .kubectl()
            .json(&["-n", namespace, "get", "pods", "-l", selector]);
        let list = list.map_err(|e| e.to_string())?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let sights: Vec<String> = items.iter().filter(|p| !is_ready(p)).map(sight).collect();
        if sights.is_empty() && items.len() == count {
            return Ok(Some(()));
        }
        Err(format!(
            "{} pods, of them not ready: {}",
            items.len(),
            sights.join("; ")
        ))
    });
    if let Err(error) = found {
        let events = lab.kubectl().any(&[
            "-n",
            namespace,
            "get",
            "events",
            "--sort-by=.lastTimestamp",
            "--no-headers",
        ])?;
        let last: Vec<&str> = events.stdout.lines().rev().take(5).collect();
        bail!("{error}\nlast events:\n{}", last.join("\n"));
    }
    running(lab, namespace, selector)
}

/// Waits until no `EndpointSlice` of a service has a pod as one that serves.
pub fn await_no_endpoint(lab: &Lab, service: &str, pod: &Pod, deadline: Duration) -> Result<()> {
    let selector = format!("kubernetes.io/service-name={service}");
    let words = [
        "-n",
        &pod.namespace,
        "get",
        "endpointslices",
        "-l",
        &selector,
    ];
    let what = format!("no EndpointSlice has {} as serving", pod.name);
    await_condition(&what, deadline, || {
        let list = lab.kubectl().json(&words).map_err(|e| e.to_string())?;
        let slices = list["items"].as_array().into_iter().flatten();
        let mut endpoints = slices.flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
        let there = endpoints.any(|e| {
            e["targetRef"]["uid"] == pod.uid.as_str() && e["conditions"]["serving"] != false
        });
        Ok((!there).then_some(()))
    })?;
    Ok(())
}

/// Removes the objects of the pods of a node that is gone. Kubernetes' own collector
/// does so later, and what is compared next must not hold them.
pub fn forget(lab: &Lab, node: &str) -> Result<()> {
    let field = format!("spec.nodeName={node}");
    lab.kubectl().run(&[
        "delete",
        "pods",
        "-A",
        "--field-selector",
        &field,
        "--force",
        "--grace-period=0",
    ])?;
    Ok(())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.is_some_and(|c| {
            c.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
}

fn sight(pod: &Value) -> String {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    format!(
        "{} on {}: {} {}",
        pod["metadata"]["name"].as_str().unwrap_or("?"),
        pod["spec"]["nodeName"].as_str().unwrap_or("no node"),
        pod["status"]["phase"].as_str().unwrap_or("?"),
        waiting.as_str().unwrap_or_default()
    )
}
