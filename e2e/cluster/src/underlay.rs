//! The network between the nodes, and the world outside.
//!
//! Cluster number `n` has 172.30.n.0/24 (second uplinks 172.31.n.0/24). With
//! one link, the world is .1 and node number `i` is .10+i. With a router,
//! every machine has a /29 of its own: the router at 8i+1, the node at 8i+2;
//! the world's is the one with i = 0. The world also has [`OUTSIDE`], the
//! address that plays the internet, and is or leads to everyone's default
//! route. It has no default route itself, so nothing leaves the machine.
//! All this is the plan; each of the cluster's families has it
//! ([`Family::planned`]).
//!
//! The harness's own network namespace gets one device, `veer-e2e-<n>`, a
//! point-to-point link (172.29.n.0/30) to the world, by which kubectl reaches
//! the API server. The world lets no connection through it from the cluster.

use std::net::Ipv4Addr;

use crate::{
    error::{Error, Result},
    family::Family,
    machine::Machine,
    run::sh,
    state::{Config, NodeInfo, Underlay},
};

/// An address of the world that is on no underlay link: the internet.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The addresses of a cluster's underlay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    index: u8,
    kind: Underlay,
}

/// An address with its prefix length and the way out of its link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
}

impl Plan {
    pub(crate) fn new(index: u8, kind: Underlay) -> Self {
        Self { index, kind }
    }

    /// Where node number `number` (0: the world) is attached, on its first
    /// uplink or its second.
    pub(crate) fn link(self, number: u8, second: bool) -> Result<Link> {
        let net = if second { 31 } else { 30 };
        let at = |last| Ipv4Addr::new(172, net, self.index, last);
        match self.kind {
            Underlay::Bridge => {
                let last = if number == 0 {
                    Some(1)
                } else {
                    number.checked_add(10)
                };
                let last = last.filter(|l| *l < 255).ok_or_else(|| full(number))?;
                Ok(Link {
                    address: at(last),
                    prefix: 24,
                    gateway: at(1),
                })
            }
            Underlay::Router => {
                let base = number.checked_mul(8).ok_or_else(|| full(number))?;
                Ok(Link {
                    address: at(base + 2),
                    prefix: 29,
                    gateway: at(base + 1),
                })
            }
        }
    }

    /// Everything the nodes can have as addresses of a family.
    fn networks(self, family: Family) -> [String; 2] {
        [30, 31].map(|net| family.planned_net(Ipv4Addr::new(172, net, self.index, 0), 24))
    }

    /// The device in the harness's namespace.
    pub(crate) fn device(self) -> String {
        device(self.index)
    }
}

/// The device in the harness's namespace of cluster number `index`.
pub(crate) fn device(index: u8) -> String {
    format!("veer-e2e-{index}")
}

fn full(number: u8) -> Error {
    Error::State(format!(
        "no address left for node number {number}: the underlay is full"
    ))
}

/// Wires the switch (and router) and the world. `switch` carries the bridges;
/// in a router underlay it is the router.
pub(crate) fn wire_world(
    plan: Plan,
    config: &Config,
    switch: &Machine,
    world: &Machine,
) -> Result<()> {
    let mtu = config.mtu.to_string();
    if config.underlay == Underlay::Bridge {
        for bridge in ["br0", "br1"]
            .iter()
            .take(if config.second_uplink { 2 } else { 1 })
        {
            let add = ["ip", "link", "add", bridge, "mtu", &mtu, "type", "bridge"];
            switch.exec(&add)?;
            switch.exec(&[
                "ip",
                "link",
                "set",
                bridge,
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            ])?;
            switch.exec(&["ip", "link", "set", bridge, "up"])?;
        }
    } else {
        for family in config.families.all() {
            route_for_others(*family, switch)?;
        }
    }
    attach(plan, config, switch, world, 0, false)?;
    if config.second_uplink {
        attach(plan, config, switch, world, 0, true)?;
    }
    for family in config.families.all() {
        if config.underlay == Underlay::Router {
            let link = plan.link(0, false)?;
            let [world_at, router] = [link.address, link.gateway].map(|a| family.planned(a));
            let via = world_at.to_string();
            switch.exec(&["ip", "route", "replace", "default", "via", &via])?;
            // The world knows the nodes' links by the router.
            let via = router.to_string();
            for network in plan.networks(*family) {
                world.exec(&["ip", "route", "replace", &network, "via", &via])?;
            }
            world.exec(&["ip", "route", "del", "default", "via", &via])?;
        }
        route_for_others(*family, world)?;
        let outside = format!("{}/{}", family.outside(), family.bits());
        world.exec(&address_words(*family, "add", &outside, "lo"))?;
    }
    wire_harness(plan, config, world)
}

fn route_for_others(family: Family, machine: &Machine) -> Result<()> {
    machine.exec(&["sysctl", "-q", "-w", family.forwarding()])?;
    Ok(())
}

/// `ip address <verb>` for an address of a device.
fn address_words<'a>(
    family: Family,
    verb: &'a str,
    address: &'a str,
    device: &'a str,
) -> Vec<&'a str> {
    let mut words = vec!["ip", "address", verb, address, "dev", device];
    if verb == "add" {
        words.extend(family.flags());
    }
    words
}

/// The link by which the harness reaches the cluster, in the family that the API
/// server's address has.
fn wire_harness(plan: Plan, config: &Config, world: &Machine) -> Result<()> {
    let device = plan.device();
    let init = world.init()?.to_string();
    let family = config.families.primary();
    let [ours, theirs] = [1, 2].map(|last| Ipv4Addr::new(172, 29, plan.index, last));
    let via = family.planned(theirs).to_string();
    let [ours, theirs] = [ours, theirs].map(|a| family.planned_net(a, 30));
    sh(&[
        "ip", "link", "add", &device, "type", "veth", "peer", "name", "harness", "netns", &init,
    ])?;
    world.exec(&address_words(family, "add", &theirs, "harness"))?;
    world.exec(&["ip", "link", "set", "harness", "up"])?;
    sh(&address_words(family, "add", &ours, &device))?;
    sh(&["ip", "link", "set", &device, "up"])?;
    sh(&[
        "ip",
        "route",
        "replace",
        &plan.networks(family)[0],
        "via",
        &via,
        "dev",
        &device,
    ])?;
    // Answers may pass to the harness, connections and datagrams may not.
    // Stateless, so that the world tracks no connections because of it.
    let icmp = family.icmp();
    let rules = format!(
        "table inet harness {{\n\
         chain guard {{ type filter hook forward priority 0;\n\
         oifname \"harness\" meta l4proto != {{ tcp, {icmp} }} drop\n\
         oifname \"harness\" tcp flags & (syn | ack) == syn drop\n}}\n}}\n"
    );
    world.exec_with_input(&["nft", "-f", "-"], rules.as_bytes())?;
    Ok(())
}

/// Plugs a machine into the underlay as its number says.
fn attach(
    plan: Plan,
    config: &Config,
    switch: &Machine,
    machine: &Machine,
    number: u8,
    second: bool,
) -> Result<()> {
    let mtu = config.mtu.to_string();
    let (port, device) = if second {
        (format!("{}-1", machine.name()), "eth1")
    } else {
        (format!("{}-0", machine.name()), "eth0")
    };
    // Names of ports are cut to what the kernel takes (IFNAMSIZ 16 with the
    // final zero); numbers keep them apart.
    let port = if port.len() > 15 {
        format!("n{number}-{device}")
    } else {
        port
    };
    let init = machine.init()?.to_string();
    // A port of a machine that went away vanishes with it, but later.
    let _absent = switch.exec_any(&["ip", "link", "del", &port]);
    // A network card keeps its address over a reboot; a new one each time
    // would leave the neighbours with a wrong one for half a minute.
    let [ours, theirs] = [1, 0].map(|end| {
        format!(
            "02:76:{:02x}:{number:02x}:{:02x}:{end:02x}",
            plan.index,
            u8::from(second)
        )
    });
    // In the harness's PID namespace, where the id of `init` means something.
    let mut add = vec!["ip", "link", "add", &port, "address", &theirs, "mtu", &mtu];
    add.extend([
        "type", "veth", "peer", "name", device, "address", &ours, "mtu", &mtu,
    ]);
    add.extend(["netns", &init]);
    switch.network_exec(&add)?;
    let link = plan.link(number, second)?;
    match config.underlay {
        Underlay::Bridge => {
            let bridge = if second { "br1" } else { "br0" };
            switch.exec(&["ip", "link", "set", &port, "master", bridge, "up"])?;
        }
        Underlay::Router => {
            for family in config.families.all() {
                let address = family.planned_net(link.gateway, link.prefix);
                switch.exec(&address_words(*family, "add", &address, &port))?;
            }
            switch.exec(&["ip", "link", "set", &port, "up"])?;
        }
    }
    for family in config.families.all() {
        let address = family.planned_net(link.address, link.prefix);
        machine.exec(&address_words(*family, "add", &address, device))?;
    }
    machine.exec(&["ip", "link", "set", device, "up"])?;
    let is_gateway = config.underlay == Underlay::Bridge && number == 0;
    if !second && !is_gateway {
        for family in config.families.all() {
            lead_out(*family, machine, link, device)?;
        }
    }
    Ok(())
}

/// The default route by a link's gateway.
fn lead_out(family: Family, machine: &Machine, link: Link, device: &str) -> Result<()> {
    let via = family.planned(link.gateway).to_string();
    machine.exec(&[
        "ip", "route", "replace", "default", "via", &via, "dev", device,
    ])?;
    Ok(())
}

/// Plugs a node in.
pub(crate) fn attach_node(
    plan: Plan,
    config: &Config,
    switch: &Machine,
    node: &Machine,
    info: &NodeInfo,
) -> Result<()> {
    attach(plan, config, switch, node, info.number, false)?;
    if config.second_uplink {
        attach(plan, config, switch, node, info.number, true)?;
    }
    let planned = plan.link(info.number, false)?;
    if planned.address != info.address {
        let planned = NodeInfo {
            address: planned.address,
            ..info.clone()
        };
        readdress(plan, config, node, &planned, info.address)?;
    }
    Ok(())
}

/// Moves eth0 of a running node to another address of its link.
pub(crate) fn readdress(
    plan: Plan,
    config: &Config,
    node: &Machine,
    info: &NodeInfo,
    to: Ipv4Addr,
) -> Result<()> {
    let link = plan.link(info.number, false)?;
    for family in config.families.all() {
        // In this order: with the old one there, the new one would be secondary
        // and vanish with it.
        for (verb, address) in [("del", info.address), ("add", to)] {
            let address = family.planned_net(address, link.prefix);
            node.exec(&address_words(*family, verb, &address, "eth0"))?;
        }
        lead_out(*family, node, link, "eth0")?;
    }
    Ok(())
}

/// An unused address on a node's link, for readdressing.
pub(crate) fn spare_address(plan: Plan, info: &NodeInfo) -> Result<Ipv4Addr> {
    let first = plan.link(info.number, false)?.address.octets();
    let step = match plan.kind {
        Underlay::Bridge => 100,
        Underlay::Router => 2,
    };
    let planned = Ipv4Addr::from(first);
    if info.address != planned {
        return Ok(planned);
    }
    Ok(Ipv4Addr::new(first[0], first[1], first[2], first[3] + step))
}

/// Removes the harness's device, if there.
pub(crate) fn unwire_harness(index: u8) {
    let _absent = sh(&["ip", "link", "del", &device(index)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn node(number: u8, address: Ipv4Addr) -> NodeInfo {
        NodeInfo {
            name: "n".to_owned(),
            role: crate::state::Role::Worker,
            number,
            address,
        }
    }

    #[test]
    fn every_machine_of_a_link_has_an_address_of_its_own() {
        for (kind, last) in [(Underlay::Bridge, 21), (Underlay::Router, 21)] {
            let plan = Plan::new(7, kind);
            let mut seen = BTreeSet::new();
            for number in 0..=last {
                let link = plan.link(number, false).expect("room");
                assert!(
                    seen.insert(link.address),
                    "{kind:?} {number}: {}",
                    link.address
                );
                let spare = spare_address(plan, &node(number, link.address)).expect("room");
                assert!(
                    number == 0 || seen.insert(spare),
                    "{kind:?} {number}: {spare}"
                );
                // Moving back is moving to where it was.
                let back = spare_address(plan, &node(number, spare)).expect("room");
                assert_eq!(back, link.address);
            }
        }
    }

    #[test]
    fn a_router_is_the_gateway_of_each_link() {
        let link = Plan::new(3, Underlay::Router).link(2, true).expect("room");
        assert_eq!(link.address, Ipv4Addr::new(172, 31, 3, 18));
        assert_eq!(link.gateway, Ipv4Addr::new(172, 31, 3, 17));
        assert_eq!(link.prefix, 29);
    }

    #[test]
    fn a_full_underlay_says_so() {
        let error = Plan::new(0, Underlay::Router)
            .link(32, false)
            .expect_err("no room");
        assert!(error.to_string().contains("full"), "{error}");
        assert!(Plan::new(0, Underlay::Bridge).link(250, false).is_err());
    }
}
