//! What most faults have in common: load before, during and after, and all nodes
//! as they were.

use std::{env, fmt::Display, time::Duration};

use anyhow::{Context, Result};
use veer_e2e_cluster::Cluster;
use veer_e2e_tests::{
    lab::Lab,
    load::{self, Path},
    scene::Scene,
    snapshot,
};

use crate::fault::Held;

/// How long nodes may take to be as they were. Agents look every few seconds.
pub(crate) const SETTLED: Duration = Duration::from_mins(1);

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Some of the faults.
    Short,
    /// Each, a few times.
    Quick,
    /// Each, as often and as long as its promise requires.
    Full,
}

/// As `VEER_FAULTS` says.
pub(crate) fn form() -> Form {
    match env::var("VEER_FAULTS").as_deref() {
        Ok("short") => Form::Short,
        Ok("full") => Form::Full,
        _ => Form::Quick,
    }
}

/// A count or a time.
pub(crate) fn quick_or_full<T>(quick: T, full: T) -> T {
    match form() {
        Form::Short | Form::Quick => quick,
        Form::Full => full,
    }
}

/// Injects a fault under load on all paths. Nothing may be lost, and
/// afterwards every node must know exactly the pods that are.
pub(crate) fn unharmed<T>(
    scene: &Scene,
    what: &str,
    inject: impl FnOnce() -> Result<T>,
    figure: impl FnOnce(&T) -> String,
) -> Result<Held> {
    let lab = &scene.lab;
    load::limit(lab)?;
    let (value, report) = load::under(lab, &Path::ALL, inject)?;
    report.unharmed()?;
    snapshot::await_agrees(lab, SETTLED)?;
    Ok(Held::new(what, join(&figure(&value), &report.figure())))
}

/// [`unharmed`], and afterwards every node must be as it was before.
pub(crate) fn unchanged<T>(
    scene: &Scene,
    what: &str,
    inject: impl FnOnce() -> Result<T>,
    figure: impl FnOnce(&T) -> String,
) -> Result<Held> {
    let lab = &scene.lab;
    // Makes the load's pods, when this is the first fault.
    load::limit(lab)?;
    snapshot::await_agrees(lab, SETTLED).context("before the fault")?;
    let before = snapshot::cluster(lab)?;
    let held = unharmed(scene, what, inject, figure)?;
    snapshot::await_same(lab, &before, SETTLED)?;
    Ok(held)
}

/// Two parts of a figure.
pub(crate) fn join(own: &str, load: &str) -> String {
    if own.is_empty() {
        load.to_owned()
    } else {
        format!("{own}; {load}")
    }
}

/// A time in seconds, for people.
pub(crate) fn seconds(time: Duration) -> impl Display {
    format!("{:.1} s", time.as_secs_f64())
}

/// The cluster as one that may be changed: a handle of its own, since the
/// scene's is shared.
pub(crate) fn changeable(scene: &Scene) -> Result<Lab> {
    let name = &scene.lab.cluster.state().config.name;
    Ok(Lab::new(Cluster::attach(name)?))
}
