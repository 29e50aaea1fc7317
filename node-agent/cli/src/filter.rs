//! What is wanted of packets and flows, by what their headers say.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_agent_api::packet::{self, End};

/// Options for what headers say. Values of one option are alternatives, and all options
/// must hold together. Addresses and ports may be of either end.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Filter {
    /// Only what goes from or to this address or prefix.
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = prefix)]
    pub(crate) address: Vec<IpNet>,

    /// Only what goes from or to this port.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Vec<u16>,

    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6, arp or a number.
    #[arg(long, value_name = "NAME", value_parser = protocol)]
    pub(crate) protocol: Vec<String>,
}

/// An address or a prefix, as options name them.
pub(crate) fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "neither an address nor a prefix like 10.0.0.0/8".into())
}

/// A protocol as [`packet::protocol`] names it.
fn protocol(text: &str) -> Result<String, String> {
    let text = text.to_lowercase();
    match text.parse() {
        Ok(number) => Ok(packet::protocol(number)),
        Err(_) if ["tcp", "udp", "sctp", "icmp", "icmpv6", "arp"].contains(&&*text) => Ok(text),
        Err(_) => Err("one of tcp, udp, sctp, icmp, icmpv6 and arp, or a number up to 255".into()),
    }
}

impl Filter {
    /// Whether what has this protocol and these ends is wanted.
    pub(crate) fn wants(&self, protocol: &str, ends: &[End]) -> bool {
        let address = |net: &IpNet| {
            ends.iter()
                .any(|end| end.address.is_some_and(|a| net.contains(&a)))
        };
        let port = |port: &u16| ends.iter().any(|end| end.port == Some(*port));
        (self.address.is_empty() || self.address.iter().any(address))
            && (self.port.is_empty() || self.port.iter().any(port))
            && (self.protocol.is_empty() || self.protocol.iter().any(|own| own == protocol))
    }

    /// Adds the same options to the words of a command line.
    pub(crate) fn add_to(&self, words: &mut Vec<String>) {
        add(words, "address", &self.address);
        add(words, "port", &self.port);
        add(words, "protocol", &self.protocol);
    }
}

/// Adds an option to the words of a command line, once for each value.
pub(crate) fn add<T: ToString>(words: &mut Vec<String>, name: &str, values: &[T]) {
    for value in values {
        words.extend([format!("--{name}"), value.to_string()]);
    }
}

/// Parses options alone, as the words behind a command: for the tests of commands.
#[cfg(test)]
pub(crate) fn parsed<O: clap::Args>(words: &[&str]) -> Result<O, clap::Error> {
    #[derive(clap::Parser)]
    struct Line<O: clap::Args> {
        #[command(flatten)]
        options: O,
    }

    let words = [&["veer"], words].concat();
    <Line<O> as clap::Parser>::try_parse_from(words).map(|line| line.options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_known_by_its_names_and_its_number() {
        for (text, expected) in [
            ("tcp", "tcp"),
            ("UDP", "udp"),
            ("6", "tcp"),
            ("58", "icmpv6"),
            ("sctp", "sctp"),
            ("132", "sctp"),
            ("arp", "arp"),
        ] {
            assert_eq!(protocol(text).unwrap(), expected);
        }
        for wrong in ["", "256", "stcp"] {
            assert!(protocol(wrong).is_err(), "{wrong}");
        }
    }
}
