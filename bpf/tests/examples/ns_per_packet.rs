//! Nanoseconds that each program takes per packet, by `BPF_PROG_TEST_RUN`, as
//! JSON on standard output: one object per program and kind of packet with the
//! median and the 99th percentile over rounds, of IPv4 and of the same packet in IPv6, and
//! the median of the ratios of each round of the two.
//!
//! With the path of another object in `VEER_BPF_BEFORE` (of an earlier release, with the
//! same maps) that one is measured too, in the same rounds and in IPv4, and the median of
//! the ratios of each round to it is told.
//!
//! `overlay_ingress` is not here: a test run has no tunnel key, and without one
//! it does not do its work.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result goes there")]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "a table that speaks of the world by its names"
)]

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use veer_bpf_common::{
    mark,
    outcome::{Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, FlowBefore, FlowEntry, Interface},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    packet::Packet,
    world::{self, *},
};

/// A packet runs this often in a row: its TTL lasts so long.
const RUNS: u32 = 200;
const ROUNDS: usize = 300;

/// One kind of packet for one program.
struct Case {
    program: Program,
    what: &'static str,
    packet: Packet,
    mark: u32,
    outcome: Verdict,
}

fn case(program: Program, what: &'static str, packet: Packet, outcome: Verdict) -> Case {
    Case {
        program,
        what,
        packet: packet.ttl(255),
        mark: 0,
        outcome,
    }
}

/// A's packet with the source MAC that the run before left in it.
fn again(packet: Packet, left: [u8; 6]) -> Packet {
    packet.macs(left, A_NODE_MAC)
}

fn main() -> Result<()> {
    let mut nodes = vec![world::load(Program::ALL)?];
    if let Some(path) = env::var_os("VEER_BPF_BEFORE") {
        let path = Path::new(&path);
        let object = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        nodes.push(world::load_from(&object, Program::ALL)?);
    }
    let nodes = &mut nodes[..];
    each(nodes, |node| node.set_remote(ID_2, remote(FORM_TUNNEL)))?;
    for family in Family::ALL {
        each(nodes, |node| {
            let tuple = family.flow(17, (NODE_2, 2222), (A, 1111));
            let expires_at = u64::MAX / 4;
            if node.has_flow_table() {
                let entry = FlowEntry {
                    expires_at,
                    ..FlowEntry::default()
                };
                node.set_flow(tuple, entry)
            } else {
                let entry = FlowBefore {
                    expires_at,
                    ..FlowBefore::default()
                };
                node.set_flow_before(tuple, entry)
            }
        })?;
    }
    let udp = |source, destination| Packet::udp((source, 5), (destination, 6));
    let tunnel = Packet::vxlan(NODE_2, NODE_1, C_IDENTITY, &udp(C, B).frame());
    let mut results = Vec::new();

    each(nodes, |node| allow_mac(node, B_NODE_MAC))?;
    let packet = again(a_to(B), B_NODE_MAC);
    let same = case(Program::PodEgress, "same node", packet, Verdict::Deliver);
    results.push(measure(nodes, &same)?);
    each(nodes, |node| allow_mac(node, A_MAC))?;
    for c in [
        case(Program::PodEgress, "tunnel", a_to(C), Verdict::Overlay),
        case(
            Program::PodEgress,
            "to the world",
            a_to(WORLD),
            Verdict::ToStack,
        ),
        case(
            Program::PodEgress,
            "noted reply",
            a_to(NODE_2),
            Verdict::ToStackNoted,
        ),
        case(
            Program::PodIngress,
            "from the host",
            udp(NODE_1, A),
            Verdict::Pass,
        ),
        case(
            Program::PodIngress,
            "translated",
            udp(B, A),
            Verdict::PassNoted,
        ),
        case(
            Program::OverlayEgress,
            "host to pod",
            udp(NODE_1, C),
            Verdict::Overlay,
        ),
        Case {
            mark: mark::REDIRECTED,
            ..case(
                Program::OverlayEgress,
                "redirected",
                udp(A, C),
                Verdict::Pass,
            )
        },
        case(
            Program::UplinkIngress,
            "tunnel",
            tunnel.clone(),
            Verdict::Pass,
        ),
        case(
            Program::UplinkIngress,
            "from the world",
            udp(WORLD, NODE_1),
            Verdict::Pass,
        ),
        case(
            Program::UplinkEgress,
            "from the host",
            udp(NODE_1, WORLD),
            Verdict::Pass,
        ),
        Case {
            mark: mark::REDIRECTED,
            ..case(
                Program::UplinkEgress,
                "redirected",
                udp(A, C),
                Verdict::Pass,
            )
        },
        case(Program::UplinkXdp, "tunnel", tunnel, Verdict::Pass),
        case(
            Program::UplinkXdp,
            "from the world",
            udp(WORLD, NODE_1),
            Verdict::Pass,
        ),
    ] {
        results.push(measure(nodes, &c)?);
    }
    each(nodes, |node| node.set_remote(ID_2, remote(FORM_NATIVE)))?;
    let bare = case(
        Program::UplinkIngress,
        "native",
        udp(C, B),
        Verdict::Deliver,
    );
    results.push(measure(nodes, &bare)?);
    each(nodes, |node| allow_mac(node, [0; 6]))?;
    let packet = again(a_to(C), [0; 6]);
    let native = case(Program::PodEgress, "native", packet, Verdict::Native);
    results.push(measure(nodes, &native)?);

    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

/// Does the same to all.
fn each(nodes: &mut [Datapath], set: impl Fn(&mut Datapath) -> Result<()>) -> Result<()> {
    nodes.iter_mut().try_for_each(set)
}

/// Lets pod A use this source MAC.
fn allow_mac(node: &mut Datapath, mac: [u8; 6]) -> Result<()> {
    node.set_interface(A_IFINDEX, Interface { mac, ..interface() })
}

/// One node's time for a packet of a family.
fn time(node: &mut Datapath, case: &Case, family: Family) -> Result<f64> {
    let frame = case.packet.frame_of(family);
    let context = Context {
        mark: case.mark,
        ..Context::default()
    };
    let (time, decision) = node.time(case.program, &frame, context, RUNS)?;
    ensure!(
        decision.outcome == case.outcome as u32,
        "{}, {}, {family}: {} instead of {}",
        case.program.name(),
        case.what,
        name(decision.outcome),
        case.outcome.name()
    );
    Ok(time.as_secs_f64().max(1e-9))
}

/// The first of the nodes in both families, and how it compares with the second if there
/// is one.
fn measure(nodes: &mut [Datapath], case: &Case) -> Result<serde_json::Value> {
    let mut rounds: [Vec<f64>; 4] = Default::default();
    let [v4, v6, to_v4, to_before] = &mut rounds;
    for _ in 0..ROUNDS {
        let (this, other) = (
            time(&mut nodes[0], case, Family::V4)?,
            time(&mut nodes[0], case, Family::V6)?,
        );
        v4.push(this);
        v6.push(other);
        to_v4.push(other / this);
        if let Some(node) = nodes.get_mut(1) {
            to_before.push(this / time(node, case, Family::V4)?);
        }
    }
    for values in &mut rounds {
        values.sort_by(f64::total_cmp);
    }
    let [v4, v6, to_v4, to_before] = &rounds;
    let nanoseconds =
        |values: &[f64], percent: usize| (values[ROUNDS * percent / 100] * 1e9).round();
    Ok(json!({
        "program": case.program.name(),
        "packet": case.what,
        "outcome": case.outcome.name(),
        "ns_p50": nanoseconds(v4, 50),
        "ns_p99": nanoseconds(v4, 99),
        "ns_v6_p50": nanoseconds(v6, 50),
        "ns_v6_p99": nanoseconds(v6, 99),
        "v6_to_v4_p50": to_v4[ROUNDS / 2],
        "to_before_p50": to_before.get(ROUNDS / 2),
    }))
}
