//! What a large cluster costs, for people to look at: ten times the size must not
//! cost much more than ten times the time.

use std::time::{Duration, Instant};

use super::*;

/// A world with so many other nodes of thirty pods each.
fn world_of(nodes: u32) -> World {
    let mut world = World::new();
    world.facts.paths.clear();
    let at = |base: [u8; 4], i: u32| IpAddr::from((u32::from_be_bytes(base) + i).to_be_bytes());
    let mut all = vec![node("a", "10.1.0.0/24", "192.0.2.1")];
    let mut rows = Vec::new();
    for i in 0..nodes {
        let name = format!("n{i}");
        let block = at([11, 0, 0, 0], i << 8);
        for pod in 2..32 {
            rows.push(PodEndpointRow {
                key: format!("x/{i}-{pod}"),
                node: name.clone(),
                addresses: vec![at([11, 0, 0, 0], (i << 8) + pod)],
                identity: 300 + i64::from(pod),
                serial: 1,
                own: None,
            });
        }
        all.push(NodeRecord {
            name,
            pod_cidrs: vec![IpNet::new(block, 24).unwrap()],
            addresses: vec![at([172, 16, 0, 1], i), at([172, 20, 0, 1], i)],
            ..NodeRecord::default()
        });
    }
    world.index.handle(Event::Node(Change::Snapshot(all)));
    world.index.handle(Event::Endpoint(Change::Snapshot(rows)));
    world
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

#[test]
#[ignore = "a benchmark: times are for people to look at"]
fn scale_of_rounds_and_events() {
    let mut before: Vec<(&str, Duration)> = Vec::new();
    for nodes in [500, 5_000] {
        let (list, mut world) = timed(|| world_of(nodes));
        let (find, peers) = timed(|| peers(&world.index, &world.facts, &mut world.ids));
        let (full, desired) = timed(|| world.desired(None));
        world.ids = Ids::from_present(Left {
            remotes: &desired.remotes,
            nodes: &desired.nodes,
            rows: &desired.ipcache,
        });
        let (again, _) = timed(|| crate::peers::peers(&world.index, &world.facts, &mut world.ids));
        let address = ip("11.0.1.9");
        let (event, _) = timed(|| {
            let mut changed = node("n7", "11.0.7.0/24", "172.16.0.8");
            changed.applied = Some(epoch(2, RoutingMode::Native, Phase::Ready));
            world.index.handle(Event::Node(Change::Apply(changed)));
            address_rows_of(
                &world.index,
                &world.store,
                &world.facts,
                &peers,
                address,
                None,
            )
        });
        let now = vec![
            ("take in all lists", list),
            ("work out who the nodes are", find),
            ("the same after a restart", again),
            ("work out all rows", full),
            ("one node's change and one row", event),
        ];
        println!("{nodes} nodes, {} rows", desired.ipcache.len());
        for (i, (what, time)) in now.iter().enumerate() {
            let ratio = before.get(i).map_or(String::new(), |(_, less)| {
                format!(", {:.1} times", time.as_secs_f64() / less.as_secs_f64())
            });
            println!("  {what}: {:.3} ms{ratio}", time.as_secs_f64() * 1e3);
        }
        before = now;
    }
}
