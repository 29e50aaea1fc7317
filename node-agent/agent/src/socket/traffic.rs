//! Who talks to whom, as people read it.

use std::collections::BTreeMap;

use veer_agent_api::TrafficRow;
use veer_bpf_common::{
    outcome::{FIRST_REASON, Program, outcome_name},
    tables::{Counter, Talk},
};

use crate::report::sources::Sources;
use veer_agent_kernel::datapath::{CpuTalk, Error};

/// Packets by who sends them to whom.
pub(crate) fn traffic(sources: &Sources) -> Result<Vec<TrafficRow>, Error> {
    Ok(rows(&sources.maps.traffic()?))
}

/// Those of all CPUs together.
fn rows(counted: &[(CpuTalk, Counter)]) -> Vec<TrafficRow> {
    let mut sums: BTreeMap<Talk, Counter> = BTreeMap::new();
    for (CpuTalk { talk, .. }, counter) in counted {
        *sums.entry(*talk).or_default() += *counter;
    }
    sums.iter().map(row).collect()
}

fn row((talk, counter): (&Talk, &Counter)) -> TrafficRow {
    let program = Program::of(talk.program.into());
    let outcome = u32::from(talk.outcome);
    TrafficRow {
        source: talk.source,
        destination: talk.destination,
        program: program.map_or_else(|| talk.program.to_string(), |p| p.name().to_owned()),
        outcome: outcome_name(outcome).map_or_else(|| outcome.to_string(), ToOwned::to_owned),
        dropped: outcome >= FIRST_REASON,
        packets: counter.packets,
        bytes: counter.bytes,
    }
}

#[cfg(test)]
mod tests {
    use veer_bpf_common::outcome::{DropReason, Verdict};

    use super::*;

    #[test]
    fn what_became_of_packets_has_its_name_and_drops_are_told_apart() {
        for (outcome, name, dropped) in [
            (Verdict::Deliver as u32, "deliver", false),
            (DropReason::SpoofedAddress as u32, "spoofed-address", true),
            (FIRST_REASON - 1, "127", false),
        ] {
            let talk = Talk {
                source: 40_000,
                destination: 2,
                program: Program::PodEgress as u16,
                outcome: u16::try_from(outcome).unwrap(),
            };
            let counter = |packets| Counter {
                packets,
                bytes: packets * 100,
            };
            let on = |cpu, packets| (CpuTalk { cpu, talk }, counter(packets));
            let expected = TrafficRow {
                source: 40_000,
                destination: 2,
                program: "pod_egress".to_owned(),
                outcome: name.to_owned(),
                dropped,
                packets: 3,
                bytes: 300,
            };
            assert_eq!(rows(&[on(0, 1), on(3, 2)]), [expected]);
        }
    }
}
