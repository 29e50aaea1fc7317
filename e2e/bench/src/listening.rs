//! What it takes to listen to the programs' decisions: processor time of the agent and of
//! `veer monitor`, while pods on one node exchange packets at a steady rate.

use std::{
    fs::{self, File},
    net::{SocketAddr, UdpSocket},
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use veer_e2e_cluster::{Progress, await_condition};
use veer_e2e_tests::{
    lab::Lab,
    maps,
    monitor::{SOON, Workstation, process_of_agent},
    pods,
    processes::Started,
    workloads,
};

use crate::figures::Figures;

/// Who listens, by the names that the report prints, and the words of the command.
pub(crate) const LISTENERS: [(&str, Option<&[&str]>); 4] = [
    ("nobody", None),
    ("veer monitor --drops", Some(&["--drops"])),
    ("veer monitor --port 9", Some(&["--port", "9"])),
    ("veer monitor -o json", Some(&["-o", "json"])),
];
/// Share of a processor's time that the agent takes, in percent.
pub(crate) const AGENT: &str = "agent, % of a CPU";
/// The same of the command.
pub(crate) const COMMAND: &str = "command, % of a CPU";
/// Packets that the pod sent in a second.
pub(crate) const SENT: &str = "packets in a second";
/// Decisions that the command says were lost.
pub(crate) const LOST: &str = "lost, % of the packets";

/// Packets in a second that the pod is to send.
const RATE: u64 = 50_000;
/// Where they go.
const PORT: u16 = 9_009;
const NODE: &str = "worker1";
const NAMESPACE: &str = "veer-bench-listening";

/// Rounds of each listener, interleaved.
pub(crate) fn measure(
    lab: &Lab,
    (rounds, seconds): (usize, u32),
    figures: &mut Figures,
) -> Result<()> {
    let progress = Progress::start();
    let (demo, other) = workloads::start_demo(lab, NAMESPACE)?;
    let (from, to) = (pods::on(&demo, NODE)?, pods::on(&other, NODE)?);
    let at = SocketAddr::from((to.address, PORT));
    // Bound, so that nobody answers; what is not read is dropped behind the programs.
    let _bound = to.site.within(|| Ok(UdpSocket::bind(at)?))?;
    let socket = from.site.within(|| {
        let socket = UdpSocket::bind(SocketAddr::from((from.address, 0)))?;
        socket.connect(at)?;
        Ok(socket)
    })?;
    let (sent, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let measured = thread::scope(|scope| {
        scope.spawn(|| send(&socket, &sent, &ended));
        let measured = (0..rounds).try_for_each(|round| {
            for (name, words) in LISTENERS {
                let time = Duration::from_secs(seconds.into());
                one(lab, (name, words), (time, &sent), figures)?;
            }
            progress.done(&format!("round {} of {rounds}", round + 1));
            Ok(())
        });
        ended.store(true, Relaxed);
        measured
    });
    lab.kubectl().run(&["delete", "namespace", NAMESPACE])?;
    measured
}

/// Sends at [`RATE`] until it is to end.
fn send(socket: &UdpSocket, sent: &AtomicU64, ended: &AtomicBool) {
    let start = Instant::now();
    let mut done = 0;
    while !ended.load(Relaxed) {
        let due = start.elapsed().as_micros() * u128::from(RATE) / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        // After a pause of this thread it does not send all that was due at once.
        done = done.max(due.saturating_sub(RATE / 100));
        while done < due {
            done += 1;
            if socket.send(b"x").is_ok() {
                sent.fetch_add(1, Relaxed);
            }
        }
        thread::park_timeout(Duration::from_millis(1));
    }
}

fn one(
    lab: &Lab,
    (name, words): (&str, Option<&[&str]>),
    (time, sent): (Duration, &AtomicU64),
    figures: &mut Figures,
) -> Result<()> {
    let user = Workstation::new(lab)?;
    let node = lab.node(NODE)?;
    let agent = process_of_agent(&node)?;
    let said = user.path("said");
    let listener = match words {
        None => None,
        Some(words) => {
            let child = user
                .on_this_machine(&agent, words)
                .stdout(Stdio::null())
                .stderr(File::create(&said)?)
                .spawn()
                .context("start veer monitor")?;
            Some(Started(child))
        }
    };
    let wanted = listener.is_some();
    await_condition("programs know whether somebody listens", SOON, || {
        let until = maps::listens_until(&node).map_err(|e| format!("{e:#}"))?;
        Ok(((until != 0) == wanted).then_some(()))
    })?;
    let command = listener.as_ref().map(|l| l.0.id().to_string());
    let now = || -> Result<(f64, f64, u64)> {
        let of_command = command.as_deref().map_or(Ok(0.0), used)?;
        Ok((used(&agent)?, of_command, sent.load(Relaxed)))
    };
    let (start, before) = (Instant::now(), now()?);
    // What is measured is what they take meanwhile: there is nothing to wait for.
    thread::sleep(time);
    let (after, passed) = (now()?, start.elapsed().as_secs_f64());
    drop(listener);
    let packets = u32::try_from(after.2 - before.2)?;
    figures.add(name, AGENT, (after.0 - before.0) / passed * 100.0);
    figures.add(name, COMMAND, (after.1 - before.1) / passed * 100.0);
    figures.add(name, SENT, f64::from(packets) / passed);
    let said = fs::read_to_string(said).unwrap_or_default();
    figures.add(name, LOST, lost(&said) / f64::from(packets) * 100.0);
    Ok(())
}

/// Seconds of processor time that a process has taken (`proc_pid_stat(5)`, fields 14 and
/// 15, in hundredths as Linux has them for user space).
fn used(pid: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    seconds(&stat).with_context(|| format!("/proc/{pid}/stat: {stat}"))
}

fn seconds(stat: &str) -> Option<f64> {
    // The name of the program may have spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    Some((field(14)? + field(15)?) / 100.0)
}

/// How many decisions a command says were lost.
fn lost(said: &str) -> f64 {
    let counts = said.lines().filter_map(|line| {
        line.split_once(" decisions were lost")?
            .0
            .rsplit(' ')
            .next()
    });
    // Not `sum`: that of nothing is -0.
    counts
        .filter_map(|count| count.parse::<f64>().ok())
        .fold(0.0, |all, count| all + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_and_losses_are_read_as_they_are_printed() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        assert_eq!(seconds(stat), Some(3.0));
        assert_eq!(seconds("7"), None);
        let said = "veer: listening on a\nveer: a: 12 decisions were lost, since\nveer: a: 3 decisions were lost";
        assert!((lost(said) - 15.0).abs() < f64::EPSILON);
    }
}
