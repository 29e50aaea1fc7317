//! Ports of the node that lead to a pod, as a runtime passes them by the capability
//! `portMappings` (CNI conventions, "Dynamic plugin specific fields").

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest list that is taken.
pub const MAX_HOST_PORTS: usize = 512;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let all = [Self::Tcp, Self::Udp, Self::Sctp];
        all.into_iter()
            .find(|p| p.name().eq_ignore_ascii_case(name))
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Of both ports.
    pub protocol: Protocol,
    /// The node's address; 0.0.0.0: every one that it has, `::`: every one of IPv6.
    pub host_ip: IpAddr,
    /// The node's port.
    pub host_port: NonZeroU16,
    /// The pod's port.
    pub container_port: NonZeroU16,
}

/// At which of the node's addresses of a family a port leads to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// At none.
    None,
    /// At every one.
    Every,
    /// At this one.
    One(IpAddr),
}

/// Stands for every address, of both families: what a runtime leaves empty.
const EVERY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl HostPort {
    /// At which addresses of IPv4, or else of IPv6, it leads to the pod.
    pub fn within(&self, is_ipv4: bool) -> HostAddress {
        let of_family = self.host_ip.is_ipv4() == is_ipv4;
        if self.host_ip == EVERY || (of_family && self.host_ip.is_unspecified()) {
            HostAddress::Every
        } else if of_family {
            HostAddress::One(self.host_ip)
        } else {
            HostAddress::None
        }
    }

    /// Whether both want the same port of one address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let at_one = |is_ipv4| match (self.within(is_ipv4), other.within(is_ipv4)) {
            (HostAddress::None, _) | (_, HostAddress::None) => false,
            (HostAddress::Every, _) | (_, HostAddress::Every) => true,
            (HostAddress::One(own), HostAddress::One(other)) => own == other,
        };
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && [true, false].into_iter().any(at_one)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = (self.protocol.name(), self.host_port);
        if self.host_ip == EVERY {
            write!(f, "{protocol}/{port}")
        } else {
            write!(
                f,
                "{protocol}/{}",
                SocketAddr::new(self.host_ip, port.get())
            )
        }
    }
}

/// Why a list of mappings is not taken, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPorts(pub String);

/// A mapping as runtimes write it, its names in small letters: containerd writes
/// `HostPort` for the conventions' `hostPort`, which is the same to Go's decoder.
#[derive(Deserialize)]
struct Mapping {
    #[serde(rename = "hostport")]
    host_port: i64,
    #[serde(rename = "containerport")]
    container_port: i64,
    protocol: String,
    #[serde(default, rename = "hostip")]
    host_ip: String,
}

/// Takes a runtime's list of mappings.
pub fn parse(mappings: &Value) -> Result<Vec<HostPort>, BadPorts> {
    let all = mappings
        .as_array()
        .ok_or_else(|| BadPorts("portMappings is no list".to_owned()))?;
    if all.len() > MAX_HOST_PORTS {
        let count = all.len();
        return Err(BadPorts(format!(
            "{count} hostPorts: a pod may have {MAX_HOST_PORTS}"
        )));
    }
    all.iter().map(one).collect()
}

fn one(mapping: &Value) -> Result<HostPort, BadPorts> {
    let bad = |problem: String| BadPorts(format!("hostPort {mapping}: {problem}"));
    let fields = mapping.as_object().into_iter().flatten();
    let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let read = Mapping::deserialize(Value::Object(fields.collect()));
    let read = read.map_err(|e| bad(e.to_string()))?;
    let port = |name: &str, number: i64| {
        u16::try_from(number)
            .ok()
            .and_then(NonZeroU16::new)
            .ok_or_else(|| bad(format!("{name} must be from 1 to 65535")))
    };
    let host_ip = match read.host_ip.as_str() {
        "" => EVERY,
        text => text
            .parse::<IpAddr>()
            .map(|ip| ip.to_canonical())
            .map_err(|_| bad("hostIP must be an IP address or empty".to_owned()))?,
    };
    Ok(HostPort {
        protocol: Protocol::parse(&read.protocol)
            .ok_or_else(|| bad("protocol must be tcp, udp or sctp".to_owned()))?,
        host_ip,
        host_port: port("hostPort", read.host_port)?,
        container_port: port("containerPort", read.container_port)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mapping(key: &str, value: &Value) -> Value {
        let mut mapping = json!({
            "hostPort": 8088, "containerPort": 8080, "protocol": "tcp", "hostIP": ""
        });
        mapping[key] = value.clone();
        json!([mapping])
    }

    #[test]
    fn mappings_as_runtimes_write_them_are_taken() {
        let all = json!([
            {"hostPort": 8088, "containerPort": 8080, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"},
            {"HostPort": 9, "ContainerPort": 9, "Protocol": "sctp", "HostIP": ""},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "2001:db8::1"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "tcp", "hostIP": "::"},
        ]);
        let words: Vec<String> = parse(&all)
            .unwrap()
            .iter()
            .map(HostPort::to_string)
            .collect();
        let expected = [
            "tcp/8088",
            "udp/192.0.2.1:53",
            "sctp/9",
            "udp/[2001:db8::1]:53",
            "tcp/[::]:53",
        ];
        assert_eq!(words, expected);
        let text = serde_json::to_string(&parse(&all).unwrap()[0]).unwrap();
        let former =
            r#"{"protocol":"tcp","host_ip":"0.0.0.0","host_port":8088,"container_port":8080}"#;
        assert_eq!(text, former, "as records have it");
    }

    #[test]
    fn a_port_of_every_address_is_one_of_both_families() {
        let port = |ip: &str| parse(&mapping("hostIP", &json!(ip))).unwrap()[0];
        let (v4, v6) = ("192.0.2.1", "2001:db8::1");
        for (a, b, overlap) in [
            ("", "", true),
            ("", v4, true),
            ("", v6, true),
            ("", "::", true),
            ("::", v6, true),
            ("::", v4, false),
            (v4, v4, true),
            (v4, "::ffff:192.0.2.1", true),
            (v4, v6, false),
            (v6, "2001:db8::2", false),
        ] {
            assert_eq!(port(a).overlaps(&port(b)), overlap, "{a} {b}");
            assert_eq!(port(b).overlaps(&port(a)), overlap, "{b} {a}");
        }
        let within = |ip| [true, false].map(|family| port(ip).within(family));
        assert_eq!(within(""), [HostAddress::Every; 2]);
        assert_eq!(within("::"), [HostAddress::None, HostAddress::Every]);
        let one = HostAddress::One(v4.parse().unwrap());
        assert_eq!(within(v4), [one, HostAddress::None]);
    }

    #[test]
    fn what_is_no_port_protocol_or_address_is_refused_in_words() {
        for (key, value, word) in [
            ("hostPort", json!(0), "from 1 to 65535"),
            ("hostPort", json!(65_536), "from 1 to 65535"),
            ("containerPort", json!(-1), "from 1 to 65535"),
            ("containerPort", json!("80"), "string"),
            ("protocol", json!("icmp"), "tcp, udp or sctp"),
            ("hostIP", json!("fe80::1%eth0"), "IP address"),
            ("hostIP", json!("192.0.2.1/24"), "IP address"),
        ] {
            let BadPorts(text) = parse(&mapping(key, &value)).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
        assert!(parse(&json!({"hostPort": 1})).is_err());
        let many = vec![mapping("hostPort", &json!(1))[0].clone(); MAX_HOST_PORTS + 1];
        assert!(parse(&Value::from(many)).is_err());
    }

    #[test]
    fn one_port_of_two_addresses_is_not_the_same_and_of_all_addresses_is() {
        let of = |ip: &str| parse(&mapping("hostIP", &json!(ip))).unwrap()[0];
        assert!(!of("192.0.2.1").overlaps(&of("192.0.2.2")));
        assert!(of("192.0.2.1").overlaps(&of("0.0.0.0")));
        let udp = parse(&mapping("protocol", &json!("udp"))).unwrap()[0];
        assert!(!udp.overlaps(&of("")));
    }
}
