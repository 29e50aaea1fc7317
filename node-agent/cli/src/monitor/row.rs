//! A decision as it is printed, and as one `veer monitor` tells another (`-o json`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use veer_agent_api::{
    Frontend,
    packet::{self, Packet, Stage},
};
use veer_bpf_common::{
    address::to_ip,
    outcome::{DropReason, FlowState, Program, Verdict, outcome_name},
    tables::{Event, Record, Tuple},
};

use super::names::Names;
use crate::labels;

/// One line of `-o json`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Row {
    /// A program decided on a packet.
    Decision(Box<Decision>),
    /// From now on decisions of a node are told.
    Started {
        /// The node.
        node: String,
    },
    /// Decisions that nobody saw: agent or reader was too slow.
    Lost {
        /// The node.
        node: String,
        /// How many.
        count: u64,
    },
    /// What a later version tells.
    #[serde(other)]
    Unknown,
}

/// What a program decided on a packet.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Decision {
    /// RFC 3339, in UTC, with nanoseconds.
    pub(crate) time: String,
    /// The node.
    pub(crate) node: String,
    /// The program.
    pub(crate) program: String,
    /// The device that it is attached to.
    pub(crate) device: String,
    /// Where the packet comes from.
    pub(crate) source: End,
    /// Where it goes.
    pub(crate) destination: End,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp`, another protocol's number, or an
    /// `EtherType`.
    pub(crate) protocol: String,
    /// What the table of flows said: see [`FlowState`].
    pub(crate) lookup: String,
    /// `New`, `Reply` or `Established`; empty: neither the table nor the packet says.
    pub(crate) state: String,
    /// Who translates the flow; empty: nobody, or it is not known.
    pub(crate) translation: String,
    /// What the packet showed before veer translated it, if veer did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<Before>,
    /// Whether the packet ends here.
    pub(crate) dropped: bool,
    /// The verdict's name, or the reason of the drop.
    pub(crate) outcome: String,
    /// The same in words, with the target.
    pub(crate) delivery: String,
    /// TTL or hop limit as the packet leaves; 0: it has none.
    pub(crate) hops: u8,
    /// The rest of the headers in words.
    pub(crate) detail: String,
    /// Bytes of the frame.
    pub(crate) bytes: u32,
    /// The beginning of the frame; in JSON in hex.
    #[serde(with = "hex")]
    pub(crate) frame: Vec<u8>,
}

/// One end of a packet.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct End {
    /// Address and port, or a MAC.
    pub(crate) text: String,
    /// IP address, where there is one.
    pub(crate) address: Option<IpAddr>,
    /// Port, where there is one.
    pub(crate) port: Option<u16>,
    /// Security identity, as the program found it or of this node's pod with the address;
    /// 0: neither is known.
    pub(crate) identity: u32,
    /// Its labels.
    pub(crate) labels: Vec<String>,
    /// `namespace/name` of the pod; empty: none, or not known here.
    pub(crate) pod: String,
}

/// What a packet showed before it was translated; of an ICMP error, what the packet in it
/// showed.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Before {
    /// Address and port.
    pub(crate) source: String,
    /// The same.
    pub(crate) destination: String,
    /// The Service that the flow is to, as [`veer_agent_api::FrontendName::service`]; empty:
    /// not known.
    pub(crate) service: String,
}

impl Before {
    /// `now`: what the packet shows; `is_answer`: it goes to who opened the flow.
    fn of(before: &Tuple, now: &Packet, is_answer: bool, names: &mut Names) -> Self {
        let [source, destination] = ends_before(before);
        let frontend = if is_answer { now.source } else { destination };
        Self {
            source: source.to_string(),
            destination: destination.to_string(),
            service: self::frontend(&frontend, before)
                .map(|frontend| names.service(frontend))
                .unwrap_or_default(),
        }
    }
}

/// The ends that a packet showed before it was translated.
pub(crate) fn ends_before(before: &Tuple) -> [packet::End; 2] {
    [
        (before.source, before.source_port),
        (before.destination, before.destination_port),
    ]
    .map(|(address, port)| packet::End {
        address: to_ip(before.family, address),
        // Later fragments have none.
        port: (port != [0; 2]).then(|| u16::from_be_bytes(port)),
        mac: None,
    })
}

/// An end as the frontend of a Service.
fn frontend(end: &packet::End, flow: &Tuple) -> Option<Frontend> {
    Some(Frontend {
        at: (end.address?, end.port?).into(),
        protocol: flow.protocol,
    })
}

impl End {
    fn of(end: &packet::End, identity: u32, names: &mut Names) -> Self {
        let identity = match (identity, end.address) {
            (0, Some(address)) => names.identity(address),
            (known, _) => known,
        };
        Self {
            text: end.to_string(),
            address: end.address,
            port: end.port,
            identity,
            labels: names.labels(identity),
            pod: end
                .address
                .map(|a| names.pod(a, identity))
                .unwrap_or_default(),
        }
    }

    /// The namespace of the pod, by its name or its labels.
    pub(crate) fn namespace(&self) -> Option<&str> {
        let by_name = self.pod.split_once('/').map(|(namespace, _)| namespace);
        by_name.or_else(|| labels::namespace(&self.labels))
    }
}

impl Decision {
    /// What a record about a packet says, with the names of this node. `time` is RFC 3339.
    pub(crate) fn of(record: &Record, packet: Packet, time: String, names: &mut Names) -> Self {
        let event = &record.event;
        let decision = &event.decision;
        let outcome = outcome_name(decision.outcome).map_or_else(
            || format!("outcome {}", decision.outcome),
            ToOwned::to_owned,
        );
        let program = Program::of(event.program);
        let flow = FlowState::of(decision.flow.into());
        let is_answer = flow == Some(FlowState::Reply);
        let before = record
            .before()
            .map(|it| Before::of(it, &packet, is_answer, names));
        let verdict = Verdict::of(decision.outcome);
        let reason = DropReason::of(decision.outcome);
        let translation = match verdict {
            Some(Verdict::ToStackNoted | Verdict::PassNoted) => "by the host's stack",
            _ if before.is_some() => "by veer",
            _ => "",
        };
        let mut source = End::of(&packet.source, decision.source_identity, names);
        if program == Some(Program::PodEgress) {
            // Whatever address it gives itself.
            source.pod = names.pod_behind(event.ifindex).unwrap_or(source.pod);
        }
        Self {
            time,
            node: names.node().to_owned(),
            program: program.map_or_else(|| event.program.to_string(), |p| p.name().into()),
            device: names.device(event.ifindex),
            source,
            destination: End::of(&packet.destination, decision.destination_identity, names),
            protocol: packet.protocol,
            lookup: flow.map_or_else(|| decision.flow.to_string(), |f| f.name().into()),
            state: state(flow, packet.stage).into(),
            translation: translation.into(),
            before,
            dropped: reason.is_some(),
            delivery: verdict.map_or_else(
                || format!("dropped: {outcome}"),
                |verdict| delivery(verdict, event, names),
            ),
            outcome,
            hops: packet.hops.unwrap_or_default(),
            detail: packet.detail,
            bytes: event.length,
            frame: event.frame().to_vec(),
        }
    }
}

/// New, Reply or Established: by the entry, else by the packet itself.
fn state(flow: Option<FlowState>, stage: Stage) -> &'static str {
    match (flow, stage) {
        (Some(FlowState::New), _) => "New",
        (Some(FlowState::Established), _) => "Established",
        (Some(FlowState::Reply), _) => "Reply",
        (Some(FlowState::NoEntry | FlowState::NotAsked) | None, stage) => match stage {
            Stage::Opens => "New",
            Stage::Answers => "Reply",
            Stage::GoesOn => "Established",
            Stage::Unknown => "",
        },
    }
}

/// Where the packet goes, in words.
fn delivery(verdict: Verdict, event: &Event, names: &mut Names) -> String {
    let decision = &event.decision;
    match verdict {
        Verdict::Deliver => {
            let to = names.endpoint(decision.ifindex);
            format!(
                "local delivery to {to} from identity {}",
                decision.source_identity
            )
        }
        Verdict::Overlay => {
            let node = names.remote(decision.node_id);
            format!("to overlay, VNI {}, to node {node}", decision.vni)
        }
        Verdict::Native => {
            let (node, device) = (
                names.remote(decision.node_id),
                names.device(decision.ifindex),
            );
            format!("to network by {device}, to node {node}")
        }
        Verdict::ToStack => "to the host's stack".into(),
        Verdict::ToStackNoted => "to the host's stack, which translated the flow".into(),
        Verdict::ToStackException => "to the host's stack, which answers or fragments".into(),
        Verdict::Answer => "answered for the gateway".into(),
        Verdict::Pass => "passed".into(),
        Verdict::PassNoted => "passed from the host's stack, which translated the flow".into(),
        Verdict::Ignore => "ends here quietly".into(),
        Verdict::Beyond => "looked at again for a Service".into(),
    }
}

/// Bytes as hex, for serde.
mod hex {
    use std::fmt::Write as _;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        bytes(&text).ok_or_else(|| D::Error::custom("no hex"))
    }

    fn bytes(text: &str) -> Option<Vec<u8>> {
        let digit = |c: char| c.to_digit(16).and_then(|d| u8::try_from(d).ok());
        let digits: Vec<u8> = text.chars().map(digit).collect::<Option<_>>()?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let byte = |[high, low]: &[u8; 2]| high << 4 | low;
        rest.is_empty().then(|| pairs.iter().map(byte).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Row, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_decision_is_the_same_from_its_line() {
        let row = Row::Decision(Box::new(Decision {
            time: "2026-11-30T12:00:01.123456789Z".into(),
            frame: (0..=255).collect(),
            hops: 63,
            ..Decision::default()
        }));
        assert_eq!(read(&serde_json::to_string(&row).unwrap()).unwrap(), row);
        for wrong in ["0", "0g", "é"] {
            let line = format!(r#"{{"type": "decision", "frame": "{wrong}"}}"#);
            assert!(read(&line).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_translated_packet_names_the_service_by_the_end_that_is_one() {
        let client = ([10, 0, 1, 5], 4000_u16.to_be_bytes());
        let (service, backend) = (([10, 96, 0, 10], [0, 80]), ([10, 0, 2, 6], [31, 144]));
        let flow = |from: ([u8; 4], [u8; 2]), to: ([u8; 4], [u8; 2])| {
            Tuple::new(from.0, to.0, from.1, to.1, 6)
        };
        let now = |text: &str, port| Packet {
            source: packet::End {
                address: text.parse().ok(),
                port,
                mac: None,
            },
            ..Packet::default()
        };
        let asked = "10.0.1.5:4000 > 10.96.0.10:80";
        for (before, now, is_answer, shown, frontend) in [
            (
                flow(client, service),
                now("10.0.1.5", Some(4000)),
                false,
                asked,
                Some("10.96.0.10:80"),
            ),
            (
                flow(backend, client),
                now("10.96.0.10", Some(80)),
                true,
                "10.0.2.6:8080 > 10.0.1.5:4000",
                Some("10.96.0.10:80"),
            ),
            // An ICMP error has no ports of its own, a later fragment none at all.
            (
                flow(client, backend),
                now("10.96.0.10", None),
                true,
                "10.0.1.5:4000 > 10.0.2.6:8080",
                None,
            ),
            (
                flow((client.0, [0; 2]), (service.0, [0; 2])),
                now("10.0.1.5", None),
                false,
                "10.0.1.5 > 10.96.0.10",
                None,
            ),
        ] {
            let mut names = Names::new("a".into());
            let before = Before::of(&before, &now, is_answer, &mut names);
            assert_eq!(format!("{} > {}", before.source, before.destination), shown);
            let missed: Vec<String> = names.frontends().iter().map(|f| f.at.to_string()).collect();
            assert_eq!(missed, frontend.into_iter().collect::<Vec<_>>(), "{shown}");
        }
    }

    #[test]
    fn lines_of_other_versions_are_read_as_far_as_they_are_known() {
        let less = r#"{"type": "decision", "node": "a"}"#;
        let more = r#"{"type": "decision", "node": "a", "policy": {"name": "deny"}}"#;
        let expected = Decision {
            node: "a".into(),
            ..Decision::default()
        };
        for line in [less, more] {
            assert_eq!(
                read(line).unwrap(),
                Row::Decision(Box::new(expected.clone()))
            );
        }
        assert_eq!(read(r#"{"type": "weather"}"#).unwrap(), Row::Unknown);
    }

    #[test]
    fn the_entry_says_what_a_packet_is_before_the_packet_does() {
        for (flow, stage, expected) in [
            (FlowState::Reply, Stage::Opens, "Reply"),
            (FlowState::New, Stage::GoesOn, "New"),
            (FlowState::NoEntry, Stage::Opens, "New"),
            (FlowState::NotAsked, Stage::Answers, "Reply"),
            (FlowState::NoEntry, Stage::GoesOn, "Established"),
            (FlowState::NoEntry, Stage::Unknown, ""),
        ] {
            assert_eq!(state(Some(flow), stage), expected, "{flow:?} {stage:?}");
        }
    }
}
