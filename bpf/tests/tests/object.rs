//! The object is what `bpf_common` says of it, and the kernel takes it.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of maps that there are not"
)]

use anyhow::{Context as _, Result};
use veer_bpf_common::{
    outcome::Program,
    program,
    tables::{self, FlowsBefore, Table},
};
use veer_bpf_tests::datapath::Datapath;

#[test]
fn every_map_is_as_common_lists_it() -> Result<()> {
    let mut node = Datapath::load(&[])?;
    for spec in tables::ALL.iter().chain([&FlowsBefore::SPEC]) {
        let map = node
            .ebpf()
            .map(spec.name)
            .with_context(|| format!("no map {}", spec.name))?;
        let data = match map {
            aya::maps::Map::Array(d)
            | aya::maps::Map::HashMap(d)
            | aya::maps::Map::LruHashMap(d)
            | aya::maps::Map::LpmTrie(d)
            | aya::maps::Map::PerCpuArray(d)
            | aya::maps::Map::RingBuf(d) => d,
            other => anyhow::bail!("{} is of a kind that is not listed: {other:?}", spec.name),
        };
        let info = data.info()?;
        assert_eq!(
            (
                info.name_as_str(),
                info.map_type()? as u32,
                info.key_size(),
                info.value_size(),
                info.max_entries(),
                info.map_flags(),
            ),
            (
                Some(spec.name),
                spec.kind as u32,
                spec.key_size,
                spec.value_size,
                spec.max_entries,
                spec.flags,
            ),
            "{}",
            spec.name
        );
    }
    let mut names: Vec<&str> = node.ebpf().maps().map(|(name, _)| name).collect();
    names.sort_unstable();
    // And the map of layout 4, and the constant that says until when it counts.
    let mut listed: Vec<&str> = tables::ALL.iter().map(|s| s.name).collect();
    listed.extend([FlowsBefore::NAME, ".rodata"]);
    listed.sort_unstable();
    assert_eq!(
        names, listed,
        "the object has maps that common does not list"
    );
    Ok(())
}

#[test]
fn every_program_passes_the_verifier() -> Result<()> {
    let mut node = Datapath::load(Program::ALL)?;
    node.load_sockets()?;
    let mut names: Vec<&str> = node.ebpf().programs().map(|(name, _)| name).collect();
    names.sort_unstable();
    let mut listed = [&program::ALL[..], &program::SOCKETS].concat();
    listed.sort_unstable();
    assert_eq!(names, listed);
    for (p, name) in Program::ALL.iter().zip(program::ALL) {
        assert_eq!(p.name(), name);
    }
    Ok(())
}
