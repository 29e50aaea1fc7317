//! A packet as people read it, as far as its beginning shows.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, LaxPacketHeaders, LinkHeader, NetHeaders, TcpHeader,
    TransportHeader, ip_number,
};

use crate::mac_text;

/// One end of a packet: an address, and a port where the protocol has one; a MAC where
/// there is no address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// IP address.
    pub address: Option<IpAddr>,
    /// Port of TCP or UDP.
    pub port: Option<u16>,
    /// MAC.
    pub mac: Option<[u8; 6]>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port, self.mac) {
            (Some(address), Some(port), _) => SocketAddr::new(address, port).fmt(f),
            (Some(address), None, _) => address.fmt(f),
            (None, _, Some(mac)) => f.write_str(&mac_text(mac)),
            (None, _, None) => Ok(()),
        }
    }
}

/// What a packet is to its flow, as far as it says so itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// It does not: a datagram, a fragment, an error.
    #[default]
    Unknown,
    /// It opens it: SYN without ACK, an echo request.
    Opens,
    /// It answers the first packet: SYN with ACK, an echo reply.
    Answers,
    /// It goes on: TCP without SYN.
    GoesOn,
}

/// A packet, as far as its beginning shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp`, another protocol's number, or an
    /// `EtherType`.
    pub protocol: String,
    /// Where it comes from.
    pub source: End,
    /// Where it goes.
    pub destination: End,
    /// TTL or hop limit.
    pub hops: Option<u8>,
    /// What it is to its flow.
    pub stage: Stage,
    /// The rest of its headers in words: flags, kinds of ICMP messages.
    pub detail: String,
}

/// A protocol's name, or its number.
pub fn protocol(number: u8) -> String {
    match IpNumber(number) {
        ip_number::ICMP => "icmp".into(),
        ip_number::TCP => "tcp".into(),
        ip_number::UDP => "udp".into(),
        ip_number::IPV6_ICMP => "icmpv6".into(),
        ip_number::SCTP => "sctp".into(),
        IpNumber(other) => other.to_string(),
    }
}

impl Packet {
    /// A frame's packet, Ethernet header first; as much as is there.
    pub fn of(frame: &[u8]) -> Self {
        let Ok(packet) = LaxPacketHeaders::from_ethernet(frame) else {
            return Self {
                protocol: "no Ethernet".into(),
                ..Self::default()
            };
        };
        match (&packet.net, &packet.link) {
            (Some(NetHeaders::Ipv4(ip, _)), _) => {
                let first = ip.fragment_offset.value() == 0;
                let ends = [ip.source, ip.destination].map(|a| Ipv4Addr::from(a).into());
                let fragment = ip.more_fragments || !first;
                between(
                    &packet,
                    ends,
                    ip.protocol,
                    ip.time_to_live,
                    (first, fragment),
                )
            }
            (Some(NetHeaders::Ipv6(ip, extensions)), _) => {
                let header = extensions.fragment.as_ref();
                let first = header.is_none_or(|f| f.fragment_offset.value() == 0);
                let fragment = header.is_some_and(|f| f.more_fragments || !first);
                // Behind the extension headers that are whole.
                let protocol = extensions.next_header(ip.next_header);
                let protocol = protocol.unwrap_or(ip.next_header);
                let ends = [ip.source, ip.destination].map(|a| Ipv6Addr::from(a).into());
                between(&packet, ends, protocol, ip.hop_limit, (first, fragment))
            }
            (Some(NetHeaders::Arp(arp)), _) => match arp.try_eth_ipv4() {
                Ok(arp) => {
                    let [source, destination] = [arp.sender_ipv4, arp.target_ipv4].map(|a| End {
                        address: Some(Ipv4Addr::from(a).into()),
                        ..End::default()
                    });
                    Self {
                        protocol: "arp".into(),
                        source,
                        destination,
                        detail: match arp.operation.0 {
                            1 => "request".into(),
                            2 => "reply".into(),
                            other => format!("operation {other}"),
                        },
                        ..Self::default()
                    }
                }
                Err(_) => macs(&packet, "arp".into()),
            },
            (None, Some(LinkHeader::Ethernet2(frame))) => {
                macs(&packet, format!("{:#06x}", frame.ether_type.0))
            }
            (None, _) => macs(&packet, "?".into()),
        }
    }
}

/// A packet of IP. `first` and `fragment`: whether the transport header is in it, and
/// whether it is a part only.
fn between(
    packet: &LaxPacketHeaders<'_>,
    ends: [IpAddr; 2],
    number: IpNumber,
    hops: u8,
    (first, fragment): (bool, bool),
) -> Packet {
    let ports = first.then(|| ports(packet, number)).flatten();
    let [source, destination] = [0, 1].map(|i| End {
        address: Some(ends[i]),
        port: ports.map(|ports| ports[i]),
        mac: None,
    });
    let (stage, detail) = if first {
        transport(packet.transport.as_ref())
    } else {
        (Stage::Unknown, String::new())
    };
    let detail = match (fragment, first) {
        (false, _) => detail,
        (true, false) => "later fragment".into(),
        (true, true) if detail.is_empty() => "first fragment".into(),
        (true, true) => format!("first fragment, {detail}"),
    };
    Packet {
        protocol: protocol(number.0),
        source,
        destination,
        hops: Some(hops),
        stage,
        detail,
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

/// What a transport header says.
fn transport(header: Option<&TransportHeader>) -> (Stage, String) {
    match header {
        Some(TransportHeader::Tcp(tcp)) => {
            let stage = match (tcp.syn, tcp.ack) {
                (true, false) => Stage::Opens,
                (true, true) => Stage::Answers,
                (false, _) => Stage::GoesOn,
            };
            (stage, flags(tcp))
        }
        Some(TransportHeader::Icmpv4(icmp)) => icmp_v4(&icmp.icmp_type),
        Some(TransportHeader::Icmpv6(icmp)) => icmp_v6(&icmp.icmp_type),
        Some(TransportHeader::Udp(_)) | None => Default::default(),
    }
}

fn flags(tcp: &TcpHeader) -> String {
    let flags = [
        (tcp.syn, "SYN"),
        (tcp.fin, "FIN"),
        (tcp.rst, "RST"),
        (tcp.psh, "PSH"),
        (tcp.urg, "URG"),
        (tcp.ack, "ACK"),
    ];
    let set: Vec<&str> = flags
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, n)| *n)
        .collect();
    set.join(" ")
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others are named by number"
)]
fn icmp_v4(message: &Icmpv4Type) -> (Stage, String) {
    match message {
        Icmpv4Type::EchoRequest(echo) => (Stage::Opens, query("echo request", echo.id, echo.seq)),
        Icmpv4Type::EchoReply(echo) => (Stage::Answers, query("echo reply", echo.id, echo.seq)),
        Icmpv4Type::DestinationUnreachable(why) => (
            Stage::Unknown,
            match why.code_u8() {
                4 => "too big".into(),
                code => format!("destination unreachable, code {code}"),
            },
        ),
        Icmpv4Type::TimeExceeded(_) => (Stage::Unknown, "time exceeded".into()),
        Icmpv4Type::Unknown {
            type_u8, code_u8, ..
        } => (Stage::Unknown, format!("type {type_u8}, code {code_u8}")),
        _ => (Stage::Unknown, String::new()),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others are named by number"
)]
fn icmp_v6(message: &Icmpv6Type) -> (Stage, String) {
    match message {
        Icmpv6Type::EchoRequest(echo) => (Stage::Opens, query("echo request", echo.id, echo.seq)),
        Icmpv6Type::EchoReply(echo) => (Stage::Answers, query("echo reply", echo.id, echo.seq)),
        Icmpv6Type::PacketTooBig { mtu } => (Stage::Unknown, format!("too big for {mtu}")),
        Icmpv6Type::DestinationUnreachable(why) => (
            Stage::Unknown,
            format!("destination unreachable, code {}", why.code_u8()),
        ),
        Icmpv6Type::TimeExceeded(_) => (Stage::Unknown, "time exceeded".into()),
        Icmpv6Type::NeighborSolicitation => (Stage::Unknown, "neighbour solicitation".into()),
        Icmpv6Type::NeighborAdvertisement(_) => (Stage::Unknown, "neighbour advertisement".into()),
        other => (
            Stage::Unknown,
            format!("type {}, code {}", other.type_u8(), other.code_u8()),
        ),
    }
}

fn query(kind: &str, id: u16, sequence: u16) -> String {
    format!("{kind}, id {id}, seq {sequence}")
}

/// Of a frame that no IP address is known of.
fn macs(packet: &LaxPacketHeaders<'_>, protocol: String) -> Packet {
    let ends = match &packet.link {
        Some(LinkHeader::Ethernet2(frame)) => [Some(frame.source), Some(frame.destination)],
        Some(LinkHeader::LinuxSll(_)) | None => [None, None],
    };
    let [source, destination] = ends.map(|mac| End {
        mac,
        ..End::default()
    });
    Packet {
        protocol,
        source,
        destination,
        ..Packet::default()
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

    fn ends(packet: &Packet) -> (String, String) {
        (packet.source.to_string(), packet.destination.to_string())
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
            let seen = Packet::of(&packet);
            assert_eq!(seen.protocol, "udp");
            assert_eq!(ends(&seen), (source, destination));
        }
        let cut = udp_v6(0, &hop_by_hop);
        for length in 0..cut.len() {
            let seen = Packet::of(&cut[..length]);
            assert_eq!(seen.protocol == "udp", length >= 14 + 40 + 8, "{seen:?}");
        }
    }

    #[test]
    fn a_packet_is_told_by_addresses_and_ports() {
        let whole = Packet::of(&udp());
        assert_eq!((&*whole.protocol, whole.hops), ("udp", Some(64)));
        let expected = ("10.0.0.1:4000".to_owned(), "10.0.0.2:53".to_owned());
        assert_eq!(ends(&whole), expected);
        assert_eq!(Packet::of(&udp()[..42]), whole, "no more than the headers");
        let tcp = frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6([0xfd; 16], [0xfe; 16], 64)
                .tcp(1, 2, 3, 4)
                .write(bytes, &[])
                .expect("a packet");
        });
        let cut = Packet::of(&tcp[..58]);
        assert_eq!(cut.protocol, "tcp");
        let (source, destination) = ends(&cut);
        assert!(
            source.ends_with("]:1") && destination.ends_with("]:2"),
            "{cut:?}"
        );
    }

    #[test]
    fn whatever_is_cut_off_is_told_as_far_as_it_goes() {
        let whole = udp();
        for length in 0..whole.len() {
            let seen = Packet::of(&whole[..length]);
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
        let seen = Packet::of(&later);
        assert_eq!(ends(&seen), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!(
            (seen.stage, &*seen.detail),
            (Stage::Unknown, "later fragment")
        );
    }

    #[test]
    fn frames_without_addresses_are_told_by_their_macs() {
        let mut other = udp();
        other[12..14].copy_from_slice(&[0x88, 0xcc]);
        let seen = Packet::of(&other);
        assert_eq!(seen.protocol, "0x88cc");
        assert_eq!(seen.source.to_string(), "02:02:02:02:02:02");
    }

    fn stage(build: impl FnOnce(&mut Vec<u8>)) -> (Stage, String) {
        let seen = Packet::of(&frame(build));
        (seen.stage, seen.detail)
    }

    #[test]
    fn what_a_packet_is_to_its_flow_is_told_by_flags_and_queries() {
        let v4 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10; 4], [11; 4], 64);
        let v6 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([10; 16], [11; 16], 64);
        let request = (Stage::Opens, "echo request, id 7, seq 1".to_owned());
        let reply = (Stage::Answers, "echo reply, id 7, seq 1".to_owned());
        let write = "a packet";
        for (seen, expected) in [
            (
                stage(|to| v4().icmpv4_echo_request(7, 1).write(to, &[]).expect(write)),
                request.clone(),
            ),
            (
                stage(|to| v6().icmpv6_echo_request(7, 1).write(to, &[]).expect(write)),
                request,
            ),
            (
                stage(|to| v4().icmpv4_echo_reply(7, 1).write(to, &[]).expect(write)),
                reply.clone(),
            ),
            (
                stage(|to| v6().icmpv6_echo_reply(7, 1).write(to, &[]).expect(write)),
                reply,
            ),
            (
                stage(|to| v4().tcp(1, 2, 3, 4).syn().write(to, &[]).expect(write)),
                (Stage::Opens, "SYN".to_owned()),
            ),
            (
                stage(|to| {
                    v6().tcp(1, 2, 3, 4)
                        .syn()
                        .ack(9)
                        .write(to, &[])
                        .expect(write);
                }),
                (Stage::Answers, "SYN ACK".to_owned()),
            ),
            (
                stage(|to| {
                    v4().tcp(1, 2, 3, 4)
                        .psh()
                        .ack(9)
                        .write(to, &[])
                        .expect(write);
                }),
                (Stage::GoesOn, "PSH ACK".to_owned()),
            ),
            (
                stage(|to| v4().udp(1, 2).write(to, &[]).expect(write)),
                (Stage::Unknown, String::new()),
            ),
        ] {
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn macs_are_as_people_write_them() {
        assert_eq!(mac_text([2, 0, 0, 0, 0, 255]), "02:00:00:00:00:ff");
    }
}
