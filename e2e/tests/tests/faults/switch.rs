//! The change of mode under load, disturbed in every phase.

use anyhow::Result;
use veer_e2e_tests::{
    lab::Mode,
    load::{self, Path},
    scene::Scene,
};

use crate::fault::{Fault, Held};

/// All faults of the switch.
pub(crate) fn faults() -> Vec<Fault> {
    vec![Fault::new(
        "switch::twenty_times_there_and_back",
        "kubectl patch clusternetwork, 20 times",
        Mode::Tunnel,
        |scene| there_and_back(scene, 20),
    )]
}

fn there_and_back(scene: &Scene, times: u32) -> Result<Held> {
    let lab = &scene.lab;
    let ((), report) = load::under(lab, &Path::ALL, || {
        (0..times).try_for_each(|number| {
            let mode = if number % 2 == 0 {
                Mode::Native
            } else {
                Mode::Tunnel
            };
            lab.set_mode(mode)
        })
    })?;
    report.unharmed()?;
    Ok(Held::new("all traffic", report.figure()))
}
