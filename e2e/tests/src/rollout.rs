//! A change of mode as its user sees it: patched into the ClusterNetwork, and
//! followed in what the API shows of it.

use std::{
    io::BufReader,
    process::Stdio,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Deserializer, Value, json};

use crate::{
    lab::{Lab, Mode},
    processes::{Signal, Started, signal_agents},
};

/// How long one phase may take. A second, in truth; pairs that failed are
/// probed again after 15 s at first.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A phase of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The target form is probed.
    Preflight,
    /// Both forms are accepted.
    Prepare,
    /// Nodes send in the target form.
    Switch,
    /// The old form goes.
    Finalize,
    /// Nothing is under way.
    Ready,
}

impl Phase {
    /// Those of a change, in order.
    pub const CHANGE: [Self; 4] = [Self::Preflight, Self::Prepare, Self::Switch, Self::Finalize];

    /// As the resource spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preflight => "Preflight",
            Self::Prepare => "Prepare",
            Self::Switch => "Switch",
            Self::Finalize => "Finalize",
            Self::Ready => "Ready",
        }
    }
}

/// A version of an object, and when it was seen (nanoseconds since 1970).
pub type Version = (u64, Value);

/// `kubectl get … -w`: every version of some objects, in order.
#[derive(Debug)]
pub struct Follow {
    _kubectl: Started,
    versions: Receiver<Version>,
    /// Those that [`Follow::until`] has passed.
    pub seen: Vec<Version>,
}

impl Follow {
    /// Follows the ClusterNetwork.
    pub fn network(lab: &Lab) -> Result<Self> {
        Self::start(lab, &["clusternetwork", "default"])
    }

    /// Follows objects; the first versions are those that are there.
    pub fn start(lab: &Lab, what: &[&str]) -> Result<Self> {
        let mut args = vec!["get", "-w", "-o", "json"];
        args.extend(what);
        let mut child = lab
            .kubectl()
            .command(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start kubectl")?;
        let out = child.stdout.take().context("kubectl without a pipe")?;
        let (sender, versions) = channel();
        thread::spawn(move || {
            let values = Deserializer::from_reader(BufReader::new(out)).into_iter::<Value>();
            // It ends with kubectl or with the receiver.
            for value in values.map_while(Result::ok) {
                if sender.send((now(), value)).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            _kubectl: Started(child),
            versions,
            seen: Vec::new(),
        })
    }

    /// Returns the first version from here on that fulfils `is`.
    pub fn until(&mut self, what: &str, mut is: impl FnMut(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.versions.recv_timeout(left) {
                Ok(version) => {
                    self.seen.push(version.clone());
                    if is(&version.1) {
                        return Ok(version.1);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{what}: kubectl -w has ended"),
                Err(RecvTimeoutError::Timeout) => {
                    let last = self.seen.last().map(|(_, v)| v["status"].to_string());
                    bail!("{what}: not within {PATIENCE:?}; last seen: {last:?}");
                }
            }
        }
    }

    /// Sees for `time` that no version is what `wrong` finds.
    pub fn never(
        &mut self,
        what: &str,
        time: Duration,
        mut wrong: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            match self
                .versions
                .recv_timeout(time.saturating_sub(start.elapsed()))
            {
                Ok(version) => {
                    ensure!(!wrong(&version.1), "{what}: {}", version.1["status"]);
                    self.seen.push(version);
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{what}: kubectl -w has ended"),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
            }
        }
    }

    /// All versions that have come, those passed by [`Follow::until`] first.
    pub fn stop(mut self) -> Vec<Version> {
        let mut seen = std::mem::take(&mut self.seen);
        seen.extend(self.versions.try_iter());
        seen
    }
}

/// The machine's clock, nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Number of a ClusterNetwork's epoch.
pub fn number(network: &Value) -> i64 {
    network["status"]["epoch"]["number"].as_i64().unwrap_or(0)
}

/// Whether a ClusterNetwork is in a phase of a change later than `after`.
pub fn is_in(network: &Value, after: i64, phase: Phase) -> bool {
    number(network) > after && network["status"]["epoch"]["phase"] == phase.name()
}

/// The ClusterNetwork as it is.
pub fn network(lab: &Lab) -> Result<Value> {
    Ok(lab.kubectl().json(&["get", "clusternetwork", "default"])?)
}

/// Asks for a mode, whatever the rest of the spec says, unpaused.
pub fn ask(lab: &Lab, mode: Mode) -> Result<()> {
    let patch = json!({"spec": {"routing": {"mode": mode.name()}, "rollout": {"paused": false}}});
    lab.patch_network(&patch.to_string())
}

/// Pauses the rollout, or lets it go on.
pub fn pause(lab: &Lab, paused: bool) -> Result<()> {
    let patch = json!({"spec": {"rollout": {"paused": paused}}});
    lab.patch_network(&patch.to_string())
}

/// Fields of `spec.rollout` for as long as this lives; then all are as they
/// are by default.
#[derive(Debug)]
pub struct Policy<'a> {
    lab: &'a Lab,
}

impl<'a> Policy<'a> {
    /// Sets fields of `spec.rollout`.
    pub fn set(lab: &'a Lab, fields: &Value) -> Result<Self> {
        lab.patch_network(&json!({"spec": {"rollout": fields}}).to_string())?;
        Ok(Self { lab })
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        // The test's own outcome says more than this one.
        let _unset = self.lab.patch_network(r#"{"spec": {"rollout": null}}"#);
    }
}

/// Asks for a mode and holds the change, paused, in one of its phases. Returns
/// the ClusterNetwork as it is held.
///
/// It goes from phase to phase, paused in each. An agent is frozen from before a phase
/// begins until it is paused, so that none can be over before, however busy the machine
/// is.
pub fn hold(lab: &Lab, mode: Mode, phase: Phase) -> Result<Value> {
    let mut follow = Follow::network(lab)?;
    let before = number(&network(lab)?);
    let mut at = None;
    for next in Phase::CHANGE {
        if let Some(at) = at {
            until_done(&mut follow, before, at)?;
        }
        step(lab, &mut follow, before, next, || match at {
            None => ask(lab, mode),
            Some(_) => pause(lab, false),
        })?;
        if next == phase {
            break;
        }
        at = Some(next);
    }
    let held = network(lab)?;
    ensure!(
        is_in(&held, before, phase),
        "the change is not held in {}: {}",
        phase.name(),
        held["status"]
    );
    Ok(held)
}

/// Waits until a paused phase has nothing left to do.
fn until_done(follow: &mut Follow, before: i64, phase: Phase) -> Result<()> {
    let what = format!("phase {} is done, and the change paused", phase.name());
    let done = format!("phase {} is done on ", phase.name());
    follow.until(&what, |n| {
        let all = n["status"]["progress"].as_str().unwrap_or_default();
        let all = all.split_once('/').is_some_and(|(some, all)| some == all);
        let conditions = n["status"]["conditions"].as_array().into_iter().flatten();
        let mut said = conditions.filter_map(|c| c["message"].as_str());
        is_in(n, before, phase) && all && said.any(|m| m.starts_with("paused") && m.contains(&done))
    })?;
    Ok(())
}

/// Resumes a change and pauses it in the next phase.
fn step(
    lab: &Lab,
    follow: &mut Follow,
    before: i64,
    to: Phase,
    go: impl FnOnce() -> Result<()>,
) -> Result<()> {
    const GATE: [&str; 1] = ["worker2"];
    signal_agents(lab, &GATE, Signal::Stop)?;
    let paused = go()
        .and_then(|()| {
            let what = format!("the change is in {}", to.name());
            follow.until(&what, |n| is_in(n, before, to)).map(drop)
        })
        .and_then(|()| pause(lab, true));
    signal_agents(lab, &GATE, Signal::Continue)?;
    paused
}
