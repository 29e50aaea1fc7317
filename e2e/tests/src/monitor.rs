//! `veer monitor` as a user runs it on a workstation, with kubectl.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use veer_e2e_cluster::{Machine, await_condition};

use crate::{client, lab::Lab, pods::Pod, processes::Started, site::Site};

/// For a command on other nodes to start, and for decisions to arrive.
pub const SOON: Duration = Duration::from_mins(1);
/// File of what a command says on standard error.
const SAID: &str = "said";
/// The agent's, where it runs.
const SOCKET: &str = "/run/veer/agent.sock";
/// For the decisions on one packet.
const ONE: Duration = Duration::from_secs(3);

/// The `veer` command as a user has it on a workstation: the one out of the image.
pub struct Workstation<'a> {
    folder: tempfile::TempDir,
    lab: &'a Lab,
}

impl<'a> Workstation<'a> {
    /// The command out of the image of the agents.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("veer");
        fs::copy(image_of_an_agent()?.join("veer"), &path).context("copy the command")?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(Self { folder, lab })
    }

    /// Where a file of the user's may lie.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `veer monitor` with these words.
    pub fn monitor(&self, words: &[&str]) -> Command {
        let kubectl = self.lab.kubectl().command(&[]);
        let programs = Path::new(kubectl.get_program()).parent();
        let programs = programs
            .map(|p| p.display().to_string())
            .unwrap_or_default();
        let mut command = Command::new(self.path("veer"));
        command
            .env("PATH", format!("{programs}:/usr/bin:/bin"))
            .arg("--kubeconfig")
            .arg(self.lab.cluster.kubeconfig())
            .arg("monitor")
            .args(words);
        command
    }

    /// The same on this machine, of the agent with this process id.
    pub fn on_this_machine(&self, agent: &str, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("veer"));
        command
            .arg("--socket")
            .arg(format!("/proc/{agent}/root{SOCKET}"))
            .arg("monitor")
            .args(words);
        command
    }

    /// The same of all nodes, as it prints.
    pub fn listen(&self, words: &[&str]) -> Result<Listening> {
        let mut command = self.monitor(&["--all-nodes"]);
        let mut child = command
            .args(words)
            .stdout(Stdio::piped())
            .stderr(File::create(self.path(SAID))?)
            .spawn()
            .context("start veer monitor")?;
        let stdout = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Listening {
            process: Started(child),
            lines,
            said: self.path(SAID),
        })
    }
}

/// The file system of a running agent, as this machine sees it.
fn image_of_an_agent() -> Result<PathBuf> {
    let process = agents()?.into_iter().next().context("no agent runs")?;
    Ok(process.join("root"))
}

/// The number that the agent of a node has on this machine.
pub fn process_of_agent(node: &Machine) -> Result<String> {
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let its = network(Path::new(&format!("/proc/{}", node.init()?)));
    let process = agents()?
        .into_iter()
        .find(|process| network(process) == its);
    let process = process.context("no agent runs on the node")?;
    let number = process.file_name().context("a process without number")?;
    Ok(number.to_string_lossy().into_owned())
}

/// Running agents as folders of `/proc`.
fn agents() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Others end meanwhile.
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if name.trim() == "veer-agent" {
            found.push(process);
        }
    }
    Ok(found)
}

/// A running `veer monitor`.
pub struct Listening {
    process: Started,
    lines: Receiver<String>,
    said: PathBuf,
}

impl Listening {
    /// Ends it by SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        Ok(())
    }

    /// What it said beside the decisions, for messages.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_else(|e| e.to_string())
    }

    /// The next lines that `wanted` says, until there are as many or time is up.
    pub fn lines(&self, count: usize, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let end = Instant::now() + ONE;
        let mut found = Vec::new();
        while found.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted(&line) => found.push(line),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        found
    }
}

/// One echo request with an id of its own, answered or not.
pub fn ping(from: &Site, to: IpAddr, id: u16) -> Result<()> {
    client::ping_with(from, to, 1, &["-e", &id.to_string()])?;
    Ok(())
}

/// What people read of one ping between two pods, when it is told in as many lines.
pub fn one_ping(lab: &Lab, from: &Pod, to: &Pod, lines: usize) -> Result<Vec<String>> {
    let user = Workstation::new(lab)?;
    let address = to.address.to_string();
    let listening = user.listen(&["--address", &address])?;
    let mut id = 0;
    // The command on other nodes starts meanwhile.
    let told = await_condition("one ping is told", SOON, || {
        id += 1;
        ping(&from.site, to.address, id).map_err(|e| format!("{e:#}"))?;
        let mark = format!(", id {id}, ");
        let told = listening.lines(lines, |line| line.contains(&mark));
        if told.len() == lines {
            Ok(Some(told))
        } else {
            Err(format!("{told:#?}\n{}", listening.said()))
        }
    })?;
    Ok(told)
}
