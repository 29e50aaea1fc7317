//! Faults, one after another, on one cluster that carries load all the time;
//! a table of what was done and what held.
//!
//! Environment: as for the e2e tests; `VEER_FAULTS=short` takes some of the faults
//! only, those that `make test` runs, and `VEER_FAULTS=full` the long form of each
//! (100 kills, every system call, whole minutes);
//! `VEER_FAULTS_WRITE=1` writes the table to docs/faults.md and a picture to
//! docs/switch.svg too; `VEER_FAULTS_ONLY=new_address,split_brain` takes those whose
//! name holds one of these. Faults whose name holds `router` want
//! `VEER_E2E_UNDERLAY=router` and are left out without it.

mod agent;
mod api;
mod cases;
mod fault;
mod flood;
mod forged;
mod injector;
mod members;
mod node;
mod operator;
mod pairs;
mod repair;
mod survive;
mod switch;
mod underlays;

use std::{env, process::ExitCode};

use fault::Fault;
use libtest_mimic::{Arguments, Trial};
use survive::{Form, form};
use veer_e2e_tests::scene;

/// All faults, in the order in which they run.
fn faults() -> Vec<Fault> {
    let mut all = Vec::new();
    all.extend(switch::faults());
    all.extend(pairs::faults());
    all.extend(underlays::faults());
    all.extend(agent::faults());
    all.extend(operator::faults());
    all.extend(api::faults());
    all.extend(repair::faults());
    all.extend(flood::faults());
    all.extend(forged::faults());
    all.extend(injector::faults());
    all.extend(cases::faults());
    all.extend(node::faults());
    all.extend(members::faults());
    let router = env::var("VEER_E2E_UNDERLAY").is_ok_and(|u| u == "router");
    all.retain(|f| f.name.contains("router") == router);
    all.retain(|f| f.in_short || form() != Form::Short);
    if let Ok(only) = env::var("VEER_FAULTS_ONLY") {
        all.retain(|f| only.split(',').any(|part| f.name.contains(part)));
    }
    all
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share a cluster, and each wants the machine for itself.
    arguments.test_threads = Some(1);
    let trials = faults()
        .into_iter()
        .map(|fault| {
            Trial::test(fault.name.clone(), move || {
                scene::run(fault.needs, |scene| fault.run(scene))
                    .map_err(|e| format!("{e:#}").into())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    for outcome in [fault::report(), scene::end()] {
        if let Err(error) = outcome {
            eprintln!("faults: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}
