//! The network of one pod: a veth pair; for each address a /32 or /128, a link route to
//! the gateway, a default route by it, and on the host a route and a permanent neighbour.

use std::{
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use veer_bpf_common::device::IfIndex;

use veer_agent_core::{endpoint::PodAddress, family::Family, mtu::Mtu, route::host_route};

use super::{
    address::{self, Address},
    link::{self, Link, Mac, VethEnd},
    message::Socket,
    neighbour,
    netns::Netns,
    route::{self, PROTOCOL, Route},
    sysctl,
};

/// How long the kernel is given to make an address its own.
const SETTLING: Duration = Duration::from_secs(1);

/// What a pod's network is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wiring<'a> {
    /// Host side's name.
    pub host_ifname: &'a str,
    /// Host side's MAC.
    pub host_mac: Mac,
    /// Pod side's name.
    pub pod_ifname: &'a str,
    /// Pod side's MAC.
    pub pod_mac: Mac,
    /// The pod's addresses, with gateways that are on no device of the pod's link.
    pub addresses: &'a [PodAddress],
    /// MTU of both ends.
    pub link_mtu: Mtu,
    /// MTU of the pod's default route.
    pub route_mtu: Mtu,
    /// The node's addresses: of each family the first is the source of what the host sends
    /// to the pod.
    pub host_sources: &'a [IpAddr],
    /// Whether ports of the node lead to it.
    pub host_ports: bool,
}

/// Makes the veth pair, both ends down, and returns the host side.
pub fn create(host: &mut Socket, netns: &Netns, w: &Wiring<'_>) -> io::Result<Link> {
    // What is left of an ADD that was killed half-way has the same name.
    link::delete_veth(host, w.host_ifname)?;
    link::add_veth(
        host,
        VethEnd {
            name: w.host_ifname,
            mac: w.host_mac,
        },
        VethEnd {
            name: w.pod_ifname,
            mac: w.pod_mac,
        },
        w.link_mtu,
        netns.file.as_fd(),
    )?;
    link::by_name(host, w.host_ifname)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Addresses, brings up and routes both ends.
pub fn configure(
    host: &mut Socket,
    netns: &Netns,
    w: &Wiring<'_>,
    host_index: IfIndex,
    proc_sys_net: &Path,
) -> io::Result<()> {
    let ipv6 = w.addresses.iter().any(|a| a.address.is_ipv6());
    link::set_link_local(host, host_index, false)?;
    if ipv6 {
        // First, since it says what is missing where the kernel has no IPv6.
        netns.inside(|| sysctl::enable_in_pod(proc_sys_net, w.pod_ifname))?;
    }
    // The device goes with the pod, so nothing is to be restored.
    sysctl::set_device(proc_sys_net, w.host_ifname, w.host_ports, ipv6)?;

    let mut pod = netns.socket()?;
    let eth = link::by_name(&mut pod, w.pod_ifname)?
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    link::set_link_local(&mut pod, eth.index, ipv6)?;
    for of_pod in w.addresses {
        address::add(&mut pod, eth.index, of_pod.address)?;
    }
    link::set_up(&mut pod, eth.index)?;
    link::set_up(host, host_index)?;
    for PodAddress { address, gateway } in w.addresses {
        pod_routes(&mut pod, eth.index, *gateway, w.route_mtu)?;
        let mut sources = w.host_sources.iter().copied();
        let source = sources.find(|s| Family::of(*address).has(*s));
        host_side(host, host_index, *address, w.pod_mac, source)?;
    }
    for of_pod in w.addresses.iter().filter(|a| a.address.is_ipv6()) {
        settle(&mut pod, of_pod.address)?;
    }
    Ok(())
}

/// Waits until the pod takes packets to its address: the kernel makes an IPv6 address its
/// own a moment after it has taken it. Later is no failure of anything here.
fn settle(pod: &mut Socket, address: IpAddr) -> io::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < SETTLING {
        if route::lookup(pod, address)?.is_some_and(|found| found.index == link::LOOPBACK) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The pod's routes by a gateway.
fn pod_routes(pod: &mut Socket, index: IfIndex, gateway: IpAddr, mtu: Mtu) -> io::Result<()> {
    route::replace(pod, &Route::link(IpNet::from(gateway), index))?;
    // Behind one of the pod's own (a VPN, a second network), which stays in force.
    let mut wanted = default_route(index, gateway, mtu);
    if gateway.is_ipv6() {
        let all = route::list(pod)?;
        let own = |r: &&Route| r.destination == wanted.destination && r.index != Some(index);
        let own = all.iter().map(|(_, r)| r).filter(own);
        wanted.metric = own.map(|r| route::behind(r.metric)).max().unwrap_or(0);
    }
    route::append(pod, &wanted)
}

fn default_route(index: IfIndex, gateway: IpAddr, mtu: Mtu) -> Route {
    let any = if gateway.is_ipv4() {
        IpNet::V4(ipnet::Ipv4Net::default())
    } else {
        IpNet::V6(ipnet::Ipv6Net::default())
    };
    Route {
        gateway: Some(gateway),
        mtu: Some(mtu),
        ..Route::link(any, index)
    }
}

/// What the host has for a pod: a route and a neighbour.
pub fn host_side(
    host: &mut Socket,
    index: IfIndex,
    address: IpAddr,
    mac: Mac,
    source: Option<IpAddr>,
) -> io::Result<()> {
    neighbour::replace(host, index, address, mac)?;
    route::replace(host, &host_route(index, address, source))
}

/// Sets the MTU of a running pod's default routes where they are veer's: a pod
/// may have others (a VPN, a second network). Its own end of the veth gets `link_mtu`.
pub fn set_mtus(
    netns: &Netns,
    ifname: &str,
    addresses: &[PodAddress],
    link_mtu: Mtu,
    route_mtu: Mtu,
) -> io::Result<()> {
    let mut pod = netns.socket()?;
    let eth =
        link::by_name(&mut pod, ifname)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // A route counts whatever the device's MTU is, so it is never the larger one.
    if eth.mtu < Some(link_mtu) {
        link::set_mtu(&mut pod, eth.index, link_mtu)?;
    }
    for of_pod in addresses {
        set_route_mtu(
            &mut pod,
            default_route(eth.index, of_pod.gateway, route_mtu),
        )?;
    }
    if eth.mtu > Some(link_mtu) {
        link::set_mtu(&mut pod, eth.index, link_mtu)?;
    }
    Ok(())
}

/// Changes veer's own default route to `wanted`, whatever its metric; does nothing where
/// there is none.
fn set_route_mtu(pod: &mut Socket, mut wanted: Route) -> io::Result<()> {
    let all = route::list(pod)?;
    let own = |(protocol, r): &&(u8, Route)| {
        *protocol == PROTOCOL
            && r.destination == wanted.destination
            && r.index == wanted.index
            && r.gateway == wanted.gateway
    };
    let Some((_, found)) = all.iter().find(own) else {
        return Ok(());
    };
    wanted.metric = found.metric;
    if *found == wanted {
        return Ok(());
    }
    let same_place =
        |(_, r): &&(u8, Route)| r.destination == wanted.destination && r.metric == wanted.metric;
    if all.iter().filter(same_place).count() == 1 {
        return route::replace(pod, &wanted);
    }
    // Replacing takes the first, which may be another's.
    if wanted.destination.addr().is_ipv4() {
        route::append(pod, &wanted)?;
        return route::delete(pod, found).map(drop);
    }
    // Of IPv6 two routes that differ in the MTU alone are one.
    route::delete(pod, found)?;
    route::append(pod, &wanted)
}

/// What a check found wrong with a pod's own end; empty: nothing.
pub fn check(netns: &Netns, ifname: &str, wanted: &[PodAddress]) -> io::Result<Vec<String>> {
    let mut pod = netns.socket()?;
    let mut wrong = Vec::new();
    let Some(eth) = link::by_name(&mut pod, ifname)? else {
        return Ok(vec![format!("{ifname} is missing in the pod")]);
    };
    if !eth.up {
        wrong.push(format!("{ifname} is down in the pod"));
    }
    let addresses = address::list(&mut pod)?;
    let routes = route::list(&mut pod)?;
    for PodAddress { address, gateway } in wanted {
        let has = |a: &Address| a.index == eth.index && a.ip == *address;
        if !addresses.iter().any(has) {
            wrong.push(format!("{ifname} lacks {address}"));
        }
        let leads = |r: &Route| r.destination.prefix_len() == 0 && r.gateway == Some(*gateway);
        if !routes.iter().any(|(_, r)| leads(r)) {
            wrong.push(format!("the pod has no default route by {gateway}"));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests;
