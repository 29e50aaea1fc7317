//! A running veer-load: found by its network, made real-time, and controlled.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use veer_e2e_load::order::{Answer, Order, SOCKET};

use crate::site::Site;

/// How long an answer may take. Opening a flow waits up to 5 s for the other
/// end, and there are some.
const PATIENCE: Duration = Duration::from_mins(1);
/// Of the real-time priorities a low one: above everything ordinary is enough.
const PRIORITY: &str = "10";

/// The machine's clock as veer-load reads it, nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// A running veer-load that takes orders from here.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    stream: BufReader<UnixStream>,
}

impl Place {
    /// The one in a network. Orders go through a socket of that namespace, and
    /// so over no device.
    pub(super) fn connect(site: &Site) -> Result<Self> {
        let name = site.name.clone();
        let stream = site
            .within(|| {
                let address = SocketAddr::from_abstract_name(SOCKET)?;
                Ok(UnixStream::connect_addr(&address)?)
            })
            .with_context(|| format!("veer-load in {name} takes no orders"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let peer = getsockopt(&stream, PeerCredentials).context("who takes orders")?;
        make_real_time(peer.pid()).with_context(|| format!("veer-load in {name}"))?;
        Ok(Self {
            name,
            stream: BufReader::new(stream),
        })
    }

    /// Gives an order and returns the answer.
    pub(super) fn ask(&mut self, order: &Order) -> Result<Answer> {
        let mut ask = || -> Result<Answer> {
            let mut line = serde_json::to_vec(order)?;
            line.push(b'\n');
            self.stream.get_mut().write_all(&line)?;
            let mut answer = String::new();
            self.stream.read_line(&mut answer)?;
            ensure!(!answer.is_empty(), "it has ended");
            Ok(serde_json::from_str(&answer)?)
        };
        ask().with_context(|| format!("veer-load in {}", self.name))
    }

    /// Gives an order that is only done or refused.
    pub(super) fn done(&mut self, order: &Order) -> Result<()> {
        match self.ask(order)? {
            Answer::Done => Ok(()),
            Answer::Refused(why) => bail!("veer-load in {}: {why}", self.name),
            other @ (Answer::Progress(_) | Answer::Report(_)) => {
                bail!("veer-load in {} answered {other:?}", self.name)
            }
        }
    }
}

/// Gives a process real-time priority, so that a busy machine does not show in
/// the figures. With version 1 of control groups a kernel may give a pod's
/// group no real-time at all: there the process is counted with the machine's
/// own, in that one hierarchy.
fn make_real_time(pid: i32) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup/cpu");
    if root.join("cpu.rt_runtime_us").exists() {
        fs::write(root.join("cgroup.procs"), pid.to_string())
            .context("move it to the machine's own cpu group")?;
    }
    let pid = pid.to_string();
    let out = Command::new("chrt")
        .args(["--all-tasks", "--fifo", "--pid", PRIORITY, &pid])
        .output()
        .context("start chrt")?;
    ensure!(
        out.status.success(),
        "no real-time priority: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}
