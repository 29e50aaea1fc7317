//! Routes (`include/uapi/linux/rtnetlink.h`). Those of veer carry a protocol
//! number of their own, by which it knows them again.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use veer_agent_core::mtu::Mtu;
use veer_bpf_common::device::IfIndex;

pub use veer_agent_core::route::Route;

use super::{
    address::{from_octets, octets},
    message::{APPEND, Attrs, CREATE, Message, REPLACE, Received, Socket, u16_at, u32_at},
};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;
const TABLE_MAIN: u8 = 254;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `IP6_RT_PRIO_USER`: the metric of an IPv6 route that is given none. Here it is 0, as of
/// IPv4.
const METRIC_V6: u32 = 1024;
const TYPE_UNICAST: u8 = 1;
const TYPE_UNREACHABLE: u8 = 7;
/// `RTN_BLACKHOLE` to `RTN_PROHIBIT`: IPv6 says that these are on lo.
const REFUSING: RangeInclusive<u8> = 6..=8;
const HEADER: usize = 12;
/// Bytes of `struct rtnexthop`.
const NEXT_HOP: usize = 8;

/// `rtm_protocol` of veer's routes, of the node and in pods.
pub const PROTOCOL: u8 = 0x76;

fn message(route: &Route, kind: u16, flags: u16) -> Message {
    let scope = if route.unreachable || route.gateway.is_some() {
        SCOPE_UNIVERSE
    } else {
        SCOPE_LINK
    };
    let kind_of_route = if route.unreachable {
        TYPE_UNREACHABLE
    } else {
        TYPE_UNICAST
    };
    let scope = if kind == RTM_DELROUTE {
        SCOPE_NOWHERE
    } else {
        scope
    };
    let mut fixed = header(route.destination);
    fixed[4] = TABLE_MAIN;
    fixed[5] = PROTOCOL;
    fixed[6] = scope;
    fixed[7] = kind_of_route;
    if route.onlink {
        fixed[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, flags, &fixed);
    message.attr(RTA_DST, &octets(route.destination.network()));
    match route.gateway {
        Some(gateway) if gateway.is_ipv4() == route.destination.addr().is_ipv4() => {
            message.attr(RTA_GATEWAY, &octets(gateway));
        }
        Some(gateway) => {
            let family = u16::from(family(gateway)).to_ne_bytes();
            message.attr(RTA_VIA, &[&family[..], &octets(gateway)].concat());
        }
        None => {}
    }
    if let Some(device) = route.index {
        message.u32(RTA_OIF, device.get());
    }
    if let Some(source) = route.source {
        message.attr(RTA_PREFSRC, &octets(source));
    }
    match (route.metric, route.destination) {
        (0, IpNet::V4(_)) => {}
        // A deletion without one would take any.
        (0, IpNet::V6(_)) => drop(message.u32(RTA_PRIORITY, METRIC_V6)),
        (metric, _) => drop(message.u32(RTA_PRIORITY, metric)),
    }
    if let Some(mtu) = route.mtu {
        message.nest(RTA_METRICS, |m| {
            m.u32(RTAX_MTU, mtu.get());
        });
    }
    message
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The metric of an IPv6 route that counts only where one with this one is gone.
pub(super) fn behind(metric: u32) -> u32 {
    let metric = if metric == 0 { METRIC_V6 } else { metric };
    metric.saturating_add(1)
}

/// The next hop among attributes, which may be of the other family than the destination.
fn gateway(attrs: &Attrs<'_>) -> Option<IpAddr> {
    let via = || attrs.find(RTA_VIA)?.get(2..);
    from_octets(attrs.find(RTA_GATEWAY).or_else(via)?)
}

fn header(destination: IpNet) -> [u8; HEADER] {
    let mut h = [0; HEADER];
    h[0] = family(destination.addr());
    h[1] = destination.prefix_len();
    h
}

/// The route of a message; one per next hop of a route that has several.
fn parse(message: &Received) -> Vec<Route> {
    let Some(route) = parse_head(message) else {
        return Vec::new();
    };
    let Some(mut hops) = message.attrs(HEADER).find(RTA_MULTIPATH) else {
        return vec![route];
    };
    let mut routes = Vec::new();
    // `struct rtnexthop`: length, flags, weight, device.
    while let (Some(length), Some(index)) = (u16_at(hops, 0), u32_at(hops, 4)) {
        let length = usize::from(length);
        let Some(attrs) = hops.get(NEXT_HOP..length) else {
            break;
        };
        routes.push(Route {
            gateway: gateway(&Attrs(attrs)),
            index: IfIndex::new(index),
            ..route.clone()
        });
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    routes
}

fn parse_head(message: &Received) -> Option<Route> {
    let body = &message.body;
    let any: IpAddr = match *body.first()? {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let flags = u32_at(body, 8)?;
    let main = *body.get(4)? == TABLE_MAIN && flags & RTM_F_CLONED == 0;
    if message.kind != RTM_NEWROUTE || !main {
        return None;
    }
    let attrs = message.attrs(HEADER);
    if attrs
        .find(RTA_TABLE)
        .and_then(|v| u32_at(v, 0))
        .is_some_and(|t| t != u32::from(TABLE_MAIN))
    {
        return None;
    }
    let number = |kind| attrs.find(kind).and_then(|v| u32_at(v, 0)).unwrap_or(0);
    let destination = attrs.find(RTA_DST).and_then(from_octets).unwrap_or(any);
    let metric = number(RTA_PRIORITY);
    Some(Route {
        destination: IpNet::new(destination, body[1]).ok()?,
        gateway: gateway(&attrs),
        index: if REFUSING.contains(&body[7]) {
            None
        } else {
            IfIndex::new(number(RTA_OIF))
        },
        source: attrs.find(RTA_PREFSRC).and_then(from_octets),
        mtu: attrs
            .find(RTA_METRICS)
            .and_then(|v| Attrs(v).find(RTAX_MTU))
            .and_then(|v| Mtu::new(u32_at(v, 0)?)),
        metric: if any.is_ipv6() && metric == METRIC_V6 {
            0
        } else {
            metric
        },
        onlink: flags & RTNH_F_ONLINK != 0,
        unreachable: body[7] == TYPE_UNREACHABLE,
    })
}

/// Whether a notification is of a route that counts for more than one pod: of
/// the main table, and not one of veer's to a single address.
pub(super) fn concerns_the_node(message: &Received) -> bool {
    let byte = |at: usize| message.body.get(at).copied();
    let single = matches!(
        (byte(0), byte(1)),
        (Some(AF_INET), Some(32)) | (Some(AF_INET6), Some(128))
    );
    byte(4) == Some(TABLE_MAIN) && !(byte(5) == Some(PROTOCOL) && single)
}

/// The routes of the main table, with their protocol; one of several next hops once for
/// each.
pub fn list(socket: &mut Socket) -> io::Result<Vec<(u8, Route)>> {
    let message = Message::new(RTM_GETROUTE, 0, &[0; HEADER]);
    Ok(socket
        .dump(&message)?
        .iter()
        .flat_map(|m| {
            let protocol = m.body.get(5).copied().unwrap_or_default();
            parse(m).into_iter().map(move |route| (protocol, route))
        })
        .collect())
}

/// Makes a route behind those that are there to the destination. The kernel joins IPv6
/// routes of one metric to one with several next hops, so there it takes a larger one.
pub fn append(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.request(message(route, RTM_NEWROUTE, CREATE | APPEND))
}

/// Makes or changes the route to a destination. Of several with its metric, it is the first
/// whose place it takes.
pub fn replace(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.request(message(route, RTM_NEWROUTE, CREATE | REPLACE))
}

/// Removes a route; fine when there is none. Returns whether there was.
pub fn delete(socket: &mut Socket, route: &Route) -> io::Result<bool> {
    match socket.request(message(route, RTM_DELROUTE, 0)) {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENODEV)) => {
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

/// What the kernel would do with a packet to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Device.
    pub index: IfIndex,
    /// Router; `None` when the address is on the link.
    pub gateway: Option<IpAddr>,
    /// Source address.
    pub source: Option<IpAddr>,
}

/// Asks the kernel's routing table. `None` when it has no route there.
pub fn lookup(socket: &mut Socket, destination: IpAddr) -> io::Result<Option<Lookup>> {
    let mut message = Message::new(RTM_GETROUTE, 0, &header(IpNet::from(destination)));
    message.attr(RTA_DST, &octets(destination));
    let received = match socket.get(message) {
        Ok(received) => received,
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH | nix::libc::EOPNOTSUPP)
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let attrs = received.attrs(HEADER);
    Ok(attrs
        .find(RTA_OIF)
        .and_then(|v| IfIndex::new(u32_at(v, 0)?))
        .map(|index| Lookup {
            index,
            gateway: gateway(&attrs),
            source: attrs.find(RTA_PREFSRC).and_then(from_octets),
        }))
}

#[cfg(test)]
mod tests;
