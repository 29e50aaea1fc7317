//! Counters of the programs, and drops of the nftables table.

use std::collections::BTreeMap;

use veer_agent_api::CounterRow;
use veer_agent_kernel::{
    datapath::Error,
    nft::{self, Count},
};
use veer_bpf_common::outcome::FIRST_REASON;

use crate::state::maps::{Counted, Maps};

/// All counters that are not zero.
///
/// # Errors
///
/// One cannot be read.
pub(crate) fn counters(maps: &Maps) -> Result<Vec<CounterRow>, Error> {
    Ok(rows(maps.counted().into_iter().collect::<Result<_, _>>()?))
}

/// As [`counters`], without those that cannot be read.
pub(crate) fn readable_counters(maps: &Maps) -> Vec<CounterRow> {
    rows(maps.counted().into_iter().flatten().collect())
}

fn rows(counted: Vec<Counted>) -> Vec<CounterRow> {
    let programs = counted
        .into_iter()
        .map(|(program, outcome, name, counter)| CounterRow {
            program: program.name().into(),
            outcome: name.into(),
            drop: outcome >= FIRST_REASON,
            packets: counter.packets,
            bytes: counter.bytes,
        });
    programs.chain(nftables()).collect()
}

/// Drops of the nftables table.
fn nftables() -> Vec<CounterRow> {
    let counts = nft::counts().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the counters of the nftables table");
        BTreeMap::new()
    });
    counts
        .into_iter()
        .filter(|(_, count)| count.packets > 0)
        .map(|(outcome, Count { packets, bytes })| CounterRow {
            program: "nftables".into(),
            outcome,
            drop: true,
            packets,
            bytes,
        })
        .collect()
}
