//! What veer is measured against: a bare veth pair, bare redirects, and the CNI project's
//! bridge plugin with a route between two nodes.
//!
//! Their networks hang on processes that are ended when dropped; bridge and
//! routes on the nodes are removed then too.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use veer_e2e_tests::{foreign::Program, lab::Lab, processes::Started, site::Site};

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// MAC of the far end of a veth made here.
const PEER_MAC: &str = "02:00:00:00:00:01";
/// The bridge on each node.
const BRIDGE: &str = "bench0";

/// A network namespace that lives as long as this.
#[derive(Debug)]
pub(crate) struct Empty {
    process: Started,
    /// The network.
    pub(crate) site: Site,
}

impl Empty {
    fn new(name: &str) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "sh",
            "-c",
            "ip link set lo up && echo up && exec sleep infinity",
        ]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut word = [0; 3];
        let out = child.stdout.as_mut().context("no output")?;
        std::io::Read::read_exact(out, &mut word).context("the namespace did not come up")?;
        let site = Site::of_process(name, child.id());
        Ok(Self {
            process: Started(child),
            site,
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.process.0.id())
    }

    /// Makes a veth from its `eth0` to `device` in another network, which has
    /// [`PEER_MAC`].
    fn veth(&self, to: &Self, device: &str) -> Result<()> {
        let netns = to.process.0.id().to_string();
        self.site.exec(&[
            "ip", "link", "add", "eth0", "type", "veth", "peer", "name", device, "address",
            PEER_MAC, "netns", &netns,
        ])?;
        Ok(())
    }

    /// Gives `eth0` an address in a network of 256 and sets it up.
    fn up(&self, address: &str) -> Result<()> {
        let address = format!("{address}/24");
        self.site
            .exec(&["ip", "address", "add", &address, "dev", "eth0"])?;
        self.site.exec(&["ip", "link", "set", "eth0", "up"])?;
        Ok(())
    }
}

/// Two networks with a veth between them and nothing else: the limit.
#[derive(Debug)]
pub(crate) struct BarePair {
    /// One end.
    pub(crate) near: Empty,
    /// The other, at [`BarePair::FAR`].
    pub(crate) far: Empty,
}

impl BarePair {
    /// Address of the far end.
    pub(crate) const FAR: &str = "10.99.0.2";

    /// Makes it.
    pub(crate) fn new() -> Result<Self> {
        let (near, far) = (Empty::new("veth")?, Empty::new("veth's other end")?);
        near.veth(&far, "eth0")?;
        near.up("10.99.0.1")?;
        far.up(Self::FAR)?;
        Ok(Self { near, far })
    }
}

/// Two networks, each on a veth into a third, where `bpf_redirect_peer` and nothing
/// else moves packets from one to the other: what veer's path on one node cannot be
/// faster than.
#[derive(Debug)]
pub(crate) struct RedirectedPair {
    /// One end.
    pub(crate) near: Empty,
    /// The other, at [`RedirectedPair::FAR`].
    pub(crate) far: Empty,
    _programs: [Program; 2],
    _middle: Empty,
}

impl RedirectedPair {
    /// Address of the far end.
    pub(crate) const FAR: &str = "10.99.2.2";
    const NEAR: &str = "10.99.2.1";

    /// Makes it.
    pub(crate) fn new() -> Result<Self> {
        let middle = Empty::new("between two veths")?;
        let (near, far) = (Empty::new("redirected")?, Empty::new("its other end")?);
        for (end, device, own, other) in [
            (&near, "near", Self::NEAR, Self::FAR),
            (&far, "far", Self::FAR, Self::NEAR),
        ] {
            end.veth(&middle, device)?;
            middle.site.exec(&["ip", "link", "set", device, "up"])?;
            end.up(own)?;
            // To the MAC of the veth's other end, as a pod sends to its gateway.
            end.site.exec(&[
                "ip", "neigh", "add", other, "lladdr", PEER_MAC, "dev", "eth0",
            ])?;
        }
        let programs = [
            Program::redirect_peer(&middle.site, "near", "far")?,
            Program::redirect_peer(&middle.site, "far", "near")?,
        ];
        Ok(Self {
            near,
            far,
            _programs: programs,
            _middle: middle,
        })
    }
}

/// Three networks on two nodes, wired by the bridge plugin.
#[derive(Debug)]
pub(crate) struct Bridged {
    nodes: Vec<Site>,
    /// On the first node.
    pub(crate) client: Empty,
    neighbour: Empty,
    remote: Empty,
}

impl Bridged {
    /// Address of the network beside the client.
    pub(crate) const NEIGHBOUR: &str = "10.245.0.3";
    /// Address of the one on the other node.
    pub(crate) const REMOTE: &str = "10.245.1.2";

    /// Makes it on two nodes.
    pub(crate) fn new(lab: &Lab, near: &str, far: &str) -> Result<Self> {
        let nodes = vec![lab.node_site(near)?, lab.node_site(far)?];
        let wired = Self {
            client: Empty::new("bridged client")?,
            neighbour: Empty::new("bridged neighbour")?,
            remote: Empty::new("bridged remote")?,
            nodes,
        };
        for (node, empty, address, gateway) in [
            (0, &wired.client, "10.245.0.2", "10.245.0.1"),
            (0, &wired.neighbour, Self::NEIGHBOUR, "10.245.0.1"),
            (1, &wired.remote, Self::REMOTE, "10.245.1.1"),
        ] {
            add(&wired.nodes[node], empty, address, gateway)?;
        }
        for (node, block, via) in [(0, "10.245.1.0/24", far), (1, "10.245.0.0/24", near)] {
            let via = lab.cluster.address(via)?.to_string();
            wired.nodes[node].exec(&["ip", "route", "replace", block, "via", &via])?;
        }
        Ok(wired)
    }

    /// The network at [`Bridged::NEIGHBOUR`].
    pub(crate) fn neighbour(&self) -> &Site {
        &self.neighbour.site
    }

    /// The network at [`Bridged::REMOTE`].
    pub(crate) fn remote(&self) -> &Site {
        &self.remote.site
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        for node in &self.nodes {
            let _gone = node.exec_any(&["ip", "link", "del", BRIDGE]);
            let _gone = node.exec_any(&["ip", "route", "del", "10.245.0.0/24"]);
            let _gone = node.exec_any(&["ip", "route", "del", "10.245.1.0/24"]);
        }
    }
}

/// The kernel's own VXLAN between two nodes, without a program and without pods:
/// what a tunnel costs on this machine.
#[derive(Debug)]
pub(crate) struct PlainVxlan {
    nodes: [Site; 2],
}

impl PlainVxlan {
    /// Address of the far end.
    pub(crate) const FAR: &str = "10.99.1.2";
    const DEVICE: &str = "benchvx";

    /// Makes it on two nodes, on another port than veer's.
    pub(crate) fn new(lab: &Lab, near: &str, far: &str) -> Result<Self> {
        let plain = Self {
            nodes: [lab.node_site(near)?, lab.node_site(far)?],
        };
        let at = |name| Ok::<_, anyhow::Error>(lab.cluster.address(name)?.to_string());
        let (near, far) = (at(near)?, at(far)?);
        for (site, own, other, address) in [
            (&plain.nodes[0], &near, &far, "10.99.1.1/24"),
            (&plain.nodes[1], &far, &near, "10.99.1.2/24"),
        ] {
            site.exec(&[
                "ip",
                "link",
                "add",
                Self::DEVICE,
                "type",
                "vxlan",
                "id",
                "77",
                "local",
                own,
                "remote",
                other,
                "dev",
                "eth0",
                "dstport",
                "8473",
                "noudpcsum",
            ])?;
            site.exec(&["ip", "address", "add", address, "dev", Self::DEVICE])?;
            site.exec(&["ip", "link", "set", Self::DEVICE, "up"])?;
        }
        Ok(plain)
    }

    /// The near end.
    pub(crate) fn near(&self) -> &Site {
        &self.nodes[0]
    }
}

impl Drop for PlainVxlan {
    fn drop(&mut self) {
        for node in &self.nodes {
            let _gone = node.exec_any(&["ip", "link", "del", Self::DEVICE]);
        }
    }
}

/// ADD of the bridge plugin.
fn add(node: &Site, empty: &Empty, address: &str, gateway: &str) -> Result<()> {
    let configuration = format!(
        r#"{{"cniVersion": "0.4.0", "name": "bench", "type": "bridge", "bridge": "{BRIDGE}",
 "isGateway": true, "ipam": {{"type": "static", "routes": [{{"dst": "0.0.0.0/0"}}],
 "addresses": [{{"address": "{address}/24", "gateway": "{gateway}"}}]}}}}"#
    );
    let program = format!("{PLUGINS}/bridge");
    let mut child = node
        .command(&[&program])
        .env("CNI_COMMAND", "ADD")
        .env(
            "CNI_CONTAINERID",
            format!("bench-{}", address.replace('.', "-")),
        )
        .env("CNI_NETNS", empty.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the bridge plugin")?;
    let mut pipe = child.stdin.take().context("no standard input")?;
    pipe.write_all(configuration.as_bytes())?;
    drop(pipe);
    let out = child.wait_with_output()?;
    ensure!(
        out.status.success(),
        "the bridge plugin: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}
