//! What only IPv6 has: messages about neighbours and routers, routing headers, and
//! addresses that count on one link. A pod must not speak for others by any of them.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use veer_e2e_cluster::{Family, Machine};
use veer_e2e_tests::{
    forge::{self, Discovery},
    maps::reason,
    pods::Pod,
    workloads::UDP,
};

use crate::{
    scene::{Scene, Test},
    security::{SENT, refused_as},
};

/// All tests, for either mode.
pub(crate) const TESTS: [(&str, Test); 3] = [
    (
        "pod_that_speaks_for_a_router_or_a_neighbour_reaches_nobody",
        Test::Only(Family::V6, discovery),
    ),
    (
        "pod_with_a_routing_header_reaches_nobody",
        Test::Only(Family::V6, routing_header),
    ),
    (
        "link_local_address_reaches_nobody",
        Test::Only(Family::V6, link_local),
    ),
];

/// An address as IPv6's own messages need it.
fn v6(address: IpAddr) -> Result<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(address) => bail!("{address} is not IPv6"),
    }
}

/// What a pod sends as a frame of its own, to be refused for a reason; its neighbour on
/// the node is the victim.
fn refused(scene: &Scene, pod: &Pod, packet: &[u8], why: u32) -> Result<()> {
    let victim = scene.other_on(&pod.node)?;
    let node: Machine = scene.lab.node(&pod.node)?;
    let wire = pod.wire()?;
    let frame = forge::frame(wire.pod_mac, wire.host_mac, false, packet);
    // Whatever of it arrived: nothing else goes from this pod to that one.
    let filter = format!("ether proto 0x86dd and src host {}", pod.address);
    refused_as(scene, victim, &filter, (&node, "pod_egress", why), || {
        forge::burst(&pod.site, "eth0", &frame, SENT)
    })
}

fn discovery(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let (own, mac) = (v6(pod.address)?, pod.wire()?.pod_mac);
    let victim = v6(scene.other_on("worker1")?.address)?;
    let remote = v6(scene.other_on("worker2")?.address)?;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let said = [
        (Discovery::RouterAdvertisement, reason::ROUTER_ADVERTISEMENT),
        (Discovery::Redirect(remote), reason::REDIRECT),
        (Discovery::Advertisement(victim), reason::FOREIGN_NEIGHBOUR),
        (Discovery::Advertisement(remote), reason::FOREIGN_NEIGHBOUR),
        (
            Discovery::Solicitation(victim),
            reason::NEIGHBOUR_NOT_GATEWAY,
        ),
    ];
    for (message, why) in said {
        for to in [victim, all_nodes] {
            let packet = forge::discovery((own, to), mac, message)?;
            refused(scene, pod, &packet, why).with_context(|| format!("{message:?} to {to}"))?;
        }
    }
    Ok(())
}

fn routing_header(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let own = v6(pod.address)?;
    let to = v6(scene.other_on("worker1")?.address)?;
    // The one of RFC 2460, which RFC 5095 took back, and that of segment routing; with
    // segments to go and without.
    for (kind, left) in [(0, 1), (0, 0), (4, 1)] {
        let packet = forge::routed_datagram((own, to), UDP, (kind, left))?;
        refused(scene, pod, &packet, reason::ROUTING_HEADER)
            .with_context(|| format!("type {kind}, {left} segments left"))?;
    }
    Ok(())
}

fn link_local(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let victim = scene.other_on("worker1")?.address;
    let local: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7).into();
    for (from, to, why) in [
        (pod.address, local, reason::UNSUPPORTED_DESTINATION),
        (local, victim, reason::SPOOFED_ADDRESS),
    ] {
        let packet = forge::datagram(from, to, UDP)?;
        refused(scene, pod, &packet, why).with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}
