//! Samples of dropped packets, as people read them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::{IpNumber, LaxPacketHeaders, LinkHeader, NetHeaders, TransportHeader, ip_number};
use nix::net::if_::if_indextoname;
use veer_agent_api::DropRow;
use veer_bpf_common::{
    device::IfIndex,
    outcome::{DropReason, Program},
    tables::Event,
};

use super::query::protocol;
use crate::report::sources::Sources;
use veer_agent_core::endpoint::{LocalEndpoint, mac_text};
use veer_agent_kernel::datapath::Error;

/// The samples that the maps hold, the latest first.
pub(crate) fn drops(sources: &Sources) -> Result<Vec<DropRow>, Error> {
    let mut samples = sources.maps.samples()?;
    samples.sort_unstable_by_key(|(_, _, sample)| std::cmp::Reverse(sample.at));
    let plan = sources.plan.read();
    let nodes: HashMap<u32, &String> = plan
        .peers
        .by_name
        .iter()
        .map(|(n, id)| (id.get(), n))
        .collect();
    let store = sources.store.read();
    let pods: HashMap<IfIndex, &LocalEndpoint> =
        store.iter().filter_map(|e| Some((e.ifindex?, e))).collect();
    let now = veer_agent_kernel::clock::monotonic();
    let row = |(program, reason, sample): &(Program, DropReason, Event)| {
        let PacketSummary {
            protocol,
            source,
            destination,
        } = seen(sample.frame());
        let node = nodes.get(&sample.decision.node_id);
        let pod = IfIndex::new(sample.ifindex).and_then(|device| pods.get(&device));
        DropRow {
            age_ms: now.saturating_sub(sample.at) / 1_000_000,
            reason: reason.name().into(),
            program: program.name().into(),
            device: device(sample.ifindex),
            pod: pod.map(|e| e.pod()).unwrap_or_default(),
            protocol,
            source,
            destination,
            bytes: sample.length,
            identity: sample.decision.source_identity,
            node: node.map(|n| (*n).clone()).unwrap_or_default(),
        }
    };
    Ok(samples.iter().map(row).collect())
}

/// A device's name; its number once it is gone.
fn device(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.and_then(|n| n.into_string().ok());
    name.unwrap_or_else(|| format!("gone ({index})"))
}

/// A packet's kind, as far as its beginning shows.
#[derive(Debug, PartialEq, Eq)]
struct PacketSummary {
    protocol: String,
    source: String,
    destination: String,
}

fn seen(head: &[u8]) -> PacketSummary {
    let Ok(packet) = LaxPacketHeaders::from_ethernet(head) else {
        return PacketSummary {
            protocol: "no Ethernet".into(),
            source: String::new(),
            destination: String::new(),
        };
    };
    match (&packet.net, &packet.link) {
        (Some(NetHeaders::Ipv4(ip, _)), _) => {
            let first = ip.fragment_offset.value() == 0;
            let ports = first.then(|| ports(&packet, ip.protocol)).flatten();
            let [source, destination] = [ip.source, ip.destination].map(Ipv4Addr::from);
            between(ip.protocol.0, source, destination, ports)
        }
        (Some(NetHeaders::Ipv6(ip, extensions)), _) => {
            let fragment = extensions.fragment.as_ref();
            let first = fragment.is_none_or(|f| f.fragment_offset.value() == 0);
            // Behind the extension headers that are whole.
            let protocol = extensions.next_header(ip.next_header);
            let protocol = protocol.unwrap_or(ip.next_header);
            let ports = first.then(|| ports(&packet, protocol)).flatten();
            let [source, destination] = [ip.source, ip.destination].map(Ipv6Addr::from);
            between(protocol.0, source, destination, ports)
        }
        (Some(NetHeaders::Arp(arp)), _) => match arp.try_eth_ipv4() {
            Ok(arp) => PacketSummary {
                protocol: "arp".into(),
                source: Ipv4Addr::from(arp.sender_ipv4).to_string(),
                destination: Ipv4Addr::from(arp.target_ipv4).to_string(),
            },
            Err(_) => macs(&packet, "arp".into()),
        },
        (None, Some(LinkHeader::Ethernet2(frame))) => {
            macs(&packet, format!("{:#06x}", frame.ether_type.0))
        }
        (None, _) => macs(&packet, "?".into()),
    }
}

/// Ports, also of a transport header that is cut off behind them.
fn ports(packet: &LaxPacketHeaders<'_>, protocol: IpNumber) -> Option<[u16; 2]> {
    match &packet.transport {
        Some(TransportHeader::Udp(udp)) => Some([udp.source_port, udp.destination_port]),
        Some(TransportHeader::Tcp(tcp)) => Some([tcp.source_port, tcp.destination_port]),
        None if protocol == ip_number::TCP || protocol == ip_number::UDP => {
            let [a, b, c, d] = *packet.payload.slice().first_chunk()?;
            Some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
        }
        Some(TransportHeader::Icmpv4(_) | TransportHeader::Icmpv6(_)) | None => None,
    }
}

fn between(
    number: u8,
    source: impl Into<IpAddr>,
    destination: impl Into<IpAddr>,
    ports: Option<[u16; 2]>,
) -> PacketSummary {
    let (source, destination) = (source.into(), destination.into());
    let end = |address, port: Option<u16>| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    PacketSummary {
        protocol: protocol(number),
        source: end(source, ports.map(|p| p[0])),
        destination: end(destination, ports.map(|p| p[1])),
    }
}

/// Of a frame that no IP address is known of.
fn macs(packet: &LaxPacketHeaders<'_>, protocol: String) -> PacketSummary {
    let [source, destination] = match &packet.link {
        Some(LinkHeader::Ethernet2(frame)) => [frame.source, frame.destination].map(mac_text),
        Some(LinkHeader::LinuxSll(_)) | None => Default::default(),
    };
    PacketSummary {
        protocol,
        source,
        destination,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        build(&mut bytes);
        bytes
    }

    fn udp() -> Vec<u8> {
        frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .udp(4000, 53)
                .write(bytes, &[7; 100])
                .expect("a packet");
        })
    }

    /// A UDP datagram over IPv6 behind these extension headers, of which `first` is the
    /// number of the first.
    fn udp_v6(first: u8, extensions: &[u8]) -> Vec<u8> {
        let plain = frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6([0xfd; 16], [0xfe; 16], 64)
                .udp(4000, 53)
                .write(bytes, &[7; 100])
                .expect("a packet");
        });
        let (head, rest) = plain.split_at(14 + 40);
        let mut bytes = [head, extensions, rest].concat();
        bytes[14 + 6] = first;
        let length = u16::try_from(extensions.len() + rest.len()).unwrap();
        bytes[14 + 4..14 + 6].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    #[test]
    fn a_packet_of_ipv6_is_told_by_what_is_behind_its_extension_headers() {
        let [source, destination] = [0xfd, 0xfe].map(|byte| Ipv6Addr::from([byte; 16]));
        let hop_by_hop = [17, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |offset: u8| [17, 0, 0, offset << 3 | 1, 1, 2, 3, 4];
        for (packet, ports) in [
            (udp_v6(17, &[]), true),
            (udp_v6(0, &hop_by_hop), true),
            (udp_v6(44, &fragment(0)), true),
            (udp_v6(44, &fragment(9)), false),
        ] {
            let [source, destination] = if ports {
                [format!("[{source}]:4000"), format!("[{destination}]:53")]
            } else {
                [source.to_string(), destination.to_string()]
            };
            let expected = PacketSummary {
                protocol: "udp".into(),
                source,
                destination,
            };
            assert_eq!(seen(&packet), expected);
        }
        let cut = udp_v6(0, &hop_by_hop);
        for length in 0..cut.len() {
            let seen = seen(&cut[..length]);
            assert_eq!(seen.protocol == "udp", length >= 14 + 40 + 8, "{seen:?}");
        }
    }

    #[test]
    fn a_packet_is_told_by_addresses_and_ports() {
        let expected = PacketSummary {
            protocol: "udp".into(),
            source: "10.0.0.1:4000".into(),
            destination: "10.0.0.2:53".into(),
        };
        assert_eq!(seen(&udp()), expected);
        assert_eq!(seen(&udp()[..42]), expected, "no more than the headers");
        let tcp = frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6([0xfd; 16], [0xfe; 16], 64)
                .tcp(1, 2, 3, 4)
                .write(bytes, &[])
                .expect("a packet");
        });
        let cut = seen(&tcp[..58]);
        assert_eq!(cut.protocol, "tcp");
        assert!(
            cut.source.ends_with("]:1") && cut.destination.ends_with("]:2"),
            "{cut:?}"
        );
    }

    #[test]
    fn whatever_is_cut_off_is_told_as_far_as_it_goes() {
        let whole = udp();
        for length in 0..whole.len() {
            let seen = seen(&whole[..length]);
            let expected = match length {
                0..14 => "no Ethernet",
                14..34 => "0x0800",
                _ => "udp",
            };
            assert_eq!(seen.protocol, expected, "{length} octets: {seen:?}");
        }
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut later = udp();
        later[20..22].copy_from_slice(&[0x00, 0x10]);
        let seen = seen(&later);
        assert_eq!(
            (&*seen.source, &*seen.destination),
            ("10.0.0.1", "10.0.0.2")
        );
    }

    #[test]
    fn frames_without_addresses_are_told_by_their_macs() {
        let mut other = udp();
        other[12..14].copy_from_slice(&[0x88, 0xcc]);
        let seen = seen(&other);
        assert_eq!(seen.protocol, "0x88cc");
        assert_eq!(seen.source, "02:02:02:02:02:02");
    }
}
