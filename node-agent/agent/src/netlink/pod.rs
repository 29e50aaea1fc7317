//! The network of one pod: a veth pair, a /32, a link route to the gateway, a
//! default route by it, and on the host a route and a permanent neighbour.

use std::{io, net::IpAddr, os::fd::AsFd, path::Path};

use ipnet::IpNet;

use super::{
    address,
    link::{self, Link, Mac, VethEnd},
    neighbour,
    netns::Netns,
    route::{self, PROTOCOL, Route},
    sysctl,
    wire::Socket,
};

/// What a pod's network is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wiring<'a> {
    /// Host side's name.
    pub(crate) host_ifname: &'a str,
    /// Host side's MAC.
    pub(crate) host_mac: Mac,
    /// Pod side's name.
    pub(crate) pod_ifname: &'a str,
    /// Pod side's MAC.
    pub(crate) pod_mac: Mac,
    /// The pod's address.
    pub(crate) address: IpAddr,
    /// Its gateway, which is on no device of the pod's link.
    pub(crate) gateway: IpAddr,
    /// MTU of both ends, in bytes.
    pub(crate) link_mtu: u32,
    /// MTU of the pod's default route, in bytes.
    pub(crate) route_mtu: u32,
    /// Source address of what the host sends to the pod.
    pub(crate) host_source: Option<IpAddr>,
}

/// Makes the veth pair, both ends down, and returns the host side.
pub(crate) fn create(host: &mut Socket, netns: &Netns, w: &Wiring<'_>) -> io::Result<Link> {
    // What is left of an ADD that was killed half-way has the same name.
    link::delete(host, w.host_ifname)?;
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
pub(crate) fn configure(
    host: &mut Socket,
    netns: &Netns,
    w: &Wiring<'_>,
    host_index: u32,
    proc_sys_net: &Path,
) -> io::Result<()> {
    link::no_ipv6_autoconf(host, host_index)?;
    // The device goes with the pod, so nothing is to be restored.
    sysctl::set_device(proc_sys_net, w.host_ifname)?;

    let mut pod = netns.socket()?;
    let eth = link::by_name(&mut pod, w.pod_ifname)?
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    link::no_ipv6_autoconf(&mut pod, eth.index)?;
    address::add(&mut pod, eth.index, w.address)?;
    link::set_up(&mut pod, eth.index)?;
    link::set_up(host, host_index)?;
    pod_routes(&mut pod, eth.index, w.gateway, w.route_mtu)?;
    host_side(host, host_index, w.address, w.pod_mac, w.host_source)
}

/// The pod's routes.
fn pod_routes(pod: &mut Socket, index: u32, gateway: IpAddr, mtu: u32) -> io::Result<()> {
    route::replace(pod, &Route::link(IpNet::from(gateway), index))?;
    route::replace(pod, &default_route(index, gateway, mtu))
}

fn default_route(index: u32, gateway: IpAddr, mtu: u32) -> Route {
    let any = if gateway.is_ipv4() {
        IpNet::V4(ipnet::Ipv4Net::default())
    } else {
        IpNet::V6(ipnet::Ipv6Net::default())
    };
    Route {
        gateway: Some(gateway),
        mtu,
        ..Route::link(any, index)
    }
}

/// What the host has for a pod: a route and a neighbour.
pub(crate) fn host_side(
    host: &mut Socket,
    index: u32,
    address: IpAddr,
    mac: Mac,
    source: Option<IpAddr>,
) -> io::Result<()> {
    neighbour::replace(host, index, address, mac)?;
    route::replace(host, &host_route(index, address, source))
}

/// The host's route to a pod.
pub(crate) fn host_route(index: u32, address: IpAddr, source: Option<IpAddr>) -> Route {
    Route {
        source,
        ..Route::link(IpNet::from(address), index)
    }
}

/// Sets the MTU of a running pod's default route, in bytes, where it is veer's: a
/// pod may have another one (a VPN, a second network). Its own end of the veth
/// gets `link_mtu`.
pub(crate) fn set_mtus(
    netns: &Netns,
    ifname: &str,
    gateway: IpAddr,
    link_mtu: u32,
    route_mtu: u32,
) -> io::Result<()> {
    let mut pod = netns.socket()?;
    let eth =
        link::by_name(&mut pod, ifname)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // A route counts whatever the device's MTU is, so it is never the larger one.
    if eth.mtu < link_mtu {
        link::set_mtu(&mut pod, eth.index, link_mtu)?;
    }
    set_route_mtu(&mut pod, &default_route(eth.index, gateway, route_mtu))?;
    if eth.mtu > link_mtu {
        link::set_mtu(&mut pod, eth.index, link_mtu)?;
    }
    Ok(())
}

/// Changes veer's own default route to `wanted`; does nothing where there is none.
fn set_route_mtu(pod: &mut Socket, wanted: &Route) -> io::Result<()> {
    let all = route::list(pod)?;
    let same_place = all
        .iter()
        .filter(|(_, r)| r.destination == wanted.destination && r.metric == wanted.metric);
    let own = |(protocol, r): &&(u8, Route)| {
        *protocol == PROTOCOL && r.index == wanted.index && r.gateway == wanted.gateway
    };
    let Some((_, found)) = same_place.clone().find(own) else {
        return Ok(());
    };
    if found == wanted {
        return Ok(());
    }
    if same_place.count() == 1 {
        return route::replace(pod, wanted);
    }
    // Replacing takes the first, which may be another's.
    route::append(pod, wanted)?;
    route::delete(pod, found).map(drop)
}

/// What a check found wrong with a pod's own end; empty: nothing.
pub(crate) fn check(
    netns: &Netns,
    ifname: &str,
    address: IpAddr,
    gateway: IpAddr,
) -> io::Result<Vec<String>> {
    let mut pod = netns.socket()?;
    let mut wrong = Vec::new();
    let Some(eth) = link::by_name(&mut pod, ifname)? else {
        return Ok(vec![format!("{ifname} is missing in the pod")]);
    };
    if !eth.up {
        wrong.push(format!("{ifname} is down in the pod"));
    }
    let addresses = address::list(&mut pod)?;
    if !addresses
        .iter()
        .any(|a| a.index == eth.index && a.ip == address)
    {
        wrong.push(format!("{ifname} lacks {address}"));
    }
    let routed = route::list(&mut pod)?
        .iter()
        .any(|(_, r)| r.destination.prefix_len() == 0 && r.gateway == Some(gateway));
    if !routed {
        wrong.push(format!("the pod has no default route by {gateway}"));
    }
    Ok(wrong)
}
