//! A place in the network from which packets are sent and at which they are
//! watched: a pod, a node, or the world. Entered by a process that lives
//! there, with the machine's own programs; nothing is needed in the image.

use std::{
    fs::File,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use veer_e2e_cluster::{Machine, Output};

/// A network namespace with a name for people.
#[derive(Debug, Clone)]
pub struct Site {
    /// What messages call it.
    pub name: String,
    pid: u32,
}

impl Site {
    /// The network that process `pid` (as the harness counts) is in.
    pub fn of_process(name: impl Into<String>, pid: u32) -> Self {
        Self {
            name: name.into(),
            pid,
        }
    }

    /// A node's own network, or the world's.
    pub fn of_machine(machine: &Machine) -> Result<Self> {
        Ok(Self::of_process(machine.name(), machine.init()?))
    }

    /// A command that will run in this network, with the machine's own
    /// programs and files.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-n", "--"]);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, whatever its status.
    pub fn exec_any(&self, words: &[&str]) -> Result<Output> {
        let out = self
            .command(words)
            .output()
            .with_context(|| format!("start nsenter for {}", self.name))?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
            code: out.status.code().unwrap_or(-1),
        })
    }

    /// Runs a command to its end; another status than 0 is an error.
    pub fn exec(&self, words: &[&str]) -> Result<Output> {
        let out = self.exec_any(words)?;
        ensure!(
            out.code == 0,
            "`{}` in {}: status {}: {}{}",
            words.join(" "),
            self.name,
            out.code,
            out.stderr.trim(),
            out.stdout.trim()
        );
        Ok(out)
    }

    /// Runs `work` in a thread of this network: its sockets are the site's.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Moves the calling thread into this network, for good: for threads that
    /// end there.
    pub fn enter(&self) -> Result<()> {
        let path = format!("/proc/{}/ns/net", self.pid);
        let file = File::open(&path).with_context(|| format!("{} is gone ({path})", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))
    }
}
