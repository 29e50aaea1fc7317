//! `veer traffic list`: who talks to whom, counted exactly.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_tests::{client, lab::Mode};

use crate::scene::{Scene, Test};

/// In either mode.
pub(crate) const TESTS: [(&str, Test); 1] = [(
    "packets_between_pods_of_two_nodes_are_counted_exactly_on_both",
    Test::Each(counted),
)];

/// Packets that a node counted from one identity to another, as a program ended them.
fn packets(scene: &Scene, node: &str, (from, to): (u32, u32), program: &str) -> Result<u64> {
    let number = from.to_string();
    let words = ["traffic", "list", "--identity", &number];
    let rows = scene.lab.veer_json(node, &words)?;
    let rows = rows.as_array().context("no list")?;
    let is_it = |row: &&Value| {
        row["source"]["identity"] == from
            && row["destination"]["identity"] == to
            && row["program"] == program
            && row["dropped"] == false
    };
    let counts = rows.iter().filter(is_it).map(|row| row["packets"].as_u64());
    counts
        .map(|count| count.context("a row without packets"))
        .sum()
}

fn counted(scene: &Scene) -> Result<()> {
    const PINGS: u32 = 5;
    let (here, far) = (scene.demo_on("worker1")?, scene.other_on("worker2")?);
    let (own, far_id) = (scene.identity(here)?, scene.identity(far)?);
    let arrival = match scene.path("worker1", "worker2")? {
        Mode::Tunnel => "overlay_ingress",
        Mode::Native | Mode::Hybrid => "uplink_ingress",
    };
    let asked = [
        ("worker1", (own, far_id), "pod_egress"),
        ("worker2", (own, far_id), arrival),
        ("worker2", (far_id, own), "pod_egress"),
        ("worker1", (far_id, own), arrival),
    ];
    let all = || -> Result<Vec<u64>> {
        let counts = asked
            .iter()
            .map(|(node, ids, by)| packets(scene, node, *ids, by));
        counts.collect()
    };
    let before = all()?;
    client::ping(&here.site, far.address, PINGS)?;
    let after = all()?;
    let more: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    ensure!(
        more.iter().all(|count| *count == u64::from(PINGS)),
        "{PINGS} pings from {} to {} were counted so: {asked:?} {more:?}",
        here.name,
        far.name
    );
    Ok(())
}
