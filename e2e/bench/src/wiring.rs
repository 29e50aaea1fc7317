//! What is not packets: wiring pods, memory, and an agent's restart.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Machine, Progress, await_condition};
use veer_e2e_tests::{
    foreign::Program,
    lab::{AGENT, Lab, NAMESPACE},
    workloads,
};

use crate::figures::Figures;

/// Names of the facts.
pub(crate) mod fact {
    /// Subject of the series of single ADDs.
    pub(crate) const ADD_ALONE: &str = "ADD alone";
    /// Subject of the series of ADDs at once.
    pub(crate) const ADD_AT_ONCE: &str = "ADD, many at once";
    /// Subject of the series of bare attachments.
    pub(crate) const ATTACH: &str = "empty programs attached to a new veth, nothing else";
    /// Its quantity.
    pub(crate) const TWO: &str = "two of them, ms";
    /// Quantity of both.
    pub(crate) const ADD: &str = "plugin and agent, ms";
    /// From the call for many pods until all were Ready.
    pub(crate) const ALL_READY: &str = "many pods at once until all Ready, s";
    /// Subject of the restarts.
    pub(crate) const RESTART: &str = "agent killed";
    /// From the kill to the new process, which is the kubelet's doing.
    pub(crate) const STARTED: &str = "until the kubelet started another, ms";
    /// From the new process to ready.
    pub(crate) const READY: &str = "from its start until ready, ms";
}

/// Where the agent says that it is ready.
const READYZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9917);
/// Pods wired one after the other.
const ALONE: u32 = 20;
const CROWD: &str = "veer-bench-crowd";

/// Resident memory of agents and operators, in MiB.
pub(crate) fn memory(lab: &Lab, figures: &mut Figures) -> Result<()> {
    for name in lab.cluster.node_names() {
        let node = lab.node(&name)?;
        for program in ["veer-agent", "veer-operator"] {
            let out = node.exec_any(&["pgrep", "-x", program])?;
            for pid in out.stdout.split_whitespace() {
                let status = node.exec(&["cat", &format!("/proc/{pid}/status")])?.stdout;
                let kilobytes: f64 = status
                    .lines()
                    .find_map(|l| l.strip_prefix("VmRSS:"))
                    .and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok())
                    .with_context(|| format!("no VmRSS of {program}"))?;
                figures.add(program, "resident, MiB", kilobytes / 1024.0);
            }
        }
    }
    Ok(())
}

/// What an ADD cannot be faster than: two programs attached to a device by the
/// kernel, which waits for an RCU grace period each time (`tcx_entry_sync`).
pub(crate) fn attach(lab: &Lab, figures: &mut Figures) -> Result<()> {
    const DEVICE: &str = "benchtcx";
    let site = lab.node_site("worker1")?;
    for _ in 0..ALONE {
        site.exec(&["ip", "link", "add", DEVICE, "type", "veth"])?;
        let start = Instant::now();
        let programs = [
            Program::attach(&site, DEVICE),
            Program::attach(&site, DEVICE),
        ];
        figures.add(
            fact::ATTACH,
            fact::TWO,
            start.elapsed().as_secs_f64() * 1000.0,
        );
        site.exec(&["ip", "link", "del", DEVICE])?;
        for program in programs {
            program?;
        }
    }
    Ok(())
}

/// The agent's process, by its number on the node.
pub(crate) fn agent_of(node: &Machine) -> Option<String> {
    let out = node.exec_any(&["pgrep", "-x", "veer-agent"]).ok()?;
    out.stdout.split_whitespace().next().map(str::to_owned)
}

/// Time from a killed agent to a ready one, kubelet's part and veer's.
pub(crate) fn restart(lab: &Lab, figures: &mut Figures) -> Result<()> {
    let node = lab.node("worker2")?;
    let site = lab.node_site("worker2")?;
    // The kubelet waits longer with every crash: few rounds.
    for _ in 0..2 {
        let old = agent_of(&node).context("no agent on worker2")?;
        let killed = Instant::now();
        node.exec(&["kill", "-KILL", &old])?;
        let started = poll(Duration::from_mins(2), || {
            agent_of(&node)
                .filter(|pid| *pid != old)
                .map(|_| Instant::now())
        })
        .context("no new agent")?;
        let ready = poll(Duration::from_secs(30), || ready(&site).then(Instant::now));
        let ready = ready.context("the new agent is not ready")?;
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        figures.add(fact::RESTART, fact::STARTED, ms(started - killed));
        figures.add(fact::RESTART, fact::READY, ms(ready - started));
        lab.cluster
            .await_rollout(NAMESPACE, AGENT, Duration::from_mins(1))?;
    }
    Ok(())
}

/// Looks without a pause: the time itself is what is measured.
fn poll<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < deadline {
        if let Some(value) = look() {
            return Some(value);
        }
    }
    None
}

fn ready(site: &veer_e2e_tests::site::Site) -> bool {
    let answer = site.within(|| {
        let mut stream = TcpStream::connect_timeout(&READYZ, Duration::from_millis(200))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        std::io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text)?;
        Ok(text)
    });
    answer.is_ok_and(|text| text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200"))
}

/// The plugin of a node with a clock around it, until dropped.
struct Timed {
    node: Machine,
}

const PLUGIN: &str = "/opt/cni/bin/veer-cni";
const ASIDE: &str = "/opt/cni/bin/veer-cni.timed";
const LOG: &str = "/tmp/veer-cni.times";

impl Timed {
    fn new(node: Machine) -> Result<Self> {
        let script = format!(
            "#!/bin/bash\nstart=$EPOCHREALTIME\n{ASIDE} \"$@\"\ncode=$?\n\
             echo \"$CNI_COMMAND $code $start $EPOCHREALTIME\" >>{LOG}\nexit $code\n"
        );
        node.exec(&["cp", "-p", PLUGIN, ASIDE])?;
        let timed = Self { node };
        // A new file in its place: the old one may be running.
        let install =
            format!("cat >{PLUGIN}.new && chmod 755 {PLUGIN}.new && mv {PLUGIN}.new {PLUGIN}");
        timed
            .node
            .exec_with_input(&["sh", "-c", &install], script.as_bytes())?;
        Ok(timed)
    }

    /// Milliseconds of all ADDs since the last call.
    fn take(&self) -> Result<Vec<f64>> {
        let path = self.node.disk().join("tmp/veer-cni.times");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        fs::remove_file(&path)?;
        let mut times = Vec::new();
        for line in text.lines().filter(|l| l.starts_with("ADD ")) {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, code, start, end] = words[..] else {
                continue;
            };
            ensure!(code == "0", "an ADD failed: {line}");
            times.push((end.parse::<f64>()? - start.parse::<f64>()?) * 1000.0);
        }
        Ok(times)
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let _back = self.node.exec_any(&["mv", ASIDE, PLUGIN]);
        let _gone = self.node.exec_any(&["rm", "-f", LOG]);
    }
}

/// The time of CNI ADD as containerd sees it, alone and many at once.
pub(crate) fn add(lab: &Lab, pods: u32, progress: &Progress, figures: &mut Figures) -> Result<()> {
    let kubectl = lab.kubectl();
    kubectl.apply(&workloads::crowd(CROWD, 0))?;
    let patch =
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"worker2"}}}}}"#;
    kubectl.run(&["-n", CROWD, "patch", "deployment", "crowd", "-p", patch])?;
    let scale = |count: u32| -> Result<()> {
        let replicas = format!("--replicas={count}");
        kubectl.run(&["-n", CROWD, "scale", "deployment/crowd", &replicas])?;
        lab.cluster
            .await_rollout(CROWD, "deployment/crowd", Duration::from_mins(5))?;
        Ok(())
    };
    let timed = Timed::new(lab.node("worker2")?)?;
    for count in 1..=ALONE {
        scale(count)?;
    }
    for time in timed.take()? {
        figures.add(fact::ADD_ALONE, fact::ADD, time);
    }
    progress.done("pods wired one by one");
    scale(0)?;
    await_condition("the pods are gone", Duration::from_mins(3), || {
        let out = kubectl.any(&["-n", CROWD, "get", "pods", "-o", "name"]);
        let left = out.map_err(|e| e.to_string())?.stdout.lines().count();
        if left == 0 {
            Ok(Some(()))
        } else {
            Err(format!("{left} are left"))
        }
    })?;
    let start = Instant::now();
    scale(pods)?;
    let all = start.elapsed();
    for time in timed.take()? {
        figures.add(fact::ADD_AT_ONCE, fact::ADD, time);
    }
    figures.facts.insert(
        format!("{pods} pods: {}", fact::ALL_READY),
        all.as_secs_f64(),
    );
    progress.done("pods wired at once");
    kubectl.run(&["delete", "namespace", CROWD, "--wait=true"])?;
    Ok(())
}
