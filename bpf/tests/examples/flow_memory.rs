//! Memory of a full flow table and its places, as the whole machine's free memory shows
//! it: run alone, as root.
//!
//! ```text
//! cargo run --release -p veer-bpf-tests --example flow_memory
//! ```

#![allow(clippy::print_stdout, reason = "an example that prints")]

use std::fs;

use anyhow::{Context as _, Result};
use veer_bpf_common::tables::{FlowEntry, Flows, Table as _, Tuple};
use veer_bpf_tests::datapath::Datapath;

/// A machine-wide figure of `/proc/meminfo`, in bytes.
fn memory(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim_matches([':', ' ', 'k', 'B']).parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {name} in /proc/meminfo"))? * 1024)
}

fn main() -> Result<()> {
    let before = memory("MemFree")?;
    let mut node = Datapath::load(&[])?;
    let empty = memory("MemFree")?;
    for i in 0..u32::try_from(Flows::CAPACITY)? {
        let [a, b, c, d] = i.to_be_bytes();
        let tuple = Tuple::new([10, 0, a, b], [10, 1, 0, 1], [c, d], [0, 80], 6);
        node.set_flow(tuple, FlowEntry::default())?;
    }
    let full = memory("MemFree")?;
    let entries = node.flow_count()? as u64;
    println!("{entries} entries");
    println!(
        "all maps, empty: {} KiB",
        before.saturating_sub(empty) / 1024
    );
    let grown = empty.saturating_sub(full);
    println!(
        "entries: {} KiB, {} bytes each",
        grown / 1024,
        grown / entries
    );
    Ok(())
}
