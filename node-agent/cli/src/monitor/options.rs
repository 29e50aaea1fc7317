//! What is wanted of the decisions: the options of `veer monitor`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use veer_agent_api::packet::{self, Packet};
use veer_bpf_common::{
    outcome::{DropReason, Verdict, outcome_name},
    tables::Listen,
};

use super::row::{Decision, End};
use crate::filter::{self, Filter};

/// Options of `veer monitor`. Values of one option are alternatives, and so are verdicts
/// and drops; all else must hold together. Pods, namespaces, identities, addresses and
/// ports may be of either end.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Options {
    /// Only packets from or to this pod.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod)]
    pub(crate) pod: Vec<String>,

    /// Only packets from or to pods of this namespace.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Vec<String>,

    /// Only packets from or to this security identity.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) identity: Vec<u32>,

    /// By what headers say.
    #[command(flatten)]
    pub(crate) filter: Filter,

    /// Only packets that go on in this way; with --reason or --drops: and those dropped.
    #[arg(long, value_name = "VERDICT", value_parser = verdict())]
    pub(crate) verdict: Vec<u32>,

    /// Only packets that are dropped for this reason.
    #[arg(long, value_name = "REASON", value_parser = reason())]
    pub(crate) reason: Vec<u32>,

    /// Only packets that are dropped, for whatever reason.
    #[arg(long, conflicts_with = "reason")]
    pub(crate) drops: bool,

    /// Write a capture with the decisions as comments (pcapng), and print none.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,

    /// All nodes, through `kubectl exec` into each agent's pod, in the order of time.
    #[arg(long)]
    pub(crate) all_nodes: bool,

    /// More lines per packet: labels, what the table of flows said, headers.
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// End after as many packets.
    #[arg(short, long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// End with standard input: where `kubectl exec --stdin` runs it, so that it does not
    /// stay behind.
    #[arg(long)]
    pub(crate) until_stdin_ends: bool,
}

fn pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.into()),
        _ => Err("as NAMESPACE/NAME, for example default/web-0".into()),
    }
}

fn verdict() -> impl TypedValueParser<Value = u32> {
    let number = |name: String| Verdict::ALL.iter().find(|v| v.name() == name);
    PossibleValuesParser::new(Verdict::ALL.iter().map(|v| v.name()))
        .map(move |name| number(name).map_or(0, |v| *v as u32))
}

fn reason() -> impl TypedValueParser<Value = u32> {
    let number = |name: String| DropReason::ALL.iter().find(|r| r.name() == name);
    PossibleValuesParser::new(DropReason::ALL.iter().map(|r| r.name()))
        .map(move |name| number(name).map_or(0, |r| *r as u32))
}

impl Options {
    /// What the programs are asked for.
    pub(crate) fn listen(&self) -> Listen {
        let mut listen = Listen::default();
        let all = self.verdict.is_empty() && self.reason.is_empty() && !self.drops;
        for verdict in Verdict::ALL {
            if all || self.verdict.contains(&(*verdict as u32)) {
                listen.add_verdict(*verdict);
            }
        }
        for reason in DropReason::ALL {
            if all || self.drops || self.reason.contains(&(*reason as u32)) {
                listen.add_reason(*reason);
            }
        }
        listen
    }

    /// Whether a packet is wanted, by what it says itself, and said `before` veer translated
    /// it, if veer did.
    pub(crate) fn wants_packet(&self, packet: &Packet, before: Option<&[packet::End; 2]>) -> bool {
        let now = [packet.source, packet.destination];
        let ([a, b], [c, d]) = (now, before.copied().unwrap_or(now));
        self.filter.wants(&packet.protocol, &[a, b, c, d])
    }

    /// Whether a decision is wanted, by the names of its ends.
    pub(crate) fn wants(&self, decision: &Decision) -> bool {
        let ends = [&decision.source, &decision.destination];
        let either = |holds: &dyn Fn(&End) -> bool| ends.iter().any(|end| holds(end));
        (self.pod.is_empty() || either(&|end| self.pod.contains(&end.pod)))
            && (self.namespace.is_empty()
                || either(&|end| {
                    end.namespace()
                        .is_some_and(|own| self.namespace.iter().any(|n| n == own))
                }))
            && (self.identity.is_empty() || either(&|end| self.identity.contains(&end.identity)))
    }

    /// The same options as words of a command line, but for how and where to print.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        filter::add(&mut words, "pod", &self.pod);
        filter::add(&mut words, "namespace", &self.namespace);
        filter::add(&mut words, "identity", &self.identity);
        self.filter.add_to(&mut words);
        let names = |numbers: &[u32]| -> Vec<&'static str> {
            numbers.iter().filter_map(|n| outcome_name(*n)).collect()
        };
        filter::add(&mut words, "verdict", &names(&self.verdict));
        filter::add(&mut words, "reason", &names(&self.reason));
        if self.drops {
            words.push("--drops".into());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::parsed;

    fn options(words: &[&str]) -> Options {
        parsed(words).unwrap()
    }

    fn decision() -> Decision {
        let end = |identity, pod: &str, namespace: &str| End {
            identity,
            pod: pod.into(),
            labels: vec![format!("io.kubernetes.pod.namespace={namespace}")],
            ..End::default()
        };
        Decision {
            source: end(1000, "shop/cart-0", "shop"),
            destination: end(2000, "", "bank"),
            ..Decision::default()
        }
    }

    fn packet() -> Packet {
        let end = |address: &str, port| packet::End {
            address: address.parse().ok(),
            port: Some(port),
            mac: None,
        };
        Packet {
            protocol: "tcp".into(),
            source: end("10.0.1.5", 4000),
            destination: end("fd00::7", 80),
            ..Packet::default()
        }
    }

    #[test]
    fn a_translated_packet_is_found_by_what_it_showed_before_too() {
        let end = |address: &str, port| packet::End {
            address: address.parse().ok(),
            port: Some(port),
            mac: None,
        };
        let before = [end("10.0.1.5", 4000), end("10.96.0.10", 443)];
        for (words, wanted) in [
            (&["--address", "10.96.0.10"][..], true),
            (&["--port", "443"], true),
            (&["--address", "fd00::7"], true),
            (&["--address", "10.96.0.11"], false),
        ] {
            assert_eq!(
                options(words).wants_packet(&packet(), Some(&before)),
                wanted,
                "{words:?}"
            );
        }
        assert!(!options(&["--port", "443"]).wants_packet(&packet(), None));
    }

    #[test]
    fn each_filter_holds_for_either_end_and_all_must_hold() {
        for (words, wanted) in [
            (&[][..], true),
            (&["--pod", "shop/cart-0"], true),
            (&["--pod", "shop/cart"], false),
            (&["--namespace", "shop"], true),
            (&["--namespace", "bank"], true),
            (&["--namespace", "default"], false),
            (&["--identity", "2000"], true),
            (&["--identity", "3"], false),
            (&["--identity", "3", "--identity", "1000"], true),
            (&["--address", "10.0.0.0/16"], true),
            (&["--address", "fd00::7"], true),
            (&["--address", "10.0.1.6"], false),
            (&["--port", "80"], true),
            (&["--port", "81"], false),
            (&["--protocol", "tcp"], true),
            (&["--protocol", "TCP"], true),
            (&["--protocol", "6"], true),
            (&["--protocol", "udp"], false),
            (&["--port", "80", "--protocol", "udp"], false),
            (&["--port", "80", "--pod", "shop/cart-0"], true),
        ] {
            let options = options(words);
            let wants = options.wants_packet(&packet(), None) && options.wants(&decision());
            assert_eq!(wants, wanted, "{words:?}");
        }
    }

    #[test]
    fn programs_are_asked_for_no_more_than_is_wanted() {
        let count = |all: usize| u32::try_from(all).unwrap();
        let (drops, verdicts) = (count(DropReason::ALL.len()), count(Verdict::ALL.len()));
        for (words, expected) in [
            (&[][..], (verdicts, drops)),
            (&["--drops"], (0, drops)),
            (&["--reason", "malformed"], (0, 1)),
            (&["--verdict", "deliver"], (1, 0)),
            (&["--verdict", "deliver", "--drops"], (1, drops)),
        ] {
            let listen = options(words).listen();
            let counted = (listen.verdicts.count_ones(), listen.reasons.count_ones());
            assert_eq!(counted, expected, "{words:?}");
        }
        assert!(
            options(&["--verdict", "deliver"])
                .listen()
                .wants(Ok(Verdict::Deliver))
        );
    }

    #[test]
    fn the_words_for_another_node_mean_the_same() {
        let words = [
            "--pod",
            "a/b",
            "--namespace",
            "c",
            "--identity",
            "7",
            "--address",
            "10.0.0.0/8",
            "--port",
            "53",
            "--protocol",
            "udp",
            "--verdict",
            "deliver",
            "--reason",
            "malformed",
        ];
        let first = options(&words);
        let again = first.words();
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        assert_eq!(options(&again), first);
        assert_eq!(again, words);
    }

    #[test]
    fn what_is_misspelt_is_refused_with_what_there_is() {
        for (words, hint) in [
            (["--verdict", "delivered"], "to-overlay"),
            (["--reason", "spoofed"], "spoofed-address"),
            (["--address", "10.0.0"], "10.0.0.0/8"),
            (["--pod", "cart-0"], "NAMESPACE/NAME"),
            (["--protocol", "icmp6"], "icmpv6"),
            (["--identity", "0"], "1.."),
            (["--count", "0"], "1.."),
        ] {
            let error = parsed::<Options>(&words).unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
