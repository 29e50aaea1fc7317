//! A cluster from up to down, its parts broken and brought back on the way,
//! and the sweeping of one whose making was killed. Needs root and what
//! `make setup` installs; about a minute.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, TcpListener},
    process::{Command, Stdio},
    time::Duration,
};

use veer_e2e_cluster::{
    Cluster, Config, LightPod, Machine, OUTSIDE, Output, Role, Underlay, await_condition,
};

/// Everything on this machine that carries a cluster's name.
fn traces(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let group = format!("veer-e2e-{name}");
    let files = format!("/var/lib/veer-e2e/{name}");
    for process in fs::read_dir("/proc").expect("proc").flatten() {
        let read = |file| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        // A zombie holds nothing; the machine's init reaps it in its time.
        if read("status").contains("State:\tZ") {
            continue;
        }
        for (file, what) in [("cgroup", &group), ("mountinfo", &files)] {
            if read(file).contains(what.as_str()) {
                let path = process.path();
                found.push(format!(
                    "{}/{file} ({})",
                    path.display(),
                    read("comm").trim()
                ));
            }
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        let dir = hierarchy.path().join(&group);
        if dir.exists() || hierarchy.file_name().to_string_lossy() == group {
            found.push(dir.display().to_string());
        }
    }
    if fs::exists(&files).expect("a path") {
        found.push(files);
    }
    found
}

/// The harness's devices in its own network namespace that were not there.
fn new_devices(before: &str) -> Vec<String> {
    let now = devices();
    now.lines()
        .filter(|line| !before.contains(line))
        .map(str::to_owned)
        .collect()
}

fn devices() -> String {
    let out = Command::new("ls")
        .arg("/sys/class/net")
        .output()
        .expect("ls");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn ping(cluster: &Cluster, from: &str, to: Ipv4Addr) -> Output {
    let node = cluster.node(from).expect("a node");
    node.exec_any(&["ping", "-c1", "-W2", "-n", &to.to_string()])
        .expect("ping runs")
}

#[test]
fn a_cluster_behind_a_router_is_changed_while_it_runs_and_leaves_nothing() {
    let name = "lifecycle";
    // What one that was killed has left.
    Cluster::down_by_name(name).expect("swept");
    let before = devices();
    let config = Config {
        workers: 1,
        underlay: Underlay::Router,
        mtu: 1400,
        ..Config::new(name)
    };
    let mut cluster = Cluster::up(Config {
        second_uplink: true,
        ..config
    })
    .expect("up");
    assert_eq!(
        new_devices(&before).len(),
        1,
        "one device for the harness's own link"
    );
    nodes_reach_each_other_and_the_world_only(&cluster);
    nodes_cannot_open_connections_to_this_machine(&cluster);
    nodes_are_not_ready_and_act_for_themselves_only(&cluster);
    a_node_comes_loses_power_moves_and_goes(&mut cluster);
    light_pods_are_wired_and_unwired(&mut cluster);
    the_api_server_goes_and_comes(&cluster);
    cluster.down().expect("down");
    assert_eq!(traces(name), Vec::<String>::new());
    assert_eq!(new_devices(&before), Vec::<String>::new());
}

fn nodes_reach_each_other_and_the_world_only(cluster: &Cluster) {
    let control: IpAddr = cluster.address("control").expect("an address").into();
    let worker = cluster.address("worker1").expect("an address");
    let eth0 = cluster
        .capture("worker1", "eth0", "icmp")
        .expect("a capture");
    let machine = cluster.node("worker1").expect("worker1");
    let counters = machine
        .count_netfilter(control, worker.into())
        .expect("counters");

    let out = ping(cluster, "control", worker);
    assert!(
        out.stdout.contains("ttl=63"),
        "one router between: {}",
        out.stdout
    );

    let hooks = counters.read().expect("counters");
    assert!(
        hooks["prerouting"] >= 1 && hooks["input"] >= 1 && hooks["output"] >= 1,
        "{hooks:?}"
    );
    assert_eq!(hooks["forward"], 0, "{hooks:?}");
    let packets = eth0.finish().expect("packets");
    let between = |from, to| packets.iter().find(|c| c.packet.is_between(from, to));
    let request = between(control, worker.into()).expect("a request");
    let reply = between(worker.into(), control).expect("a reply");
    assert!(request.packet.is_echo_request() && reply.packet.is_echo_reply());
    assert_eq!(
        request.packet.source_mac, reply.packet.destination_mac,
        "the router's"
    );
    assert_eq!(request.packet.ip.expect("an IP header").ttl, 63);

    assert_eq!(
        ping(cluster, "control", OUTSIDE).code,
        0,
        "the world answers"
    );
    let elsewhere = ping(cluster, "control", Ipv4Addr::new(192, 0, 2, 1));
    assert!(
        elsewhere.stdout.contains("Unreachable"),
        "no way out: {}",
        elsewhere.stdout
    );
}

fn nodes_cannot_open_connections_to_this_machine(cluster: &Cluster) {
    let ours = Ipv4Addr::new(172, 29, cluster.state().index, 1);
    let server = TcpListener::bind((ours, 0)).expect("the harness's end of its link");
    let port = server.local_addr().expect("bound").port().to_string();
    let connect = |machine: &Machine| {
        let words = ["nc", "-z", "-w", "2", &ours.to_string(), &port];
        machine.exec_any(&words).expect("nc runs").code
    };
    assert_eq!(
        connect(&cluster.world()),
        0,
        "the address and port are right"
    );
    assert_ne!(connect(&cluster.node("worker1").expect("worker1")), 0);
}

fn nodes_are_not_ready_and_act_for_themselves_only(cluster: &Cluster) {
    let nodes = cluster.kubectl().json(&["get", "nodes"]).expect("nodes");
    for node in nodes["items"].as_array().expect("items") {
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = conditions
            .iter()
            .find(|c| c["type"] == "Ready")
            .expect("a Ready condition");
        assert_eq!(ready["status"], "False", "{ready}");
        assert!(ready["message"].to_string().contains("network"), "{ready}");
    }
    let label = |node: &str, label: &str| {
        let conf = "--kubeconfig=/etc/kubernetes/kubelet.conf";
        let worker = cluster.node("worker1").expect("worker1");
        worker
            .exec_any(&["kubectl", conf, "label", "node", node, label])
            .expect("kubectl runs")
    };
    assert_eq!(label("worker1", "its=own").code, 0);
    let other = label("control", "its=own");
    assert!(other.stderr.contains("orbidden"), "{}", other.stderr);
    let protected = label("worker1", "node-restriction.kubernetes.io/a=b");
    assert!(
        protected.stderr.contains("is not allowed to modify labels"),
        "{}",
        protected.stderr
    );
}

fn a_node_comes_loses_power_moves_and_goes(cluster: &mut Cluster) {
    cluster
        .add_node("extra", Role::Worker)
        .expect("a node added");
    let extra = cluster.node("extra").expect("extra");
    let info = |cluster: &Cluster, field: &str| {
        let node = cluster.kubectl().json(&["get", "node", "extra"]);
        node.map_or_else(
            |e| e.to_string(),
            |n| n.pointer(field).map_or(String::new(), ToString::to_string),
        )
    };
    let boot_id = info(cluster, "/status/nodeInfo/bootID");
    let mark = "echo kept >/var/lib/kept; ip link add lost type bridge";
    extra.exec(&["sh", "-c", mark]).expect("sh");
    cluster.reboot_node("extra").expect("a reboot");
    let kept = extra
        .exec(&["cat", "/var/lib/kept"])
        .expect("the disk is kept");
    assert_eq!(kept.stdout, "kept\n");
    assert_ne!(
        extra
            .exec_any(&["ip", "link", "show", "lost"])
            .expect("ip")
            .code,
        0
    );
    let now = info(cluster, "/status/nodeInfo/bootID");
    assert_ne!(now, boot_id, "the API knows of the start");

    let address = cluster.address("extra").expect("an address");
    cluster.pause_node("extra").expect("paused");
    let health = ["curl", "-s", "-m", "2", "http://127.0.0.1:10248/healthz"];
    assert_eq!(
        extra.exec_any(&health).expect("curl runs").stdout,
        "",
        "the kubelet stands still"
    );
    cluster.resume_node("extra").expect("resumed");
    await_condition("the kubelet goes on", Duration::from_secs(20), || {
        let out = extra.exec_any(&health).map_err(|e| e.to_string())?;
        if out.stdout == "ok" {
            Ok(Some(()))
        } else {
            Err(out.stdout)
        }
    })
    .expect("it answers");
    assert_eq!(ping(cluster, "control", address).code, 0);

    let moved = cluster.readdress_node("extra").expect("another address");
    assert_ne!(moved, address);
    await_condition(
        "the address shows in the API",
        Duration::from_mins(1),
        || {
            let seen = info(cluster, "/status/addresses");
            if seen.contains(&moved.to_string()) {
                Ok(Some(()))
            } else {
                Err(seen)
            }
        },
    )
    .expect("the API server learns the address");
    assert_eq!(ping(cluster, "control", moved).code, 0);
    cluster.remove_node("extra").expect("removed");
    assert!(!cluster.node_names().contains(&"extra".to_owned()));
    let gone = cluster
        .kubectl()
        .any(&["get", "node", "extra"])
        .expect("kubectl runs");
    assert!(gone.stderr.contains("not found"), "{}", gone.stderr);
}

/// With the standard bridge plugin: what is tested is the caller.
fn light_pods_are_wired_and_unwired(cluster: &mut Cluster) {
    cluster
        .add_node("light", Role::Light)
        .expect("a light node");
    let light = cluster.node("light").expect("light");
    let list = r#"{"cniVersion": "1.0.0", "name": "test", "plugins": [
        {"type": "bridge", "bridge": "br", "isGateway": true, "ipam": {"type": "host-local",
         "ranges": [[{"subnet": "10.244.99.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
    let file = "cat >/etc/cni/net.d/10-test.conflist";
    light
        .exec_with_input(&["sh", "-c", file], list.as_bytes())
        .expect("a configuration");
    let pods: Vec<LightPod> = (0..5)
        .map(|n| LightPod {
            namespace: "default".to_owned(),
            name: format!("light{n}"),
            uid: format!("00000000-0000-0000-0000-00000000000{n}"),
            container: format!("{n:064}"),
        })
        .collect();
    let addresses: BTreeSet<String> = pods
        .iter()
        .map(|pod| light.cni_add(pod).expect("ADD")["ips"][0]["address"].to_string())
        .collect();
    assert_eq!(
        addresses.len(),
        pods.len(),
        "an address each: {addresses:?}"
    );
    let ping = ["ping", "-c1", "-W2", "-n", "10.244.99.1"];
    light
        .exec_in_light_pod(&pods[4], &ping)
        .expect("the gateway answers");
    for pod in &pods {
        light.cni_del(pod).expect("DEL");
        light.cni_del(pod).expect("DEL again");
    }
    let left = light
        .exec(&["sh", "-c", "ls /run/netns; ip -br link show type veth"])
        .expect("sh");
    assert!(!left.stdout.contains("light"), "{}", left.stdout);
    assert_eq!(
        left.stdout
            .lines()
            .filter(|l| l.starts_with("veth"))
            .count(),
        0,
        "{}",
        left.stdout
    );
    cluster.remove_node("light").expect("removed");
}

fn the_api_server_goes_and_comes(cluster: &Cluster) {
    cluster
        .stop_process("control", "kube-apiserver")
        .expect("stopped");
    assert_ne!(
        cluster
            .kubectl()
            .any(&["get", "nodes"])
            .expect("kubectl runs")
            .code,
        0
    );
    cluster
        .start_process("control", "kube-apiserver")
        .expect("started");
    cluster
        .kubectl()
        .run(&["get", "nodes"])
        .expect("the API server is back");
}

#[test]
fn a_cluster_whose_making_was_killed_is_swept() {
    let name = "halfway";
    let mut up = Command::new(env!("CARGO_BIN_EXE_veer-cluster"))
        .args(["up", name, "--workers", "1"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("veer-cluster");
    let mut lines = BufReader::new(up.stderr.take().expect("a pipe")).lines();
    let reached = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|l| l.contains("underlay and world"));
    up.kill().expect("killed");
    up.wait().expect("ended");
    assert!(reached, "it ended before the underlay was made");
    assert_ne!(
        traces(name),
        Vec::<String>::new(),
        "nothing was there to be swept"
    );
    Cluster::down_by_name(name).expect("down");
    assert_eq!(traces(name), Vec::<String>::new());
    Cluster::down_by_name(name).expect("down of nothing is fine");
}
