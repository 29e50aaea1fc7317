//! Cases that people who run pod networks reported, those that change nothing for
//! others on the cluster. The rest are faults.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_e2e_cluster::{Family, await_condition};
use veer_e2e_tests::{
    blocks, client, light, told,
    workloads::{HOST_HTTP, IMAGE, STARTED},
};

use crate::scene::{DEMO, Scene, Test};

/// All tests.
pub(crate) const TESTS: [(&str, Test); 5] = [
    ("ten_jobs_of_one_kind_share_one_identity", Test::Once(jobs)),
    (
        "host_port_is_reached_by_the_nodes_loopback_address",
        Test::Only(Family::V4, loopback),
    ),
    (
        "namespace_path_of_another_runtime_is_wired_or_refused_in_words",
        Test::Once(namespace_path),
    ),
    (
        "multicast_from_a_pod_is_named_among_the_drops",
        Test::Each(multicast),
    ),
    (
        "bandwidth_annotation_that_nothing_heeds_is_told_of_the_pod",
        Test::Once(bandwidth),
    ),
];

/// The identities of a namespace's label sets.
fn identities(scene: &Scene, namespace: &str) -> Result<Vec<Value>> {
    let list = scene.lab.kubectl().json(&["get", "securityidentities"])?;
    let items = list["items"].as_array().context("a list without items")?;
    let own = items
        .iter()
        .filter(|i| i["spec"]["labels"]["io.kubernetes.pod.namespace"] == namespace);
    Ok(own.map(|i| i["spec"]["labels"].clone()).collect())
}

fn jobs(scene: &Scene) -> Result<()> {
    const NAMESPACE: &str = "e2e-jobs";
    const COUNT: usize = 10;
    let kubectl = scene.lab.kubectl();
    light::namespace(&scene.lab, NAMESPACE)?;
    // Pods that wait have an identity too, and cost nothing.
    let job = |number: usize| {
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": format!("job-{number}"), "namespace": NAMESPACE},
            "spec": {"template": {"metadata": {"labels": {"app": "report"}}, "spec": {
                "restartPolicy": "Never", "schedulingGates": [{"name": "veer.dev/e2e"}],
                "containers": [{"name": "none", "image": "none", "imagePullPolicy": "Never"}]}}},
        })
    };
    let jobs: Vec<Value> = (0..COUNT).map(job).collect();
    // Another one, given out after those of the jobs: all are there when it is.
    let last = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "last", "namespace": NAMESPACE, "labels": {"app": "last"}},
        "spec": {"schedulingGates": [{"name": "veer.dev/e2e"}],
            "containers": [{"name": "none", "image": "none", "imagePullPolicy": "Never"}]},
    });
    let outcome = (|| {
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": jobs}).to_string())?;
        await_condition("all jobs have their pods", STARTED, || {
            let pods = kubectl.json(&["-n", NAMESPACE, "get", "pods"]);
            let pods = pods.map_err(|e| e.to_string())?;
            let count = pods["items"].as_array().map_or(0, Vec::len);
            if count >= COUNT {
                Ok(Some(()))
            } else {
                Err(format!("{count} pods"))
            }
        })?;
        kubectl.apply(&last.to_string())?;
        let found = await_condition("the label sets have numbers", STARTED, || {
            let all = identities(scene, NAMESPACE).map_err(|e| format!("{e:#}"))?;
            let of = |app: &str| all.iter().filter(|l| l["app"] == app).count();
            if of("last") > 0 && of("report") > 0 {
                Ok(Some(all))
            } else {
                Err(format!("{all:?}"))
            }
        })?;
        ensure!(found.len() == 2, "{COUNT} jobs and a pod have {found:#?}");
        let text = Value::from(found).to_string();
        ensure!(!text.contains("job-name"), "a job's name counts: {text}");
        Ok(())
    })();
    kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    outcome
}

fn loopback(scene: &Scene) -> Result<()> {
    for pod in &scene.fixed {
        let node = scene.lab.node_site(&pod.node)?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, HOST_HTTP));
        let name = client::http_get(&node, to, "/hostname")?;
        ensure!(name.trim() == pod.name, "{name} answered for {}", pod.name);
    }
    Ok(())
}

/// As cri-dockerd calls it: with the path of a process's namespace.
fn namespace_path(scene: &Scene) -> Result<()> {
    let node = scene.lab.node("worker1")?;
    let pod = scene.demo_on("worker1")?;
    let script = format!(
        r#"unshare -n sleep 100 & P=$!; trap "kill $P" EXIT
        until [ "$(readlink /proc/$P/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
        export CNI_CONTAINERID=e2e-by-process CNI_NETNS=/proc/$P/ns/net CNI_IFNAME=eth0
        export CNI_PATH=/opt/cni/bin
        export CNI_ARGS="K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID=11111111-1111-1111-1111-111111111111;K8S_POD_INFRA_CONTAINER_ID=e2e-by-process"
        conf='{{"cniVersion":"1.0.0","name":"veer","type":"veer-cni"}}'
        out=$(echo "$conf" | CNI_COMMAND=ADD /opt/cni/bin/veer-cni); status=$?
        [ $status != 0 ] || nsenter --net=$CNI_NETNS ip -o address show dev eth0
        echo "$conf" | CNI_COMMAND=DEL /opt/cni/bin/veer-cni >/dev/null
        echo "$out"; exit $status"#,
        pod.namespace, pod.name
    );
    let out = node.exec_any(&["sh", "-c", &script])?;
    let text = out.stdout + &out.stderr;
    let families = scene.lab.cluster.families();
    let has = |family: &Family| {
        // As `ip -o address` prints it: the address and its length.
        let mut words = text.split([' ', '/']).filter_map(|w| w.parse().ok());
        words.any(|address| blocks::within(family.pod_cidr(), address).is_ok())
    };
    let wired = out.code == 0 && families.all().iter().all(has);
    let refused = out.code != 0 && text.contains("/proc/") && text.contains("/run/netns");
    ensure!(wired || refused, "status {}: {text}", out.code);
    Ok(())
}

fn multicast(scene: &Scene) -> Result<()> {
    let group: IpAddr = match scene.family {
        Family::V4 => Ipv4Addr::new(224, 0, 0, 251).into(),
        Family::V6 => Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0xfb).into(),
    };
    let pod = scene.demo_on("worker1")?;
    pod.site
        .within(|| Ok(client::udp_socket(group)?.send_to(b"e2e", (group, 5_353))?))?;
    await_condition("the drop is listed", STARTED, || {
        let rows = scene.lab.veer("worker1", &["drops", "list"]);
        let rows = rows.map_err(|e| format!("{e:#}"))?.stdout;
        if rows.contains(&group.to_string()) {
            Ok(Some(()))
        } else {
            Err(rows)
        }
    })?;
    Ok(())
}

fn bandwidth(scene: &Scene) -> Result<()> {
    const NAME: &str = "limited";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME, "namespace": DEMO,
            "annotations": {"kubernetes.io/egress-bandwidth": "10M"}},
        "spec": {"nodeName": "worker1", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": IMAGE, "imagePullPolicy": "Never"}]},
    });
    scene.lab.kubectl().apply(&pod.to_string())?;
    let told = told::await_event(&scene.lab, "Pod", NAME, &["bandwidth"]);
    scene.lab.kubectl().delete(&pod.to_string())?;
    told
}
