//! The network of one pod: a veth pair, a /32, a link route to the gateway, a
//! default route by it, and on the host a route and a permanent neighbour.

use std::{io, net::IpAddr, os::fd::AsFd, path::Path};

use ipnet::IpNet;

use veer_agent_core::route::host_route;

use super::{
    address,
    link::{self, Link, Mac, VethEnd},
    message::Socket,
    neighbour,
    netns::Netns,
    route::{self, PROTOCOL, Route},
    sysctl,
};

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
    /// The pod's address.
    pub address: IpAddr,
    /// Its gateway, which is on no device of the pod's link.
    pub gateway: IpAddr,
    /// MTU of both ends, in bytes.
    pub link_mtu: u32,
    /// MTU of the pod's default route, in bytes.
    pub route_mtu: u32,
    /// Source address of what the host sends to the pod.
    pub host_source: Option<IpAddr>,
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
    host_index: u32,
    proc_sys_net: &Path,
) -> io::Result<()> {
    link::no_ipv6_autoconf(host, host_index)?;
    // The device goes with the pod, so nothing is to be restored.
    sysctl::set_device(proc_sys_net, w.host_ifname, w.host_ports)?;

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
    // Behind one of the pod's own (a VPN, a second network), which stays in force.
    route::append(pod, &default_route(index, gateway, mtu))
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
pub fn host_side(
    host: &mut Socket,
    index: u32,
    address: IpAddr,
    mac: Mac,
    source: Option<IpAddr>,
) -> io::Result<()> {
    neighbour::replace(host, index, address, mac)?;
    route::replace(host, &host_route(index, address, source))
}

/// Sets the MTU of a running pod's default route, in bytes, where it is veer's: a
/// pod may have another one (a VPN, a second network). Its own end of the veth
/// gets `link_mtu`.
pub fn set_mtus(
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
pub fn check(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::lab;

    const GATEWAY: &str = "10.1.0.1";

    /// A node's namespace and a wired pod's, with MTUs of 1400 and 1350 bytes.
    fn wired() -> (Netns, Netns, u32) {
        let (node, pod) = (lab::namespace(), lab::namespace());
        // As a host that forwards by a switch of the node's, not of each device.
        node.run(|| std::fs::write("/proc/sys/net/ipv4/conf/default/forwarding", "0").unwrap());
        let wiring = Wiring {
            host_ifname: "veer0123456789",
            host_mac: lab::NEAR,
            pod_ifname: "eth0",
            pod_mac: lab::FAR,
            address: "10.1.0.5".parse().unwrap(),
            gateway: GATEWAY.parse().unwrap(),
            link_mtu: 1400,
            route_mtu: 1350,
            host_source: None,
            host_ports: true,
        };
        let index = node.run(|| {
            let mut host = Socket::route().unwrap();
            let link = create(&mut host, &pod, &wiring).unwrap();
            let sysctls = Path::new("/proc/sys/net");
            configure(&mut host, &pod, &wiring, link.index, sysctls).unwrap();
            link.index
        });
        (node, pod, index)
    }

    fn mtus(pod: &Netns, link: u32, route: u32) {
        set_mtus(pod, "eth0", GATEWAY.parse().unwrap(), link, route).unwrap();
    }

    #[test]
    fn a_pods_device_forwards_and_validates_loosely_whatever_new_devices_do() {
        let (node, _pod, _) = wired();
        for (key, value) in sysctl::DEVICE.into_iter().chain([sysctl::LOOPBACK]) {
            let path = format!("/proc/sys/net/ipv4/conf/veer0123456789/{key}");
            let found = node.run(|| std::fs::read_to_string(path).unwrap());
            assert_eq!(found.trim(), value, "{key}");
        }
    }

    #[test]
    fn both_mtus_of_a_running_pod_are_raised_and_lowered_again() {
        let (_node, pod, _) = wired();
        for (link, route) in [(1500, 1450), (1300, 1250)] {
            mtus(&pod, link, route);
            let seen = pod.command("ip", "route show default");
            assert!(seen.contains(&format!("mtu {route}")), "{seen}");
            let seen = pod.command("ip", "link show eth0");
            assert!(seen.contains(&format!("mtu {link}")), "{seen}");
        }
    }

    #[test]
    fn a_default_route_of_the_pods_own_stays() {
        let (_node, pod, _) = wired();
        let routes = || pod.command("ip", "-o route show default");
        pod.command("ip", "link add tun9 type bridge");
        pod.command("ip", "link set tun9 up");

        // Beside veer's, before it.
        pod.command("ip", "route prepend default dev tun9");
        mtus(&pod, 1400, 1300);
        let seen = routes();
        let [first, second] = seen.lines().collect::<Vec<_>>()[..] else {
            panic!("{seen}");
        };
        assert!(
            first.contains("tun9") && second.contains("mtu 1300"),
            "{seen}"
        );

        // Instead of it.
        pod.command("ip", "route del default dev eth0");
        let before = routes();
        mtus(&pod, 1400, 1250);
        assert_eq!(routes(), before);
    }
}
