//! The control groups of a cluster: `veer-e2e-<cluster>/<machine>` in every
//! hierarchy. A machine's processes, its pods' included, are found, frozen
//! and killed by them, whatever became of their parents; so nothing has to be
//! remembered that a crash could lose.
//!
//! Both cgroup v1 (one directory per controller, as the kubelet wants when
//! the machine has it) and v2 (Debian's default) are supported.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    error::{IoContext, Result},
    wait::await_condition,
};

/// A group, by its path below each hierarchy's root.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: String,
}

/// Mount points of all hierarchies, with whether each is v2.
fn hierarchies() -> Result<Vec<(PathBuf, bool)>> {
    let text = fs::read_to_string("/proc/self/mountinfo").what(|| "read mountinfo".to_owned())?;
    let mut found = Vec::new();
    for line in text.lines() {
        // "... root mountpoint options - type source superoptions" (proc(5)).
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let kind = right.split(' ').next().unwrap_or_default();
        let point = left.split(' ').nth(4).unwrap_or_default();
        if (kind == "cgroup" || kind == "cgroup2") && point.starts_with("/sys/fs/cgroup") {
            found.push((PathBuf::from(point), kind == "cgroup2"));
        }
    }
    Ok(found)
}

impl Cgroup {
    /// The group of a whole cluster.
    pub(crate) fn of_cluster(cluster: &str) -> Self {
        Self {
            path: format!("veer-e2e-{cluster}"),
        }
    }

    /// A group inside this one.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self {
            path: format!("{}/{name}", self.path),
        }
    }

    /// The path as the kubelet takes it: below the root, with a slash.
    pub(crate) fn kubelet_root(&self) -> String {
        format!("/{}", self.path)
    }

    /// This group's directory in every hierarchy, existing or not.
    fn dirs(&self) -> Result<Vec<PathBuf>> {
        Ok(hierarchies()?
            .into_iter()
            .map(|(root, _)| root.join(&self.path))
            .collect())
    }

    /// The files a process writes `0` to, to enter the group.
    pub(crate) fn entrances(&self) -> Result<Vec<PathBuf>> {
        Ok(self
            .dirs()?
            .into_iter()
            .map(|d| d.join("cgroup.procs"))
            .collect())
    }

    /// Makes the group and its parents. Existing ones are kept.
    pub(crate) fn create(&self) -> Result<()> {
        for (root, v2) in hierarchies()? {
            let mut dir = root.clone();
            for part in self.path.split('/') {
                if v2 {
                    enable_controllers(&dir);
                }
                let parent = dir.clone();
                dir.push(part);
                if !dir.exists() {
                    fs::create_dir(&dir).what(|| format!("make the cgroup {}", dir.display()))?;
                }
                // v1: a cpuset without processors accepts no process.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if !v2 && dir.join(file).exists() {
                        let value = fs::read_to_string(parent.join(file))
                            .what(|| format!("read {file} of {}", parent.display()))?;
                        fs::write(dir.join(file), value.trim())
                            .what(|| format!("write {file} of {}", dir.display()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// All processes in the group and below, without zombies.
    pub(crate) fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs()? {
            walk(&dir, &mut |d| {
                let text = fs::read_to_string(d.join("cgroup.procs")).unwrap_or_default();
                pids.extend(
                    text.lines()
                        .filter_map(|l| l.parse::<u32>().ok())
                        .filter(|p| *p != 0),
                );
            });
        }
        Ok(pids)
    }

    /// Processes in the group itself, not below.
    pub(crate) fn own_processes(&self) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for file in self.entrances()? {
            let text = fs::read_to_string(file).unwrap_or_default();
            pids.extend(
                text.lines()
                    .filter_map(|l| l.parse::<u32>().ok())
                    .filter(|p| *p != 0),
            );
        }
        Ok(pids)
    }

    /// The processes of the first group below this one whose directory name
    /// contains `part`.
    pub(crate) fn processes_below(&self, part: &str) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs()? {
            walk(&dir, &mut |d| {
                if d.to_string_lossy().contains(part) {
                    let text = fs::read_to_string(d.join("cgroup.procs")).unwrap_or_default();
                    pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()));
                }
            });
        }
        Ok(pids)
    }

    /// Stops (`true`) or continues every process of the group, and returns
    /// when all of them stand or run.
    ///
    /// # Errors
    /// They do not within 10 s.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        for (root, v2) in hierarchies()? {
            let dir = root.join(&self.path);
            // With both versions mounted, v1's freezer is the one to use: the
            // v2 tree then carries no pods.
            let (file, value, shown, sign) = match (v2, frozen) {
                (true, _) if root.ends_with("unified") => continue,
                (true, true) => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
                (true, false) => ("cgroup.freeze", "0", "cgroup.events", "frozen 0"),
                (false, true) => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
                (false, false) => ("freezer.state", "THAWED", "freezer.state", "THAWED"),
            };
            let path = dir.join(file);
            if !path.exists() {
                continue;
            }
            fs::write(&path, value).what(|| format!("write {}", path.display()))?;
            let what = format!("{} says {value}", path.display());
            await_condition(&what, Duration::from_secs(10), || {
                let now = fs::read_to_string(dir.join(shown)).map_err(|e| e.to_string())?;
                if now.contains(sign) {
                    Ok(Some(()))
                } else {
                    Err(now)
                }
            })?;
        }
        Ok(())
    }

    /// Lets this group and every group below go on, in both versions.
    fn thaw_all(&self) -> Result<()> {
        for dir in self.dirs()? {
            walk(&dir, &mut |d| {
                for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                    if d.join(file).exists() {
                        // A group that just vanished needs no thawing.
                        let _gone = fs::write(d.join(file), value);
                    }
                }
            });
        }
        Ok(())
    }

    /// Kills every process of the group and waits until all are gone.
    ///
    /// # Errors
    /// Some process outlives its SIGKILL for 30 s.
    pub(crate) fn kill(&self) -> Result<()> {
        if self.processes()?.is_empty() {
            return Ok(());
        }
        // v1: a frozen process does not even die.
        self.thaw_all()?;
        // First the first processes of PID namespaces only: the kernel ends
        // the rest of them, and those that wait for them reap them and end.
        // Killed together, orphans would be left to the machine's init.
        let start = Instant::now();
        await_condition(
            &format!("no process is left in {}", self.path),
            Duration::from_secs(30),
            || {
                let pids = self.processes().map_err(|e| e.to_string())?;
                let all = start.elapsed() > Duration::from_secs(3);
                for pid in pids.iter().filter(|p| all || is_first(**p)) {
                    kill_one(*pid);
                }
                if pids.is_empty() {
                    Ok(Some(()))
                } else {
                    Err(format!("processes {pids:?}"))
                }
            },
        )
    }

    /// Removes the group's directories, deepest first.
    ///
    /// # Errors
    /// A directory stays busy for 10 s.
    pub(crate) fn remove(&self) -> Result<()> {
        await_condition(
            &format!("the cgroup {} is removed", self.path),
            Duration::from_secs(10),
            || {
                let mut left = None;
                for dir in self.dirs().map_err(|e| e.to_string())? {
                    walk(&dir, &mut |d| {
                        if let Err(error) = fs::remove_dir(d) {
                            left = Some(format!("{}: {error}", d.display()));
                        }
                    });
                }
                left.map_or(Ok(Some(())), Err)
            },
        )
    }

    /// Whether the group has a directory in some hierarchy.
    pub(crate) fn exists(&self) -> Result<bool> {
        Ok(self.dirs()?.iter().any(|d| d.exists()))
    }
}

/// Clusters that have a control group, by name: also those whose record on
/// disk is gone.
pub(crate) fn clusters() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (root, _) in hierarchies()? {
        let Ok(entries) = fs::read_dir(&root) else {
            continue;
        };
        names.extend(entries.flatten().filter_map(|e| {
            e.file_name()
                .to_str()?
                .strip_prefix("veer-e2e-")
                .map(str::to_owned)
        }));
    }
    Ok(names)
}

/// v2: lets children of `dir` use all controllers it has. What cannot be
/// enabled (a controller in use by v1) is left.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        let _in_use = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Visits `dir` and all directories below, children first.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    if !dir.is_dir() {
        return;
    }
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&entry.path(), visit);
            }
        }
    }
    visit(dir);
}

/// Whether the process is the first of a PID namespace below ours.
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status
        .lines()
        .find_map(|l| l.strip_prefix("NSpid:"))
        .unwrap_or_default();
    let ids: Vec<&str> = ids.split_whitespace().collect();
    ids.len() > 1 && ids.last() == Some(&"1")
}

/// Kills one process; one that is gone is fine.
pub(crate) fn kill_one(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, Signal::KILL);
    }
}
