//! Hundreds of pods on light nodes: no kubelet, the plugin called as containerd
//! calls it, the agent as everywhere.

use std::{collections::BTreeSet, env, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Cluster, await_condition};
use veer_e2e_tests::{client, lab::Lab, light};

use crate::{
    behind,
    scene::{Scene, Test},
};

/// All tests.
pub(crate) const TESTS: [(&str, Test); 2] = [
    (
        "hundreds_of_pods_that_came_and_went_leave_nothing_behind",
        Test::Once(come_and_go),
    ),
    (
        "pods_wired_all_at_once_have_an_address_each_and_are_reached",
        Test::Once(all_at_once),
    ),
];

/// Namespace of the pods.
const PODS: &str = "e2e-light";

/// Runs `test` with further light nodes, which are removed whatever it says.
fn with_nodes(scene: &Scene, names: &[&str], test: impl Fn(&Lab) -> Result<()>) -> Result<()> {
    let cluster = Cluster::attach(&scene.lab.cluster.state().config.name)?;
    let mut lab = Lab::new(cluster);
    let outcome = names
        .iter()
        .try_for_each(|name| light::add_node(&mut lab, name).map(|_| ()))
        .and_then(|()| test(&lab));
    let there = |name: &&&str| lab.cluster.state().nodes.iter().any(|n| n.name == **name);
    let there: Vec<&str> = names.iter().filter(there).copied().collect();
    let removed = there
        .iter()
        .try_for_each(|name| lab.cluster.remove_node(name));
    let namespace = [
        "delete",
        "namespace",
        "--ignore-not-found",
        "--wait=true",
        PODS,
    ];
    let deleted = scene.lab.kubectl().run(&namespace);
    outcome?;
    removed?;
    deleted?;
    Ok(())
}

fn come_and_go(scene: &Scene) -> Result<()> {
    const EACH: usize = 60;
    let total: usize = match env::var("VEER_E2E_PODS") {
        Ok(text) => text.parse().context("VEER_E2E_PODS is a number")?,
        Err(_) => 360,
    };
    let nodes = ["light1", "light2"];
    with_nodes(scene, &nodes, |lab| {
        let before = behind::everything_settled(lab)?;
        let mut seen = 0;
        while seen < total {
            for node in nodes {
                let prefix = format!("{node}-{seen}");
                let machine = lab.node(node)?;
                let pods = light::create_pods(lab, PODS, node, &prefix, EACH)?;
                let addresses = light::wire(&machine, &pods)?;
                reached(scene, addresses.last().context("no pod")?)?;
                light::unwire(&machine, &pods)?;
                light::delete_pods(lab, PODS, &prefix)?;
                seen += EACH;
            }
        }
        await_condition("nothing is left of them", Duration::from_secs(30), || {
            let after = behind::everything(lab).map_err(|e| format!("{e:#}"))?;
            behind::nothing_new(&before, &after)
                .map(Some)
                .map_err(|e| format!("{e:#}"))
        })?;
        Ok(())
    })
}

fn all_at_once(scene: &Scene) -> Result<()> {
    /// Of the 253 that a /24 has for pods.
    const PODS_AT_ONCE: usize = 250;
    with_nodes(scene, &["light1"], |lab| {
        let machine = lab.node("light1")?;
        let pods = light::create_pods(lab, PODS, "light1", "once", PODS_AT_ONCE)?;
        let addresses = light::wire(&machine, &pods)?;
        let distinct: BTreeSet<&String> = addresses.iter().collect();
        ensure!(
            pods.len() == PODS_AT_ONCE && distinct.len() == PODS_AT_ONCE,
            "{} pods have {} addresses",
            pods.len(),
            distinct.len()
        );
        // The first that asked and the last, from another node.
        reached(scene, &addresses[0])?;
        reached(scene, &addresses[PODS_AT_ONCE - 1])?;
        light::unwire(&machine, &pods)
    })
}

/// A pod of a real node reaches the address.
fn reached(scene: &Scene, address: &str) -> Result<()> {
    let source = scene.demo_on("worker1")?;
    let to: IpAddr = address.parse().context("an address")?;
    // Its PodEndpoint is on the way to the other nodes when ADD returns.
    client::await_reaches(&source.site, to, 1, Duration::from_secs(5))
}
