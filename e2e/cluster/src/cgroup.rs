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
    time::Duration,
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
        let Some((left, right)) = line.split_once(" - ") else { continue };
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
        Self { path: format!("veer-e2e-{cluster}") }
    }

    /// A group inside this one.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self { path: format!("{}/{name}", self.path) }
    }

    /// The path as the kubelet takes it: below the root, with a slash.
    pub(crate) fn kubelet_root(&self) -> String {
        format!("/{}", self.path)
    }

    /// This group's directory in every hierarchy, existing or not.
    fn dirs(&self) -> Result<Vec<PathBuf>> {
        Ok(hierarchies()?.into_iter().map(|(root, _)| root.join(&self.path)).collect())
    }

    /// The files a process writes `0` to, to enter the group.
    pub(crate) fn entrances(&self) -> Result<Vec<PathBuf>> {
        Ok(self.dirs()?.into_iter().map(|d| d.join("cgroup.procs")).collect())
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
                pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()).filter(|p| *p != 0));
            });
        }
        Ok(pids)
    }

    /// Processes in the group itself, not below.
    pub(crate) fn own_processes(&self) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for file in self.entrances()? {
            let text = fs::read_to_string(file).unwrap_or_default();
            pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()).filter(|p| *p != 0));
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

    /// Stops (`true`) or continues every process of the group at once.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        for (root, v2) in hierarchies()? {
            let dir = root.join(&self.path);
            let (file, value) = if v2 {
                ("cgroup.freeze", if frozen { "1" } else { "0" })
            } else {
                ("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
            };
            let path = dir.join(file);
            // With both versions mounted, v1's freezer is the one to use: the
            // v2 tree then carries no pods.
            if path.exists() && !(v2 && root.ends_with("unified")) {
                fs::write(&path, value).what(|| format!("write {}", path.display()))?;
            }
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
        self.freeze(false)?;
        await_condition(
            &format!("no process is left in {}", self.path),
            Duration::from_secs(30),
            || {
                let pids = self.processes().map_err(|e| e.to_string())?;
                for pid in &pids {
                    if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                        // Gone in between is what is wanted.
                        let _gone = kill_process(pid, Signal::KILL);
                    }
                }
                if pids.is_empty() { Ok(Some(())) } else { Err(format!("processes {pids:?}")) }
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
        let Ok(entries) = fs::read_dir(&root) else { continue };
        names.extend(entries.flatten().filter_map(|e| {
            e.file_name().to_str()?.strip_prefix("veer-e2e-").map(str::to_owned)
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

/// Kills one process; one that is gone is fine.
pub(crate) fn kill_one(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, Signal::KILL);
    }
}
