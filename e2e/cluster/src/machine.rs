//! A machine of the cluster: a network, mount, UTS and PID namespace held by
//! one first process, inside a control group of its own. Nodes, the switch,
//! the router and the world are machines; a node only has more mounted.
//!
//! Nothing of a machine has a name in the mount or network namespace that the
//! harness runs in: kill its processes and all of it is gone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    cgroup::Cgroup,
    error::{Error, IoContext, Result},
    paths::{self, Paths},
    run::{self, Output, run},
    wait::await_condition,
};

/// What is mounted in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A network and little else (switch, router, world).
    Network,
    /// A Kubernetes node with a disk of its own.
    Node,
}

/// A machine, running or not.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    kind: Kind,
    dir: PathBuf,
    cgroup: Cgroup,
}

impl Machine {
    pub(crate) fn new(paths: &Paths, name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            dir: paths.machine(name),
            cgroup: Cgroup::of_cluster(paths.cluster()).child(name),
        }
    }

    /// The machine's name in the cluster; its hostname too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group that holds the machine and all its pods.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Where the machine's own processes are, as against its pods'.
    fn system(&self) -> Cgroup {
        self.cgroup.child("system")
    }

    /// The node's disk as a path of the harness: `etc`, `var` and `opt` of
    /// the node are directories in it.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// A file of the harness's that holds what a daemon printed.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{daemon}.log"))
    }

    /// Starts the machine: groups, namespaces, mounts. The network has only
    /// the loopback device yet.
    pub(crate) fn start(&self) -> Result<()> {
        for sub in [
            "logs",
            "disk/var/log",
            "disk/var/tmp",
            "disk/tmp",
            "disk/etc",
            "disk/opt",
        ] {
            let dir = self.dir.join(sub);
            fs::create_dir_all(&dir).what(|| format!("make {}", dir.display()))?;
        }
        self.system().create()?;
        let setup = self.dir.join("setup.sh");
        fs::write(&setup, self.setup_script()).what(|| format!("write {}", setup.display()))?;
        let script = format!(
            "{} exec unshare --net --mount --uts --pid --fork --kill-child --propagation private \
             --mount-proc sh -eu {}",
            self.enter_cgroup()?,
            setup.display()
        );
        self.detach("init", &script)?;
        await_condition(
            &format!("{} has started", self.name),
            Duration::from_secs(20),
            || {
                let comm = self
                    .init()
                    .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default());
                let seen = match comm.as_deref().map(str::trim) {
                    Ok("pause") => return Ok(Some(())),
                    Ok(other) => format!("still in {other}"),
                    Err(error) => error.to_string(),
                };
                Err(format!("{seen}; its log: {}", self.log_tail("init")))
            },
        )
    }

    /// Ends every process of the machine and so its namespaces. The disk
    /// stays. A machine that does not run is left as it is.
    pub(crate) fn stop(&self) -> Result<()> {
        self.cgroup.kill()?;
        if self.cgroup.exists()? {
            self.cgroup.remove()
        } else {
            Ok(())
        }
    }

    /// Shell text that makes the mounts and ends as the machine's first
    /// process.
    fn setup_script(&self) -> String {
        let dir = self.dir.display();
        let pause = paths::images().join("pause");
        let mut script = format!(
            "cd /\nhostname {name}\nip link set lo up\nd={dir}\ncache={cache}\nmkdir -p $d/aside\n\
             mount --rbind /sys/fs/cgroup $d/aside\n\
             mount -t sysfs sysfs /sys\n\
             mount --rbind $d/aside /sys/fs/cgroup\n\
             umount -R -l $d/aside\n\
             mount -t bpf bpf /sys/fs/bpf\n\
             mount -t tmpfs -o mode=755 tmpfs /run\n\
             mkdir -p /run/netns /run/lock\n",
            name = self.name,
            cache = paths::cache().display(),
        );
        if self.kind == Kind::Node {
            // What the kubelet tunes belongs to the whole kernel; it gets
            // files of its own to write to.
            script.push_str(
                "mkdir -p $d/disk/sysctl $d/work\n\
                 for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
                 kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do\n\
                 o=$d/disk/sysctl/$(echo $f | tr / .)\n\
                 [ -e $o ] || cat /proc/sys/$f >$o\n\
                 mount --bind $o /proc/sys/$f\n\
                 done\n\
                 cat /proc/sys/kernel/random/uuid >$d/disk/boot_id\n\
                 mount --bind $d/disk/boot_id /proc/sys/kernel/random/boot_id\n\
                 mount -t overlay -o lowerdir=/etc,upperdir=$d/disk/etc,workdir=$d/work overlay /etc\n\
                 rm -f /etc/resolv.conf\n\
                 cp $d/resolv.conf /etc/resolv.conf\n\
                 cp $d/hosts /etc/hosts\n\
                 hostname >/etc/hostname\n\
                 [ -s $d/disk/machine-id ] || cat /proc/sys/kernel/random/uuid | tr -d - >$d/disk/machine-id\n\
                 rm -f /etc/machine-id\n\
                 cp $d/disk/machine-id /etc/machine-id\n\
                 mkdir -p /etc/cni /etc/kubernetes $d/disk/cni/net.d $d/disk/kubernetes/manifests\n\
                 mount --bind $d/disk/cni /etc/cni\n\
                 mount --bind $d/disk/kubernetes /etc/kubernetes\n\
                 mkdir -p $d/disk/opt/cni/bin $d/disk/var/lib $d/disk/var/log/pods\n\
                 ln -sfn /run $d/disk/var/run\n\
                 mount --bind $d/disk/opt /opt\n\
                 mkdir -p /run/veer-cache\n\
                 mount --bind $cache /run/veer-cache\n\
                 mount --bind $d/disk/tmp /tmp\n\
                 sysctl -q -w net.ipv4.ip_forward=1\n",
            );
        }
        let pause = pause.display();
        if self.kind == Kind::Node {
            // Near the end: it hides the directory this script works from, and
            // maybe, as the mounts before it, the cache with the node's programs.
            script.push_str(
                "mount --bind $d/disk/var /var\n\
                 mkdir -p $cache\n\
                 mount --move /run/veer-cache $cache\n",
            );
        }
        script.push_str("mount --make-rshared /\n");
        script.push_str("exec ");
        script.push_str(&pause.to_string());
        script.push('\n');
        script
    }

    /// Shell text that moves the shell itself into the machine's group.
    fn enter_cgroup(&self) -> Result<String> {
        let files = self.system().entrances()?;
        let moves = files
            .iter()
            .map(|file| format!("echo 0 >{} || exit 1; ", file.display()));
        Ok(moves.collect())
    }

    /// Runs shell text detached from this process, its output in a log.
    fn detach(&self, log: &str, script: &str) -> Result<()> {
        let path = self.log(log);
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .what(|| format!("open {}", path.display()))?;
        let copy = file
            .try_clone()
            .what(|| format!("open {}", path.display()))?;
        let status = Command::new("setsid")
            .args(["--fork", "sh", "-c", script])
            .env("PATH", paths::search_path())
            .stdin(std::process::Stdio::null())
            .stdout(file)
            .stderr(copy)
            .status()
            .what(|| "start setsid".to_owned())?;
        if status.success() {
            return Ok(());
        }
        Err(Error::State(format!(
            "cannot start {log} on {}: setsid ended with {status}",
            self.name
        )))
    }

    /// The last lines of a daemon's log, for error texts.
    pub(crate) fn log_tail(&self, daemon: &str) -> String {
        let text = fs::read_to_string(self.log(daemon)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// The first process, by its id outside.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn init(&self) -> Result<u32> {
        for pid in self.system().own_processes()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let inner = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
            // Two ids, the inner one 1: first in a namespace just below ours.
            let ids: Vec<&str> = inner.unwrap_or_default().split_whitespace().collect();
            if ids.len() >= 2 && ids.last() == Some(&"1") {
                return Ok(pid);
            }
        }
        Err(Error::State(format!("{} does not run", self.name)))
    }

    /// A command that will run in the machine's namespaces.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.init()?.to_string(),
                "-n",
                "-m",
                "-u",
                "-p",
                "--",
                program,
            ])
            .env("PATH", paths::search_path())
            .env("HOME", "/tmp");
        Ok(command)
    }

    /// A command in the machine's network namespace only: files and process
    /// ids are the harness's, and killing the child kills the command.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn network_command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init()?.to_string(), "-n", "--", program]);
        Ok(command)
    }

    /// Runs a command as [`Machine::network_command`] to its end.
    ///
    /// # Errors
    /// The machine does not run, or the command fails.
    pub fn network_exec(&self, words: &[&str]) -> Result<Output> {
        let (program, args) = words
            .split_first()
            .ok_or_else(|| Error::State("an empty command".to_owned()))?;
        run(self.network_command(program)?.args(args))
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// The machine does not run, or the command fails.
    pub fn exec(&self, words: &[&str]) -> Result<Output> {
        run(&mut self.command_of(words)?)
    }

    /// Runs a command to its end and returns what it printed, failed or not.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn exec_any(&self, words: &[&str]) -> Result<Output> {
        run::run_any(&mut self.command_of(words)?)
    }

    /// Runs a command with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Machine::exec`].
    pub fn exec_with_input(&self, words: &[&str], input: &[u8]) -> Result<Output> {
        run::run_with_input(&mut self.command_of(words)?, input)
    }

    fn command_of(&self, words: &[&str]) -> Result<Command> {
        let (program, args) = words
            .split_first()
            .ok_or_else(|| Error::State("an empty command".to_owned()))?;
        let mut command = self.command(program)?;
        command.args(args);
        Ok(command)
    }

    /// Starts a program that stays, as part of the machine. Its output goes
    /// to [`Machine::log`]; it ends with the machine.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn daemon(&self, log: &str, words: &[&str]) -> Result<()> {
        let quoted: Vec<String> = words
            .iter()
            .map(|w| format!("'{}'", w.replace('\'', r"'\''")))
            .collect();
        let script = format!(
            "{} HOME=/tmp exec nsenter -t {} -n -m -u -p -- {}",
            self.enter_cgroup()?,
            self.init()?,
            quoted.join(" ")
        );
        self.detach(log, &script)
    }

    /// Processes of the machine itself (not of pods) whose command name is
    /// `comm` (cut to 15 bytes, as the kernel does).
    ///
    /// # Errors
    /// The control groups cannot be read.
    pub fn pids_of(&self, comm: &str) -> Result<Vec<u32>> {
        let comm: String = comm.chars().take(15).collect();
        let named = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == comm)
        };
        Ok(self
            .system()
            .processes()?
            .into_iter()
            .filter(named)
            .collect())
    }

    /// Stops or continues all processes of the machine and its pods.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        self.cgroup.freeze(frozen)
    }

    /// A process inside the sandbox of the pod with this UID on this node: by
    /// `/proc/<pid>/ns/net` its network can be entered.
    ///
    /// # Errors
    /// No such pod runs here.
    pub fn process_of_pod(&self, uid: &str) -> Result<u32> {
        self.cgroup
            .processes_below(&format!("pod{uid}/"))?
            .into_iter()
            .find(|p| *p != 0)
            .ok_or_else(|| Error::State(format!("no process of pod {uid} on {}", self.name)))
    }

    /// Whether `path` exists in the machine's mount namespace.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.init().is_ok_and(|pid| {
            let relative = path.strip_prefix("/").unwrap_or(path);
            Path::new(&format!("/proc/{pid}/root"))
                .join(relative)
                .exists()
        })
    }
}
