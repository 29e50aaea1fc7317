//! An address family that a running cluster gives up and takes back.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_e2e_cluster::{Families, Family, await_condition};
use veer_e2e_tests::{
    client,
    lab::{Lab, Mode},
    pods::{self, Pod},
    rollout,
    scene::{DEMO, Scene},
    workloads::STARTED,
};

use super::{Made, NODE, OTHER, service, works};
use crate::{
    fault::{Fault, Held},
    survive::{seconds, unharmed},
};

pub(super) fn faults() -> Vec<Fault> {
    // Read again, and refused with a reason, where the cluster is made.
    let dual = Families::from_environment().is_ok_and(Families::is_dual);
    let fault = |mode: Mode| {
        Fault::new(
            format!(
                "families::given_up_and_taken_back_in_{}",
                mode.name().to_lowercase()
            ),
            "the blocks of the family that is not the primary one set to Draining, a pod made, \
             the blocks set to Active, a pod made",
            mode,
            given_up_and_taken_back,
        )
    };
    if dual {
        vec![fault(Mode::Tunnel), fault(Mode::Native)]
    } else {
        Vec::new()
    }
}

/// The state of all blocks of a family; Active again when this is dropped.
struct Blocks<'a> {
    lab: &'a Lab,
    family: Family,
}

impl Blocks<'_> {
    fn set(&self, state: &str) -> Result<()> {
        let network = rollout::network(self.lab)?;
        let mut blocks = network["spec"]["podCIDRs"].clone();
        let all = blocks.as_array_mut().context("no spec.podCIDRs")?;
        for block in all {
            let of_v6 = block["cidr"].as_str().is_some_and(|c| c.contains(':'));
            if of_v6 == (self.family == Family::V6) {
                block["state"] = state.into();
            }
        }
        let patch = json!({"spec": {"podCIDRs": blocks}});
        self.lab.patch_network(&patch.to_string())
    }
}

impl Drop for Blocks<'_> {
    fn drop(&mut self) {
        // Done already, mostly.
        let _active = self.set("Active");
    }
}

/// Makes pods until one has addresses of so many families.
fn await_pod_of<'a>(lab: &'a Lab, name: &str, families: usize) -> Result<Made<'a>> {
    let what = format!("a new pod has {families} addresses");
    await_condition(&what, STARTED, || {
        let made = Made::on(lab, NODE, name).map_err(|e| format!("{e:#}"))?;
        if made.pod.addresses.len() == families {
            return Ok(Some(Ok(made)));
        }
        let found = format!("{} has {:?}", made.pod.name, made.pod.addresses);
        match made.deleted() {
            Ok(()) => Err(found),
            Err(error) => Ok(Some(Err(error))),
        }
    })?
}

/// Who runs, and how often their containers started.
fn running(lab: &Lab) -> Result<Vec<(String, Value)>> {
    let pods = pods::running(lab, DEMO, "app in (demo, other)")?;
    let of = |pod: Pod| {
        let found = lab.kubectl().json(&["-n", DEMO, "get", "pod", &pod.name])?;
        let started = &found["status"]["containerStatuses"][0]["restartCount"];
        Ok((pod.uid, started.clone()))
    };
    pods.into_iter().map(of).collect()
}

fn given_up_and_taken_back(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let primary = lab.primary();
    let families = lab.cluster.families().all();
    let family = families.iter().copied().find(|f| *f != primary);
    let family = family.context("the cluster has one family")?;
    let before = running(lab)?;
    ensure!(!before.is_empty(), "no pods to look at");
    unharmed(
        scene,
        "all traffic in both families; no pod restarted; new pods had one address, then two",
        || {
            let blocks = Blocks { lab, family };
            let start = Instant::now();
            blocks.set("Draining")?;
            let single = await_pod_of(lab, "single", 1)?;
            let gone = start.elapsed();
            ensure!(
                Family::of(single.pod.address) == primary,
                "it has {:?}",
                single.pod.addresses
            );
            service(scene, primary, &single.pod.site, OTHER)?;
            let to = scene.fixed_on(OTHER)?.address_in(primary)?;
            client::reaches(&single.pod.site, to, 2)?;
            let back = Instant::now();
            blocks.set("Active")?;
            let both = await_pod_of(lab, "both", 2)?;
            let back = back.elapsed();
            works(scene, &both.pod)?;
            single.deleted()?;
            both.deleted()?;
            let after = running(lab)?;
            ensure!(after == before, "before {before:?}, after {after:?}");
            Ok((gone, back))
        },
        |(gone, back)| {
            format!(
                "new pods without it within {}, with it within {}",
                seconds(*gone),
                seconds(*back)
            )
        },
    )
}
