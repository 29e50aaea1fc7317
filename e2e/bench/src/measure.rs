//! Round trips (sockperf) and streams (iperf3) between places, in interleaved
//! rounds.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use veer_e2e_cluster::{Progress, await_condition};
use veer_e2e_tests::{
    lab::{Lab, Mode},
    pods,
    processes::Started,
    site::Site,
    workloads,
};

use crate::{
    families,
    figures::Figures,
    places::{BarePair, Bridged, PlainVxlan, RedirectedPair},
};

/// Median round trip in microseconds.
pub(crate) const P50: &str = "round trip p50, us";
/// 99th percentile of round trips in microseconds.
pub(crate) const P99: &str = "round trip p99, us";
/// TCP stream in gigabits per second.
pub(crate) const STREAM: &str = "stream, Gb/s";

/// Subjects, by the names that the report prints.
pub(crate) mod subject {
    /// The limit of a path without a wire.
    pub(crate) const VETH: &str = "bare veth pair";
    /// The limit of a path between two veths.
    pub(crate) const PEER: &str = "bpf_redirect_peer between two veths";
    /// The limit of a path over the wire.
    pub(crate) const NODE: &str = "node to node";
    /// What the kernel's own tunnel leaves of it.
    pub(crate) const VXLAN: &str = "node to node, the kernel's VXLAN";
    /// The bridge plugin on one node.
    pub(crate) const BRIDGE_SAME: &str = "bridge plugin, same node";
    /// The bridge plugin and routes.
    pub(crate) const BRIDGE_OTHER: &str = "bridge plugin and routes, other node";
    /// veer on one node.
    pub(crate) const SAME: &str = "veer, same node";
    /// veer's tunnel.
    pub(crate) const TUNNEL: &str = "veer, tunnel";
    /// veer's native routing.
    pub(crate) const NATIVE: &str = "veer, native";
}

const RR_PORT: &str = "11111";
const STREAM_PORT: &str = "5201";
const NAMESPACE: &str = "veer-bench";

/// Servers that end when dropped.
struct Servers(Vec<Started>);

impl Servers {
    fn start(sites: &[&Site]) -> Result<Self> {
        let mut servers = Self(Vec::new());
        for site in sites {
            let round_trips = [
                "taskset", "-c", "0", "sockperf", "sr", "--tcp", "-p", RR_PORT,
            ];
            let streams = ["taskset", "-c", "0", "iperf3", "-s", "-p", STREAM_PORT];
            let both = ["taskset", "-c", "0", "qperf", "-lp", families::CONTROL_PORT];
            for words in [&round_trips[..], &streams[..], &both[..]] {
                let child = site
                    .command(words)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .with_context(|| format!("start {} in {}", words[3], site.name))?;
                servers.0.push(Started(child));
            }
            for port in [RR_PORT, STREAM_PORT, families::CONTROL_PORT] {
                let what = format!("port {port} of {} is served", site.name);
                let filter = format!("sport = :{port}");
                await_condition(&what, Duration::from_secs(10), || {
                    let out = site.exec_any(&["ss", "-Hltn", &filter]);
                    let out = out.map_err(|e| format!("{e:#}"))?.stdout;
                    Ok((!out.trim().is_empty()).then_some(()))
                })?;
            }
        }
        Ok(servers)
    }
}

/// All rounds.
pub(crate) fn network(
    lab: &Lab,
    rounds: usize,
    seconds: u32,
    progress: &Progress,
    figures: &mut Figures,
) -> Result<()> {
    let (demo, other) = workloads::start_demo(lab, NAMESPACE)?;
    let client = pods::on(&demo, "worker1")?;
    let (near, far) = (pods::on(&other, "worker1")?, pods::on(&other, "worker2")?);
    let (own, peer) = (lab.node_site("worker1")?, lab.node_site("worker2")?);
    let bare = BarePair::new()?;
    let redirected = RedirectedPair::new()?;
    let bridged = Bridged::new(lab, "worker1", "worker2")?;
    let plain = PlainVxlan::new(lab, "worker1", "worker2")?;
    let servers = Servers::start(&[
        &near.site,
        &far.site,
        &peer,
        &bare.far.site,
        &redirected.far.site,
        bridged.neighbour(),
        bridged.remote(),
    ])?;
    let (near_ip, far_ip) = (near.address.to_string(), far.address.to_string());
    let peer_ip = lab.cluster.address("worker2")?.to_string();
    progress.done("servers of all subjects are up");
    for round in 0..rounds {
        let paths = [
            (subject::VETH, &bare.near.site, BarePair::FAR, None),
            (
                subject::PEER,
                &redirected.near.site,
                RedirectedPair::FAR,
                None,
            ),
            (subject::NODE, &own, peer_ip.as_str(), None),
            (subject::VXLAN, plain.near(), PlainVxlan::FAR, None),
            (
                subject::BRIDGE_SAME,
                &bridged.client.site,
                Bridged::NEIGHBOUR,
                None,
            ),
            (
                subject::BRIDGE_OTHER,
                &bridged.client.site,
                Bridged::REMOTE,
                None,
            ),
            (subject::SAME, &client.site, near_ip.as_str(), None),
            (
                subject::TUNNEL,
                &client.site,
                far_ip.as_str(),
                Some(Mode::Tunnel),
            ),
            (
                subject::NATIVE,
                &client.site,
                far_ip.as_str(),
                Some(Mode::Native),
            ),
        ];
        for (name, from, to, mode) in paths {
            if let Some(mode) = mode {
                lab.set_mode(mode)?;
            }
            let what = || format!("{name}, round {round}");
            path(from, to, seconds, name, figures).with_context(what)?;
            let server = match name {
                subject::NODE => None,
                subject::SAME => Some(near),
                subject::TUNNEL | subject::NATIVE => Some(far),
                _ => continue,
            };
            let address = |family| match server {
                Some(pod) => pod.address_in(family),
                None => lab.address("worker2", family),
            };
            families::measure(from, address, seconds, name, figures).with_context(what)?;
        }
        progress.done(&format!("round {} of {rounds}", round + 1));
    }
    drop(servers);
    lab.set_mode(Mode::Tunnel)?;
    lab.kubectl()
        .run(&["delete", "namespace", NAMESPACE, "--wait=true"])?;
    Ok(())
}

fn path(from: &Site, to: &str, seconds: u32, name: &str, figures: &mut Figures) -> Result<()> {
    let time = seconds.to_string();
    let out = from.exec(&[
        "taskset",
        "-c",
        "0",
        "sockperf",
        "pp",
        "--tcp",
        "-i",
        to,
        "-p",
        RR_PORT,
        "-t",
        &time,
        "--full-rtt",
    ])?;
    let (p50, p99) = percentiles(&out.stdout).context("sockperf printed no percentiles")?;
    figures.add(name, P50, p50);
    figures.add(name, P99, p99);
    figures.add(name, STREAM, stream(from, to, seconds)?);
    Ok(())
}

/// A TCP stream to an address of either family, in gigabits per second.
pub(crate) fn stream(from: &Site, to: &str, seconds: u32) -> Result<f64> {
    let seconds = seconds.to_string();
    let out = from.exec(&[
        "taskset",
        "-c",
        "1",
        "iperf3",
        "-c",
        to,
        "-p",
        STREAM_PORT,
        "-t",
        &seconds,
        "-J",
    ])?;
    let report: Value = serde_json::from_str(&out.stdout).context("iperf3 -J")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 reports no stream")? / 1e9)
}

/// The median and the 99th percentile that sockperf prints, in microseconds.
fn percentiles(text: &str) -> Option<(f64, f64)> {
    let of = |which: &str| {
        let line = text
            .lines()
            .find(|l| l.contains(&format!("percentile {which}")))?;
        line.split('=').nth(1)?.trim().parse().ok()
    };
    Some((of("50.000")?, of("99.000")?))
}

#[cfg(test)]
mod tests {
    use super::percentiles;

    #[test]
    fn percentiles_are_read_as_sockperf_prints_them() {
        let text = "sockperf: ---> <MAX> observation =  903.123\n\
            sockperf: ---> percentile 99.000 =   31.250\n\
            sockperf: ---> percentile 50.000 =   18.125\n";
        assert_eq!(percentiles(text), Some((18.125, 31.25)));
        assert_eq!(percentiles(""), None);
    }
}
