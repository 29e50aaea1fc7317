//! What a change of mode and the end of all agents add to the longest time between two
//! arrivals under load, against what the load has of its own.

use anyhow::Result;
use veer_e2e_tests::{
    lab::{Lab, Mode},
    load::{self, Path},
    processes::kill_agents,
};

use crate::figures::Figures;

/// Subjects of the series.
pub(crate) mod subject {
    /// Nothing is done.
    pub(crate) const UNDISTURBED: &str = "load, nothing done";
    /// To Native and back.
    pub(crate) const CHANGE: &str = "load, mode changed";
    /// All agents at once.
    pub(crate) const KILLED: &str = "load, agents killed";
}

/// Quantity of all: without what the flow's ends were not running.
pub(crate) const GAP: &str = "longest gap, ms";

/// Some rounds of each, interleaved.
pub(crate) fn measure(lab: &Lab, rounds: usize, figures: &mut Figures) -> Result<()> {
    let nodes = lab.cluster.node_names();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut mode = lab.mode()?;
    for _ in 0..rounds {
        mode = match mode {
            Mode::Tunnel => Mode::Native,
            Mode::Native | Mode::Hybrid => Mode::Tunnel,
        };
        let mut under = |subject, change: &dyn Fn() -> Result<()>| -> Result<()> {
            let ((), report) = load::under(lab, &Path::ALL, change)?;
            report.unharmed()?;
            let gap = report.longest_gap_of_network().as_secs_f64() * 1000.0;
            figures.add(subject, GAP, gap);
            Ok(())
        };
        under(subject::UNDISTURBED, &|| Ok(()))?;
        under(subject::CHANGE, &|| lab.set_mode(mode))?;
        under(subject::KILLED, &|| kill_agents(lab, &nodes))?;
    }
    lab.set_mode(Mode::Tunnel)
}
