//! Connections through one Service among so many others, translated by the host's stack
//! (kube-proxy) and by veer, and directly to the backend, in interleaved rounds.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use veer_e2e_cluster::{Family, Machine, Progress, ProxyMode, await_condition};
use veer_e2e_tests::{
    lab::Lab,
    maps,
    pods::{self, Pod},
    processes::{self, REPLACED, Signal},
    site::Site,
    translator::{self, MAPS, Translator, Translators},
    workloads,
};

use crate::{
    figures::Figures,
    measure::{P50, P99},
    report::{By, service},
    traffic::{Ports, Servers, Target, connections, round_trips},
    wiring,
};

/// Backends: the path to each from the client, and its node.
pub(crate) const PATHS: [(&str, &str); 2] = [("same node", CLIENT_NODE), ("other node", "worker2")];
/// Where the client is.
const CLIENT_NODE: &str = "worker1";
/// The one whose agent is killed, as in [`wiring::restart`].
const KILLED_NODE: &str = "worker2";
const NAMESPACE: &str = "veer-bench-services";
const CLIENT: &str = "client";
/// How long a great many Services may take on their way to all nodes.
const DEADLINE: Duration = Duration::from_mins(20);
/// How often a long wait says how far it is.
const TELL: Duration = Duration::from_secs(10);

/// The port of Services that nobody talks to.
const IDLE_PORT: u16 = 7070;

/// The ports of the Services that lead to a server.
fn served_ports() -> [u16; 4] {
    let ([a, b], [c, d]) = (By::KubeProxy.ports(), By::Veer.ports());
    [a, b, c, d]
}

/// How many frontends there are with so many Services that nobody talks to.
fn frontends(size: usize) -> usize {
    size + PATHS.len() * served_ports().len()
}

/// What is to be measured.
pub(crate) struct Plan {
    /// Numbers of Services in ascending order.
    pub(crate) sizes: Vec<usize>,
    /// Interleaved rounds at each.
    pub(crate) rounds: usize,
    /// Of each measurement.
    pub(crate) seconds: u32,
    /// The cluster is somebody's, who is to have it back as it was.
    pub(crate) is_left_up: bool,
}

/// All sizes.
pub(crate) fn measure(lab: &Lab, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let primary = lab.primary();
    ensure!(primary == Family::V4, "Services are {primary}, not IPv4");
    if !plan.is_left_up {
        return at_all_sizes(lab, plan, figures);
    }
    let translators = Translators::hold(lab)?;
    let measured = at_all_sizes(lab, plan, figures);
    // First, since the wait for the field looks at every Service that is there.
    let deleted = delete_all(lab);
    measured?;
    deleted?;
    translators.restored()
}

fn delete_all(lab: &Lab) -> Result<()> {
    // kubectl waits until it is gone.
    let words = ["delete", "namespace", NAMESPACE, "--ignore-not-found"];
    lab.kubectl().run(&words)?;
    Ok(())
}

fn at_all_sizes(lab: &Lab, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let bench = Bench::start(lab)?;
    let mut subjects = bench.subjects()?;
    bench.set(Translator::Pods, 0)?;
    let mut there = 0;
    for size in plan.sizes.iter().copied() {
        bench.grow(there..size, figures)?;
        there = size;
        bench.agents(size, figures)?;
        for round in 1..=plan.rounds {
            for (translator, all_by) in [
                (Translator::KubeProxy, &[By::Direct, By::KubeProxy][..]),
                (Translator::Pods, &[By::Veer]),
            ] {
                bench.set(translator, size)?;
                for subject in subjects.iter_mut().filter(|s| all_by.contains(&s.by)) {
                    bench.measure(subject, (size, plan.seconds), figures)?;
                }
            }
            let done = format!("{size} Services, round {round} of {}", plan.rounds);
            bench.progress.done(&done);
        }
    }
    Ok(())
}

/// A way to a backend.
struct Subject {
    path: &'static str,
    by: By,
    target: Target,
}

/// Pods, servers in them, and their Services.
struct Bench<'a> {
    lab: &'a Lab,
    progress: Progress,
    client: Site,
    /// In the order of [`PATHS`].
    backends: Vec<Pod>,
    _servers: Servers,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let progress = Progress::start();
        // An earlier run may have been killed.
        delete_all(lab)?;
        lab.kubectl().apply(&scene())?;
        let selector = format!("bench={NAMESPACE}");
        let count = PATHS.len() + 1;
        pods::await_ready(lab, NAMESPACE, &selector, count, workloads::STARTED)?;
        let find = |name| Pod::find(lab, NAMESPACE, name);
        let client = find(CLIENT)?.site;
        let backends = PATHS.iter().map(|(_, node)| find(node));
        let backends = backends.collect::<Result<Vec<Pod>>>()?;
        let servers = Servers::start(&backends)?;
        progress.done("pods, their Services and servers are there");
        Ok(Self {
            lab,
            progress,
            client,
            backends,
            _servers: servers,
        })
    }

    fn subjects(&self) -> Result<Vec<Subject>> {
        let mut all = Vec::new();
        for ((answer, backend), (path, _)) in (0..).zip(&self.backends).zip(PATHS) {
            let words = ["-n", NAMESPACE, "get", "service", &backend.name];
            let service = self.lab.kubectl().json(&words)?;
            let frontend = service["spec"]["clusterIP"].as_str();
            let frontend: IpAddr = frontend.context("a Service without address")?.parse()?;
            for by in By::ALL {
                let address = match by {
                    By::Direct => backend.address,
                    By::KubeProxy | By::Veer => frontend,
                };
                let [brief, lasting] = by.ports().map(|port| SocketAddr::from((address, port)));
                let target = Target {
                    brief,
                    lasting,
                    answer,
                    ports: Ports::new(),
                };
                all.push(Subject { path, by, target });
            }
        }
        Ok(all)
    }

    /// Has somebody translate so many Services, and waits until the maps of all nodes are
    /// so. [`Translators::set`] would list all Services for that, and wait half a minute.
    fn set(&self, by: Translator, size: usize) -> Result<()> {
        let patch = json!({"spec": {"services": by.name()}});
        self.lab.patch_network(&patch.to_string())?;
        match by {
            Translator::Pods | Translator::Full => {
                self.on_all("Services in veer's maps", frontends(size), in_maps)
            }
            Translator::KubeProxy => self.on_all("empty maps of veer's", MAPS.len(), empty_maps),
        }
    }

    /// Waits until a count has been reached on every node.
    fn on_all(
        &self,
        what: &str,
        wanted: usize,
        count: impl Fn(&Machine) -> Result<usize>,
    ) -> Result<()> {
        for name in self.lab.cluster.node_names() {
            let node = self.lab.node(&name)?;
            self.until(&format!("{what} of {name}"), wanted, || count(&node))?;
        }
        Ok(())
    }

    /// Waits until a count has been reached, and says now and then how far it is.
    fn until(&self, what: &str, wanted: usize, count: impl Fn() -> Result<usize>) -> Result<()> {
        let mut told = Instant::now();
        await_condition(&format!("{wanted} {what}"), DEADLINE, || {
            let seen = count().map_err(|e| format!("{e:#}"))?;
            if seen >= wanted {
                return Ok(Some(()));
            }
            let sight = format!("{seen} of {wanted} {what}");
            if told.elapsed() >= TELL {
                self.progress.done(&sight);
                told = Instant::now();
            }
            Err(sight)
        })?;
        Ok(())
    }

    /// Creates more Services, and waits until everybody has them.
    fn grow(&self, new: Range<usize>, figures: &mut Figures) -> Result<()> {
        let (name, wanted) = (service::of(new.end), frontends(new.end));
        create(self.lab, &new, &self.progress)?;
        let created = Instant::now();
        self.on_all("Services in veer's maps", wanted, in_maps)?;
        figures.add(&name, service::TAKEN_IN, created.elapsed().as_secs_f64());
        self.progress.done("veer of all nodes has them");
        let mode = self.lab.cluster.state().config.proxy_mode;
        let rules = "Services in kube-proxy's rules";
        self.on_all(rules, wanted, |node| in_rules(node, mode))?;
        self.progress.done("kube-proxy of all nodes has them, too");
        Ok(())
    }

    /// Memory of agents, and how long one takes to be there again.
    fn agents(&self, size: usize, figures: &mut Figures) -> Result<()> {
        let name = service::of(size);
        let mut seen = Figures::default();
        // Before an agent is asked for all of them: it would keep memory of the answer.
        wiring::memory(self.lab, &mut seen)?;
        wiring::restart(self.lab, &mut seen)?;
        let median = |subject, quantity| {
            let value = seen.median(subject, quantity);
            value.with_context(|| format!("{subject}: no {quantity}"))
        };
        let memory = median("veer-agent", "resident, MiB")?;
        figures.add(&name, service::MEMORY, memory);
        let ready = median(wiring::fact::RESTART, wiring::fact::READY)?;
        figures.add(&name, service::READY, ready);
        let node = self.lab.node(KILLED_NODE)?;
        let old = wiring::agent_of(&node);
        processes::signal_agents(self.lab, &[KILLED_NODE], Signal::Kill)?;
        await_condition("another agent has started", REPLACED, || {
            let new = wiring::agent_of(&node);
            Ok((new.is_some() && new != old).then_some(()))
        })?;
        let started = Instant::now();
        self.until("Services listed by the new agent", frontends(size), || {
            let words = ["service", "list", "--namespace", NAMESPACE];
            listed(&self.lab.veer_json(KILLED_NODE, &words)?)
        })?;
        figures.add(&name, service::LISTED, started.elapsed().as_secs_f64());
        self.progress.done("memory and restarts of agents");
        Ok(())
    }

    /// One measurement of each kind.
    fn measure(
        &self,
        Subject { path, by, target }: &mut Subject,
        (size, seconds): (usize, u32),
        figures: &mut Figures,
    ) -> Result<()> {
        let name = service::subject(size, path, *by);
        let time = Duration::from_secs(seconds.into());
        let seen = self.client.within(|| connections(target, time));
        let (each, all) = seen.with_context(|| format!("{name}, to {}", target.brief))?;
        let in_a_second = f64::from(u32::try_from(each.len())?) / all.as_secs_f64();
        figures.add(&name, service::CONNECTIONS, in_a_second);
        figures.add_all(&name, service::CONNECTION, each);
        let seen = self.client.within(|| round_trips(target, time));
        let each = seen.with_context(|| format!("{name}, to {}", target.lasting))?;
        figures.add_all(&name, [P50, P99], each);
        Ok(())
    }
}

/// How many of [`MAPS`] a node has empty.
fn empty_maps(node: &Machine) -> Result<usize> {
    let mut empty = 0;
    for map in MAPS {
        empty += usize::from(maps::dump(node, map)?.is_empty());
    }
    Ok(empty)
}

/// Frontends of ours that lead to a backend in a node's map.
fn in_maps(node: &Machine) -> Result<usize> {
    let rows = translator::frontends(node)?;
    let is_ours = |(key, backends): &(&Vec<u8>, &u32)| {
        // Behind the address.
        let port = key.get(16..18);
        all_ports().any(|p| port == Some(&p.to_be_bytes()[..])) && **backends != 0
    };
    Ok(rows.iter().filter(is_ours).count())
}

/// Frontends of ours that lead to a backend in kube-proxy's rules on a node.
fn in_rules(node: &Machine, mode: ProxyMode) -> Result<usize> {
    let (words, rule): (&[&str], fn(u16) -> String) = match mode {
        ProxyMode::Nftables => (
            &["nft", "list", "map", "ip", "kube-proxy", "service-ips"],
            |port| format!(" . tcp . {port} "),
        ),
        ProxyMode::Iptables => (
            &["iptables", "-w", "-t", "nat", "-S", "KUBE-SERVICES"],
            |port| format!("--dport {port} "),
        ),
        ProxyMode::None => bail!("the cluster has no kube-proxy to compare with"),
    };
    let text = node.exec(words)?.stdout;
    let of_port = all_ports().map(|port| text.matches(&rule(port)).count());
    Ok(of_port.sum())
}

fn all_ports() -> impl Iterator<Item = u16> {
    [IDLE_PORT].into_iter().chain(served_ports())
}

/// Rows of `veer service list` that have a backend.
fn listed(rows: &Value) -> Result<usize> {
    let rows = rows.as_array().context("veer printed no list")?;
    let has_backend = |row: &&Value| {
        let mut backends = row["backends"].as_array().into_iter().flatten();
        backends.any(|backend| backend["chosen"] == true)
    };
    Ok(rows.iter().filter(has_backend).count())
}

/// The client, the servers' pods, and a Service of each of these.
fn scene() -> String {
    let pod = |name: &str, node: &str| {
        let labels = format!("{{bench: {NAMESPACE}, app: {name}}}");
        workloads::single(NAMESPACE, name, node, &labels)
    };
    let ports = served_ports().map(|port| {
        json!({"name": format!("tcp-{port}"), "port": port, "targetPort": port, "protocol": "TCP"})
    });
    let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}");
    let mut all = vec![namespace, pod(CLIENT, CLIENT_NODE)];
    for (_, node) in PATHS {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": node, "namespace": NAMESPACE},
            "spec": {"selector": {"app": node}, "ports": ports},
        });
        all.extend([pod(node, node), service.to_string()]);
    }
    all.join("\n---\n")
}

/// Services in one file: some seconds of work.
const IN_FILE: usize = 500;
/// kubectls at once: each waits for an answer before it asks again.
const PROCESSES: usize = 8;

/// Creates Services that nobody talks to.
fn create(lab: &Lab, new: &Range<usize>, progress: &Progress) -> Result<()> {
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let (next, created) = (AtomicUsize::new(new.start), AtomicUsize::new(0));
    let work = || -> Result<()> {
        loop {
            let first = next.fetch_add(IN_FILE, Relaxed);
            let some = first..new.end.min(first + IN_FILE);
            if some.is_empty() {
                return Ok(());
            }
            let file = folder.path().join(format!("{first}.json"));
            fs::write(&file, idle(some.clone()).to_string())
                .with_context(|| format!("write {}", file.display()))?;
            let words = ["create", "-o", "name", "-f", &*file.to_string_lossy()];
            let made = lab.kubectl().run(&words);
            if made.is_err() {
                // The others need not go on.
                next.store(new.end, Relaxed);
            }
            made?;
            let created = created.fetch_add(some.len(), Relaxed) + some.len();
            progress.done(&format!("{created} of {} Services created", new.len()));
        }
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(work)).collect();
        all.into_iter()
            .try_for_each(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// Endpoints of a Service that nobody talks to.
const ENDPOINTS: usize = 4;

/// Services that nobody talks to, with the given numbers, and their endpoints.
fn idle(numbers: Range<usize>) -> Value {
    let items: Vec<Value> = numbers
        .flat_map(|number| {
            let name = format!("idle-{number}");
            let endpoints: Vec<Value> = (number * ENDPOINTS..(number + 1) * ENDPOINTS)
                .map(|nth| json!({"addresses": [nobody(nth)], "conditions": {"ready": true}}))
                .collect();
            let service = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"ports": [{
                    "name": "tcp", "port": IDLE_PORT, "targetPort": IDLE_PORT, "protocol": "TCP",
                }]},
            });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "veer-bench",
                }},
                "addressType": "IPv4",
                "ports": [{"name": "tcp", "port": IDLE_PORT, "protocol": "TCP"}],
                "endpoints": endpoints,
            });
            [service, slice]
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// An address that no pod has: of the upper half of all pods' addresses, of which nodes
/// get blocks from below. Those of so many in a row are different.
fn nobody(nth: usize) -> Ipv4Addr {
    const DIFFERENT: usize = 32_000;
    let low = u16::try_from(nth % DIFFERENT + 1).unwrap_or_default();
    let [third, fourth] = low.to_be_bytes();
    Ipv4Addr::new(10, 244, 128 | third, fourth)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_service_that_nobody_talks_to_has_four_endpoints_that_no_pod_has() {
        let list = idle(7_998..8_001);
        let items = list["items"].as_array().expect("items");
        assert_eq!(items.len(), 6);
        for pair in items.chunks(2) {
            let name = &pair[0]["metadata"]["name"];
            let labels = &pair[1]["metadata"]["labels"];
            assert_eq!(labels["kubernetes.io/service-name"], *name);
            let port = &pair[0]["spec"]["ports"][0]["name"];
            assert_eq!(pair[1]["ports"][0]["name"], *port);
            let endpoints = pair[1]["endpoints"].as_array().expect("endpoints");
            let addresses: BTreeSet<Ipv4Addr> = endpoints
                .iter()
                .filter_map(|e| e["addresses"][0].as_str()?.parse().ok())
                .collect();
            assert_eq!(addresses.len(), ENDPOINTS);
            for [a, b, c, _] in addresses.iter().map(Ipv4Addr::octets) {
                assert!((a, b) == (10, 244) && c >= 128);
            }
        }
    }

    #[test]
    fn only_rows_with_a_backend_count_as_listed() {
        let backend = |chosen: bool| json!([{"chosen": chosen}]);
        let rows = json!([
            {"backends": backend(true)}, {"backends": backend(false)}, {"backends": []},
        ]);
        assert_eq!(listed(&rows).expect("a list"), 1);
        assert!(listed(&json!({})).is_err());
    }
}
