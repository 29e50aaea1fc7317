//! Samples of dropped packets, as people read them.

use std::collections::HashMap;

use nix::net::if_::if_indextoname;
use veer_agent_api::{DropRow, packet::Packet};
use veer_bpf_common::{
    device::IfIndex,
    outcome::{DropReason, Program},
    tables::Event,
};

use crate::report::sources::Sources;
use veer_agent_core::endpoint::LocalEndpoint;
use veer_agent_kernel::datapath::Error;

/// The samples that the maps hold, the latest first.
pub(crate) fn drops(sources: &Sources) -> Result<Vec<DropRow>, Error> {
    let mut samples = sources.maps.samples()?;
    samples.sort_unstable_by_key(|(_, _, sample)| std::cmp::Reverse(sample.at));
    let plan = sources.plan.read();
    let nodes: HashMap<u32, &String> = plan
        .peers
        .by_name
        .iter()
        .map(|(n, id)| (id.get(), n))
        .collect();
    let store = sources.store.read();
    let pods: HashMap<IfIndex, &LocalEndpoint> =
        store.iter().filter_map(|e| Some((e.ifindex?, e))).collect();
    let now = veer_agent_kernel::clock::monotonic();
    let row = |(program, reason, sample): &(Program, DropReason, Event)| {
        let packet = Packet::of(sample.frame());
        let node = nodes.get(&sample.decision.node_id);
        let pod = IfIndex::new(sample.ifindex).and_then(|device| pods.get(&device));
        DropRow {
            age_ms: now.saturating_sub(sample.at) / 1_000_000,
            reason: reason.name().into(),
            program: program.name().into(),
            device: device(sample.ifindex),
            pod: pod.map(|e| e.pod()).unwrap_or_default(),
            protocol: packet.protocol,
            source: packet.source.to_string(),
            destination: packet.destination.to_string(),
            bytes: sample.length,
            identity: sample.decision.source_identity,
            node: node.map(|n| (*n).clone()).unwrap_or_default(),
        }
    };
    Ok(samples.iter().map(row).collect())
}

/// A device's name; its number once it is gone.
fn device(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.and_then(|n| n.into_string().ok());
    name.unwrap_or_else(|| format!("gone ({index})"))
}
