//! Addresses that a node has or claims: what another node may not believe.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use veer_e2e_cluster::{Family, await_condition};
use veer_e2e_tests::{
    client,
    lab::{Lab, Mode},
    maps,
    processes::{Signal, signal_agents},
    scene::{DEMO, FIXED, Scene},
    told::{self, READY},
    workloads::{self, STARTED},
};

use super::{Foreign, Made, NODE, OTHER, delete, stays};
use crate::{
    fault::{Fault, Held},
    survive::unharmed,
};

/// How long a wrong row is looked for, once the right ones are known to have come.
const LOOKED: std::time::Duration = std::time::Duration::from_secs(5);

pub(super) fn faults() -> Vec<Fault> {
    let tunnel = |name: &str, injected: &str, run: fn(&Scene) -> Result<Held>| {
        Fault::new(format!("addresses::{name}"), injected, Mode::Tunnel, run)
    };
    vec![
        tunnel(
            "clusters_dns_on_one_node",
            "a device with the DNS service's address on one node, as NodeLocal DNSCache makes it",
            node_local_dns,
        )
        .short(),
        tunnel(
            "load_balancers_address_on_one_node",
            "a load balancer's address on one node, as kube-vip puts it there",
            vip,
        ),
        tunnel(
            "clusters_dns_claimed_by_a_node_without_its_agent",
            "the DNS service's address written into a node's own objects while its agent is stopped",
            claimed,
        )
        .short(),
        tunnel(
            "address_of_an_older_networks_pod_is_not_given_again",
            "a pod that another network wired, with an address of its node's block; then new pods",
            migrated,
        ),
    ]
}

/// The row of a node's ipcache for exactly this address.
fn row(lab: &Lab, node: &str, address: IpAddr) -> Result<Option<maps::IpcacheRow>> {
    let rows = maps::ipcache(&lab.node(node)?)?;
    Ok(rows
        .into_iter()
        .find(|r| r.is_whole() && r.address == address))
}

/// No other node has a row for it, for a while.
fn believed_by_nobody(lab: &Lab, address: IpAddr) -> Result<()> {
    stays("nobody believes the address", LOOKED, || {
        for node in lab.cluster.node_names() {
            let row = row(lab, &node, address)?;
            ensure!(node == NODE || row.is_none(), "{node} has {row:?}");
        }
        Ok(())
    })
}

/// Puts an address on a device of its own on the node, and waits until its agent has
/// told that it is there.
fn put(lab: &Lab, device: &str, address: IpAddr) -> Result<Foreign> {
    // A bridge stands in for a dummy, which not every kernel has.
    let script = format!(
        "ip link add {device} type bridge; ip address add {address}/{} dev {device}; \
         ip link set {device} up",
        Family::of(address).bits()
    );
    let undo = format!("ip link del {device} 2>/dev/null || true");
    let foreign = Foreign::put(lab, NODE, &script, &undo)?;
    await_condition("the agent has seen the address", STARTED, || {
        let report = told::report(lab, NODE).map_err(|e| format!("{e:#}"))?;
        let seen = report["addresses"].as_array().into_iter().flatten();
        let seen = seen.into_iter().any(|a| *a == address.to_string().as_str());
        if seen {
            Ok(Some(()))
        } else {
            Err(report["addresses"].to_string())
        }
    })?;
    Ok(foreign)
}

fn node_local_dns(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let dns = lab.primary().dns_service();
    unharmed(
        scene,
        "all traffic; no other node believed it; DNS answered",
        || {
            let foreign = put(lab, "nodelocaldns", dns)?;
            believed_by_nobody(lab, dns)?;
            for pod in scene.demo.iter().filter(|p| p.node != NODE) {
                client::dns(&pod.site, lab.primary(), &[])?;
            }
            foreign.undone()
        },
        |()| String::new(),
    )
}

fn vip(scene: &Scene) -> Result<Held> {
    const NAME: &str = "e2e-lb";
    // On the nodes' link, and nobody's.
    let [a, b, c, _] = scene.lab.cluster.address(NODE)?.octets();
    let vip = IpAddr::V4(Ipv4Addr::new(a, b, c, 200));
    let lab = &scene.lab;
    let kubectl = lab.kubectl();
    let pod = scene.fixed_on(OTHER)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": FIXED},
        "spec": {"type": "LoadBalancer", "selector": {"at": OTHER},
            "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let outcome = unharmed(
        scene,
        "all traffic; the address served by the client's own node",
        || {
            kubectl.apply(&service.to_string())?;
            let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": vip}]}}});
            let patch = |patch: &str, more: &[&str]| {
                let words = [
                    "-n",
                    FIXED,
                    "patch",
                    "svc",
                    NAME,
                    "--type=merge",
                    "-p",
                    patch,
                ];
                kubectl.run(&[&words[..], more].concat())
            };
            patch(&status.to_string(), &["--subresource=status"])?;
            let from = &scene.demo_on(OTHER)?.site;
            let asked = || {
                await_condition("the load balancer's address answers", STARTED, || {
                    let answer = client::http_get(from, (vip, 80).into(), "/hostname");
                    let answer = answer.map_err(|e| format!("{e:#}"))?;
                    Ok((answer.trim() == pod.name).then_some(()))
                })
            };
            asked()?;
            let foreign = put(lab, "kubevip", vip)?;
            believed_by_nobody(lab, vip)?;
            asked()?;
            patch(r#"{"spec": {"externalTrafficPolicy": "Local"}}"#, &[])?;
            asked()?;
            foreign.undone()
        },
        |()| String::new(),
    );
    kubectl.delete(&service.to_string())?;
    outcome
}

/// What an attacker with a node's token can write: the objects of that node.
fn claimed(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let patch = |kind: &str, patch: &str| {
        lab.kubectl().run(&[
            "patch",
            kind,
            NODE,
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ])
    };
    let dns = lab.primary().dns_service();
    let before = lab.kubectl().json(&["get", "nodenetwork", NODE])?["status"].clone();
    let applied = before["applied"].as_object().context("nothing applied")?;
    let mut wrong = applied.clone();
    wrong.insert("number".to_owned(), json!(999_999));
    unharmed(
        scene,
        "all traffic; nobody believed it; both statuses put right, told",
        || {
            signal_agents(lab, &[NODE], Signal::Stop)?;
            let lie = json!({"status": {"addresses": [dns], "endpoints": 4_000}});
            let outcome = patch("nodereport", &lie.to_string())
                .and_then(|_| {
                    patch(
                        "nodenetwork",
                        &json!({"status": {"applied": wrong}}).to_string(),
                    )
                })
                .map_err(anyhow::Error::from)
                .and_then(|_| believed_by_nobody(lab, dns))
                .and_then(|()| {
                    scene
                        .demo
                        .iter()
                        .try_for_each(|pod| client::dns(&pod.site, lab.primary(), &[]))
                });
            signal_agents(lab, &[NODE], Signal::Continue)?;
            outcome?;
            await_condition("both statuses are right again", STARTED, || {
                let network = lab.kubectl().json(&["get", "nodenetwork", NODE]);
                let network = network.map_err(|e| e.to_string())?;
                let report = told::report(lab, NODE).map_err(|e| format!("{e:#}"))?;
                let right = network["status"]["applied"] == before["applied"]
                    && report["endpoints"] != 4_000
                    && !report["addresses"].to_string().contains(&dns.to_string());
                if right {
                    Ok(Some(()))
                } else {
                    Err(format!("{}; {report}", network["status"]))
                }
            })?;
            told::await_event(lab, "Node", NODE, &["status"])
        },
        |()| String::new(),
    )
}

/// Shell text that makes another network's plugin, which gives every pod `address`, and
/// its configuration, which comes before veer's.
fn older_network(address: Ipv4Addr) -> String {
    let plugin = format!(
        r#"#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
host=old$(echo "$CNI_CONTAINERID" | cut -c1-8)
ip link add "$host" type veth peer name "e$host"
ip link set "e$host" netns "$CNI_NETNS"
nsenter --net="$CNI_NETNS" sh -ec "ip link set e$host name eth0
ip address add {address}/32 dev eth0; ip link set eth0 up; ip route add default dev eth0"
ip link set "$host" up
echo '{{"cniVersion":"1.0.0","interfaces":[],"ips":[{{"address":"{address}/32"}}]}}'"#
    );
    format!(
        "cat >/opt/cni/bin/oldcni <<'END'\n{plugin}\nEND\n\
         chmod +x /opt/cni/bin/oldcni\n\
         echo '{{\"cniVersion\": \"1.0.0\", \"name\": \"old\", \
         \"plugins\": [{{\"type\": \"oldcni\"}}]}}' >{OLDER}\n"
    )
}

/// Where the older network's configuration is.
const OLDER: &str = "/etc/cni/net.d/04-older.conflist";

/// Waits until a pod of [`DEMO`] has an address by its status.
fn await_address(lab: &Lab, name: &str, address: Ipv4Addr) -> Result<()> {
    let what = format!("{name} has {address}");
    await_condition(&what, STARTED, || {
        let pod = lab.kubectl().json(&["-n", DEMO, "get", "pod", name]);
        let status = pod.map_err(|e| e.to_string())?["status"].clone();
        if status["podIP"] == address.to_string().as_str() {
            Ok(Some(()))
        } else {
            Err(status.to_string())
        }
    })?;
    Ok(())
}

fn migrated(scene: &Scene) -> Result<Held> {
    const OLD: &str = "of-older-network";
    let lab = &scene.lab;
    // Addresses never used come first, in their order: the second from here will be
    // the older network's, then its turn comes.
    let before = Made::on(lab, NODE, "before-migration")?;
    let taken = Ipv4Addr::from(before.pod.v4()?.to_bits() + 2);
    let used = maps::endpoints(&lab.node(NODE)?)?;
    ensure!(
        used.iter().all(|e| e.address != taken),
        "{taken} is a pod's already, which proves nothing"
    );
    let undo = format!("rm -f {OLDER}");
    let foreign = Foreign::put(lab, NODE, &older_network(taken), &undo)?;
    let outcome = (|| {
        told::await_told(lab, NODE, READY, "False", &["04-older.conflist"])?;
        let labels = format!("{{app: {OLD}}}");
        lab.kubectl()
            .apply(&workloads::single(DEMO, OLD, NODE, &labels))?;
        await_address(lab, OLD, taken)?;
        foreign.undone()?;
        told::await_told(lab, NODE, READY, "True", &[])?;
        let new: Vec<Made<'_>> = (1..=4)
            .map(|n| Made::on(lab, NODE, &format!("migrated-{n}")))
            .collect::<Result<_>>()?;
        let given: Vec<Ipv4Addr> = new.iter().map(|m| m.pod.v4()).collect::<Result<_>>()?;
        ensure!(
            !given.contains(&taken),
            "{taken} was given again: {given:?}"
        );
        ensure!(
            given.iter().any(|a| *a > taken),
            "the turn of {taken} never came: {given:?}"
        );
        new.into_iter().try_for_each(Made::deleted)?;
        Ok(format!(
            "{taken} stayed the old pod's, {} new pods",
            given.len()
        ))
    })();
    delete(lab, OLD, "--wait=true")?;
    lab.node(NODE)?.exec(&["rm", "-f", "/opt/cni/bin/oldcni"])?;
    outcome.map(|figure| Held::new("no address twice", figure))
}
