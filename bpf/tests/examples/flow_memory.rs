//! Memory of a full flow table and its places, as the kernel counts what maps are made of:
//! run alone, as root.
//!
//! ```text
//! cargo run --release -p veer-bpf-tests --example flow_memory
//! ```

#![allow(clippy::print_stdout, reason = "an example that prints")]

use std::fs;

use anyhow::{Context as _, Result};
use veer_bpf_common::tables::{FlowEntry, Flows, Table as _, Tuple};
use veer_bpf_tests::datapath::Datapath;

/// Bytes of the machine's slabs, `vmalloc` and per-CPU memory: `/proc/meminfo`, which
/// counts them by the page. Free memory would count pages that CPUs keep for themselves.
fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let mut sum = 0;
    for name in ["Slab:", "VmallocUsed:", "Percpu:"] {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        sum += kib.with_context(|| format!("no {name} in /proc/meminfo"))?;
    }
    Ok(sum * 1024)
}

fn main() -> Result<()> {
    let before = memory()?;
    let mut node = Datapath::load(&[])?;
    let empty = memory()?;
    for i in 0..u32::try_from(Flows::CAPACITY)? {
        let [a, b, c, d] = i.to_be_bytes();
        let tuple = Tuple::new([10, 0, a, b], [10, 1, 0, 1], [c, d], [0, 80], 6);
        node.set_flow(tuple, FlowEntry::default())?;
    }
    let full = memory()?;
    let entries = node.flow_count()? as u64;
    println!("{entries} entries");
    println!(
        "all maps, empty: {} KiB",
        empty.saturating_sub(before) / 1024
    );
    let grown = full.saturating_sub(empty);
    println!(
        "entries: {} KiB, {} bytes each",
        grown / 1024,
        grown / entries
    );
    Ok(())
}
