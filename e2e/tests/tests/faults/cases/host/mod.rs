//! What other software does to a node: package managers, firewalls, hardening, other
//! networks' leftovers.

mod forward;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Family, await_condition};
use veer_e2e_tests::{
    agents, client,
    lab::{Lab, Mode},
    maps, pods,
    scene::Scene,
    snapshot,
    told::{self, DEGRADED, READY},
    workloads::{HOST_HTTP, HOST_UDP, STARTED},
};

use super::{Foreign, Made, NODE, OTHER, asked, await_works, works};
use crate::{
    fault::{Fault, Held},
    survive::{SETTLED, unchanged, unharmed},
};

/// veer's own file for the container runtime.
const CONFLIST: &str = "/etc/cni/net.d/05-veer.conflist";

pub(super) fn faults() -> Vec<Fault> {
    let tunnel = |name: &str, injected: &str, run: fn(&Scene) -> Result<Held>| {
        Fault::new(format!("host::{name}"), injected, Mode::Tunnel, run)
    };
    vec![
        tunnel(
            "files_of_the_plugin_removed",
            "rm of veer-cni, portmap and loopback, of the socket, of its directory",
            files_removed,
        ),
        tunnel(
            "another_networks_conflist_first",
            "a file that sorts before veer's in /etc/cni/net.d",
            conflist_first,
        )
        .short(),
        tunnel(
            "plugin_added_to_the_chain",
            "a plugin appended to veer's conflist, then veer's own entry damaged",
            chained,
        ),
        tunnel(
            "foreign_forward_chain_drops",
            "an nftables chain with policy drop on the forward hook",
            forward::forward_drops,
        )
        .short(),
        tunnel(
            "iptables_forward_policy_is_drop",
            "iptables -P FORWARD DROP, as Docker does",
            forward::iptables_drops,
        ),
        tunnel(
            "legacy_iptables_forward_policy_is_drop",
            "iptables-legacy -P FORWARD DROP; then what the status says to run",
            forward::legacy_drops,
        ),
        tunnel(
            "state_directory_emptied",
            "rm of all in /var/lib/veer, SIGKILL to the agent",
            state_lost,
        ),
        tunnel(
            "new_devices_do_not_forward",
            "net.ipv4.conf.default.forwarding=0, as hardening sets it, then a new pod",
            no_default_forwarding,
        ),
        tunnel(
            "pods_own_default_route_while_the_agent_restarts",
            "a default route by a device of the pod's own, SIGKILL to the agent",
            own_route,
        ),
        tunnel(
            "mac_of_a_pods_device_changed",
            "ip link set address on the host side of a pod's veth",
            mac_changed,
        ),
        tunnel(
            "devices_of_pods_removed",
            "ip link del of every pod's veth, with and without an agent; one renamed",
            devices_removed,
        ),
        tunnel(
            "bridge_of_an_older_network_with_anothers_gateway",
            "cni0 with the first address of another node's block",
            old_bridge,
        ),
        tunnel(
            "firewall_reloaded",
            "nft flush ruleset, as a firewall's reload does",
            flushed,
        ),
        tunnel(
            "gc_of_a_second_runtime",
            "CNI GC that names no pod, as of a runtime that has none",
            collected,
        ),
        tunnel(
            "another_vxlan_device_on_the_tunnels_port",
            "flannel.1 on UDP 8472 in veer_vxlan's place",
            port_taken,
        ),
    ]
}

fn held(what: &str) -> Held {
    Held::new(what, "")
}

/// Whether files are there.
fn await_files(lab: &Lab, files: &[&str]) -> Result<()> {
    let node = lab.node(NODE)?;
    let what = format!("{files:?} are back");
    await_condition(&what, STARTED, || {
        let out = node.exec_any(&[&["ls", "-d"], files].concat());
        let out = out.map_err(|e| e.to_string())?;
        if out.code == 0 {
            Ok(Some(()))
        } else {
            Err(out.stderr)
        }
    })?;
    Ok(())
}

fn files_removed(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let node = lab.node(NODE)?;
    let old = Made::on(lab, NODE, "before-removal")?;
    let sockets = node.exec(&["sh", "-ec", "ls -d /run/veer/*.sock"])?.stdout;
    let sockets: Vec<&str> = sockets.lines().collect();
    unharmed(
        scene,
        "all traffic; all back, told; pods start and end",
        || {
            let bin = ["veer-cni", "portmap", "loopback"].map(|n| format!("/opt/cni/bin/{n}"));
            let bin: Vec<&str> = bin.iter().map(String::as_str).collect();
            node.exec(&[&["rm"], &bin[..]].concat())?;
            await_files(lab, &bin)?;
            told::await_event(lab, "Node", NODE, &["veer-cni"])?;
            for script in ["rm -rf /run/veer/*", "rm -rf /run/veer"] {
                // A directory that is mounted cannot go, but all in it can.
                node.exec_any(&["sh", "-c", script])?;
                await_files(lab, &sockets)?;
            }
            Made::on(lab, NODE, "after-removal")?.deleted()?;
            old.deleted()
        },
        |()| String::new(),
    )
}

fn conflist_first(scene: &Scene) -> Result<Held> {
    const FILE: &str = "/etc/cni/net.d/04-old.conflist";
    const TEXT: &str =
        r#"{"cniVersion": "1.0.0", "name": "old", "plugins": [{"type": "loopback"}]}"#;
    let lab = &scene.lab;
    let put = format!("echo '{TEXT}' >{FILE}");
    let foreign = Foreign::put(lab, NODE, &put, &format!("rm -f {FILE}"))?;
    told::await_told(lab, NODE, READY, "False", &["04-old.conflist"])?;
    told::await_event(lab, "Node", NODE, &["04-old.conflist"])?;
    told::await_taint(lab, NODE, true)?;
    let there = lab.node(NODE)?.exec_any(&["test", "-e", FILE])?.code == 0;
    ensure!(there, "a foreign file was removed, which nobody asked for");
    foreign.undone()?;
    told::await_told(lab, NODE, READY, "True", &[])?;
    told::await_taint(lab, NODE, false)?;
    Made::on(lab, NODE, "after-conflist")?.deleted()?;
    Ok(held(
        "not Ready at once, tainted, the file named; Ready without it",
    ))
}

/// The conflist of the node.
fn conflist(lab: &Lab) -> Result<Value> {
    let text = lab.node(NODE)?.exec(&["cat", CONFLIST])?.stdout;
    serde_json::from_str(&text).with_context(|| format!("{CONFLIST}: {text}"))
}

fn collected(scene: &Scene) -> Result<Held> {
    const CALL: &str = "CNI_COMMAND=GC CNI_PATH=/opt/cni/bin /opt/cni/bin/veer-cni";
    let lab = &scene.lab;
    let list = conflist(lab)?;
    let plugins = list["plugins"].as_array().into_iter().flatten();
    let mut own = plugins.filter(|p| p["type"] == "veer-cni");
    let mut config = own.next().context("no entry of veer's")?.clone();
    config["name"] = list["name"].clone();
    // The first that has the verb.
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = Value::Array(Vec::new());
    let before = maps::endpoints(&lab.node(NODE)?)?;
    unchanged(
        scene,
        "all traffic; every pod of the node as before",
        || {
            let node = lab.node(NODE)?;
            node.exec_with_input(&["sh", "-ec", CALL], config.to_string().as_bytes())?;
            Ok(())
        },
        |()| format!("{} pods", before.len()),
    )
}

fn chained(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let node = lab.node(NODE)?;
    let original = conflist(lab)?;
    let mut changed = original.clone();
    let plugins = changed["plugins"].as_array_mut().context("no plugins")?;
    plugins.push(serde_json::json!({"type": "tuning", "sysctl": {}}));
    let own = plugins.iter().position(|p| p["type"] == "veer-cni");
    let own = own.context("no entry of veer's")?;
    let write = |list: &Value| {
        let script = format!("cat >{CONFLIST}.new && mv {CONFLIST}.new {CONFLIST}");
        node.exec_with_input(&["sh", "-ec", &script], list.to_string().as_bytes())
    };
    write(&changed)?;
    // Damaged too: that it is mended shows that the agent has looked.
    let mut damaged = changed.clone();
    damaged["plugins"][own]["type"] = "veer-cnx".into();
    write(&damaged)?;
    let mended = await_condition("veer's entry alone is mended", STARTED, || {
        let now = conflist(lab).map_err(|e| format!("{e:#}"))?;
        if now == changed {
            Ok(Some(()))
        } else {
            Err(now.to_string())
        }
    });
    write(&original)?;
    mended?;
    await_condition("the file is as it was", STARTED, || {
        let now = conflist(lab).map_err(|e| format!("{e:#}"))?;
        Ok((now == original).then_some(()))
    })?;
    Ok(held("the foreign entry stayed, veer's was mended"))
}

/// Afterwards all is well, and said to be.
fn well_again(scene: &Scene) -> Result<()> {
    told::await_told(&scene.lab, NODE, DEGRADED, "False", &[])?;
    await_works(scene, scene.demo_on(NODE)?)
}

fn state_lost(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let node = lab.node(NODE)?;
    let before = maps::endpoints(&node)?;
    unharmed(
        scene,
        "all traffic; every pod keeps its device and address; no address twice",
        || {
            node.exec(&["sh", "-ec", "find /var/lib/veer -mindepth 1 -delete"])?;
            agents::end(lab, NODE, "KILL")?;
            snapshot::await_agrees(lab, SETTLED)?;
            let after = maps::endpoints(&node)?;
            ensure!(
                before == after,
                "the node's pods were {before:?} and are {after:?}"
            );
            let new = Made::on(lab, NODE, "after-loss")?;
            ensure!(
                before.iter().all(|e| e.address != new.pod.address),
                "{} was given again",
                new.pod.address
            );
            for pod in scene.pods().filter(|p| p.node == NODE) {
                client::reaches(&scene.demo_on(OTHER)?.site, pod.address, 2)?;
            }
            new.deleted()?;
            // What was rebuilt serves as well as what was lost: a second start finds all.
            agents::end(lab, NODE, "KILL")?;
            snapshot::await_agrees(lab, SETTLED).map(|_| ())
        },
        |()| format!("{} pods", before.len()),
    )
}

fn no_default_forwarding(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let key = "net.ipv4.conf.default.forwarding";
    let set = |value: u8| format!("sysctl -q -w {key}={value}");
    let foreign = Foreign::put(lab, NODE, &set(0), &set(1))?;
    let made = Made::on(lab, NODE, "unforwarded")?;
    await_works(scene, &made.pod)?;
    made.deleted()?;
    foreign.undone()?;
    Ok(held("the pod had DNS, services, pods and the world"))
}

fn own_route(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let made = Made::on(lab, NODE, "with-vpn")?;
    let site = &made.pod.site;
    for words in [
        "link add vpn type bridge",
        "address add 192.0.2.2/24 dev vpn",
        "link set vpn up",
        "route replace default via 192.0.2.1 dev vpn",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        site.exec(&[&["ip"], &words[..]].concat())?;
    }
    let routes = || -> Result<String> { Ok(site.exec(&["ip", "-o", "route", "show"])?.stdout) };
    let before = routes()?;
    agents::end(lab, NODE, "KILL")?;
    // A change for all pods, after which the agent has surely been at this one.
    snapshot::await_agrees(lab, SETTLED)?;
    let after = routes()?;
    ensure!(
        after.contains("default via 192.0.2.1"),
        "the pod's own default route is gone:\n{before}then\n{after}"
    );
    made.deleted()?;
    Ok(held("the pod's own route stayed"))
}

fn mac_changed(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let made = Made::on(lab, NODE, "other-mac")?;
    let veth = made.pod.wire()?.host_name;
    let node = lab.node_site(NODE)?;
    let address = [
        "ip",
        "link",
        "set",
        "dev",
        &veth,
        "address",
        "02:00:00:00:00:99",
    ];
    node.exec(&address)?;
    await_works(scene, &made.pod)?;
    await_condition("the pod answers its node and another one", STARTED, || {
        let from = [
            &node,
            &scene.demo_on(OTHER).map_err(|e| format!("{e:#}"))?.site,
        ];
        let all = from.into_iter().try_for_each(|from| asked(from, &made.pod));
        all.map(Some).map_err(|e| format!("{e:#}"))
    })?;
    made.deleted()?;
    Ok(held("the pod is reached, and reaches all"))
}

fn devices_removed(scene: &Scene) -> Result<Held> {
    const REMOVE: &str = "for device in /sys/class/net/veer*; do name=${device##*/}; \
                          [ $name = veer_vxlan ] || ip link del $name; done";
    let lab = &scene.lab;
    let node = lab.node(NODE)?;
    let made = Made::on(lab, NODE, "without-device")?;
    let pods = [scene.demo_on(NODE)?, scene.fixed_on(NODE)?, &made.pod];
    let all_work = || pods.iter().try_for_each(|pod| await_works(scene, pod));
    node.exec(&["sh", "-ec", REMOVE])?;
    all_work()?;
    told::await_event(lab, "Node", NODE, &["the device of pod", "was removed"])?;
    agents::signal(lab, NODE, "STOP")?;
    node.exec(&["sh", "-ec", REMOVE])?;
    agents::end(lab, NODE, "KILL")?;
    all_work()?;
    snapshot::await_agrees(lab, SETTLED)?;

    let veth = made.pod.wire()?.host_name;
    let rename = format!("ip link set {veth} down; ip link set {veth} name lost0");
    node.exec(&["sh", "-ec", &rename])?;
    let words = ["without-device", "renamed or moved"];
    told::await_told(lab, NODE, DEGRADED, "True", &words)?;
    made.deleted()?;
    told::await_told(lab, NODE, DEGRADED, "False", &[])?;
    snapshot::await_agrees(lab, SETTLED)?;
    Ok(held(
        "every pod has its device, address and traffic again; the renamed one is named",
    ))
}

fn old_bridge(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    // Such bridges have one /24 of it.
    let block = lab.pod_cidr(OTHER, Family::V4)?;
    let gateway = veer_e2e_tests::blocks::health(&block)?;
    let undo = "ip link del cni0 2>/dev/null || true";
    unharmed(
        scene,
        "all traffic",
        || {
            let put = format!(
                "ip link add cni0 type bridge; ip address add {gateway}/24 dev cni0; \
                 ip link set cni0 up"
            );
            let foreign = Foreign::put(lab, NODE, &put, undo)?;
            let at = told::repairs(lab, NODE, "routes")?;
            for pod in &scene.demo {
                works(scene, pod)?;
            }
            foreign.undone()?;
            Ok(at)
        },
        |_| String::new(),
    )
}

fn flushed(scene: &Scene) -> Result<Held> {
    scene.lab.node(NODE)?.exec(&["nft", "flush", "ruleset"])?;
    await_host_ports(scene)?;
    // In nftables mode kube-proxy sees that a family's table is gone when it is to change
    // it: the service has an address of each.
    let kubectl = scene.lab.kubectl();
    let service = ["service", "after-flush"];
    let both = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service[1]},
        "spec": {"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]},
    });
    kubectl.apply(&both.to_string())?;
    let mut pods = scene.demo.iter();
    let works = pods.try_for_each(|pod| await_works(scene, pod));
    kubectl.run(&["delete", service[0], service[1]])?;
    works?;
    Ok(held("hostPorts, services and the world are back"))
}

/// Until the hostPorts of a running pod lead to it: from the world, from another
/// node's pod and by the node's loopback.
fn await_host_ports(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    let pod = scene.fixed_on(NODE)?;
    let to = SocketAddr::from((scene.address(NODE)?, HOST_HTTP));
    let world = lab.world()?;
    await_condition("the hostPort of a running pod is back", STARTED, || {
        let answer = client::http_get(&world, to, "/hostname");
        let answer = answer.map_err(|e| format!("{e:#}"))?;
        Ok((answer.trim() == pod.name).then_some(()))
    })?;
    let right = |name: String| {
        ensure!(name.trim() == pod.name, "{name} answered for {}", pod.name);
        Ok(())
    };
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, HOST_HTTP));
    right(client::http_get(
        &lab.node_site(NODE)?,
        loopback,
        "/hostname",
    )?)?;
    right(client::http_get(
        &scene.demo_on(OTHER)?.site,
        to,
        "/hostname",
    )?)?;
    let udp = SocketAddr::new(to.ip(), HOST_UDP);
    right(client::udp_ask(&world, udp, "hostname")?)
}

fn port_taken(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let own = lab.cluster.address(NODE)?;
    let put = format!(
        "for i in $(seq 50); do ip link del veer_vxlan 2>/dev/null || true; \
         ip link show flannel.1 >/dev/null 2>&1 || \
         ip link add flannel.1 type vxlan id 1 dstport 8472 local {own} nolearning; \
         ip link set flannel.1 up && exit 0; done; exit 1"
    );
    let undo = "ip link del flannel.1 2>/dev/null || true";
    let foreign = Foreign::put(lab, NODE, &put, undo)?;
    let told = told::await_told(lab, NODE, DEGRADED, "True", &["flannel.1"]);
    foreign.undone()?;
    told?;
    told::await_told(lab, NODE, DEGRADED, "False", &[])?;
    await_works(scene, scene.demo_on(NODE)?)?;
    let site = lab.node_site(NODE)?;
    ensure!(
        pods::links(&site)?.iter().any(|l| l.name == "veer_vxlan"),
        "the tunnel's device is not back"
    );
    Ok(held("the other device named; all well without it"))
}
