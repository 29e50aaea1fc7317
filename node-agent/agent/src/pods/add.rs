//! ADD: wires a pod's sandbox. Runs beside other ADDs; the locks it takes are
//! never held over netlink or the disk.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use veer_agent_api::{Add, Added, Failure, HostPort, code, mac_text};
use veer_api_client::chain;
use veer_bpf_common::{device::IfIndex, identity::Identity};

use crate::{
    pods::{Pods, del, internal},
    state::input::Input,
};
use veer_agent_core::{
    endpoint::{self, LocalEndpoint, PodAddress, Reservation, StoreError},
    index::Resolution,
    mtu::Mtu,
};
use veer_agent_kernel::{
    clock,
    datapath::Hook,
    netlink::{
        link,
        message::Socket,
        netns::{self, Netns},
        pod::{self, Wiring},
    },
};

/// How long ADD waits for a known pod's number, before it wires it as `init`.
const NUMBER_WAIT: Duration = Duration::from_millis(800);
/// How long it waits for the pod to be known.
const POD_WAIT: Duration = Duration::from_millis(100);
/// How long it waits for the rules of the pod's hostPorts: a round of the engine may
/// have to end first.
const RULES_WAIT: Duration = Duration::from_secs(30);
/// Time between looks.
const LOOK: Duration = Duration::from_millis(10);

/// Takes back what an ADD that fails has done, armed from the first step on.
struct Undo<'a> {
    pods: &'a Pods,
    add: &'a Add,
    host_ifname: String,
    reservation: Option<Reservation>,
    /// The endpoint is in the store.
    inserted: bool,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed {
            // The DEL that follows removes what cannot be undone here.
            if let Err(error) = del::forget(self.pods, &self.add.attachment) {
                tracing::warn!(device = self.host_ifname, %error, "cannot undo an ADD");
            }
            if let (Some(reservation), false) = (&self.reservation, self.inserted) {
                self.pods
                    .local
                    .store()
                    .cancel(reservation, &self.add.pod_uid);
            }
        }
        self.pods.local.adding().remove(&self.host_ifname);
    }
}

/// Why wiring failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{what}")]
    Step {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("BPF")]
    Datapath(#[from] veer_agent_kernel::datapath::Error),
    #[error("hostPort {port} of this node is pod {holder}'s")]
    PortHeld { port: HostPort, holder: String },
    #[error("its hostPorts cannot be made: {0}")]
    HostPorts(String),
}

fn step(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Step { what, source }
}

/// Wires a sandbox.
pub(crate) fn add(pods: &Pods, add: &Add) -> Result<Added, Failure> {
    let pod = format!("{}/{}", add.pod_namespace, add.pod_name);
    if let Some(reason) = not_ready(pods) {
        return Err(Failure {
            code: code::TRY_AGAIN,
            msg: format!("pod {pod} cannot be wired yet: {reason}"),
            details: String::new(),
        });
    }
    let netns = netns::open(&add.netns).map_err(|e| Failure {
        code: code::INVALID_ENVIRONMENT,
        msg: format!(
            "pod {pod}: cannot open its network namespace {}: {e}",
            add.netns
        ),
        details: String::new(),
    })?;
    replace_earlier(pods, add, &netns)?;
    let mut undo = Undo {
        pods,
        add,
        host_ifname: endpoint::host_ifname(&add.attachment),
        reservation: None,
        inserted: false,
        armed: true,
    };
    pods.local.adding().insert(undo.host_ifname.clone());
    let (identity, object_uid) = identity(pods, add);
    let claims = pods.index.read().claims();
    let reservation = pods
        .local
        .store()
        .reserve(&add.pod_uid, &claims, clock::unix_millis())
        .map_err(|e| no_address(&pod, &e))?;
    undo.reservation = Some(reservation);
    let result = wire(
        pods,
        add,
        &netns,
        &mut undo,
        reservation,
        identity,
        object_uid,
    );
    match result {
        Ok(added) => {
            undo.armed = false;
            Ok(added)
        }
        Err(error) => {
            let failure = internal(format!("pod {pod} cannot be wired: {}", chain(&error)));
            // The other pod may be about to go.
            let code = match error {
                Error::PortHeld { .. } => code::TRY_AGAIN,
                Error::Step { .. } | Error::Datapath(_) | Error::HostPorts(_) => failure.code,
            };
            Err(Failure { code, ..failure })
        }
    }
}

fn not_ready(pods: &Pods) -> Option<String> {
    let plan = pods.plan.read();
    (!plan.not_ready.is_empty()).then(|| plan.not_ready.clone())
}

fn no_address(pod: &str, error: &StoreError) -> Failure {
    Failure {
        code: code::TRY_AGAIN,
        msg: format!("pod {pod} gets no address: {error}"),
        details: String::new(),
    }
}

/// An ADD for a sandbox that is wired already is a repetition; one for a pod
/// whose earlier sandbox is dead takes its place, address included. Nor does a dead
/// sandbox of another pod keep a port.
fn replace_earlier(pods: &Pods, add: &Add, netns: &Netns) -> Result<(), Failure> {
    let earlier: Vec<LocalEndpoint> = pods
        .local
        .store()
        .iter()
        .filter(|e| {
            // By the device: a rebuilt record may not know its sandbox's id.
            let same = endpoint::is_device_of(&e.host_ifname, &add.attachment);
            let same_pod = !add.pod_uid.is_empty()
                && e.pod_uid == add.pod_uid
                && e.attachment.ifname == add.attachment.ifname;
            let same_port = || {
                let wanted = add.host_ports.iter().flatten();
                let mut held = wanted.flat_map(|w| e.host_ports().iter().map(move |h| (w, h)));
                held.any(|(wanted, held)| wanted.overlaps(held))
            };
            same || ((same_pod || same_port()) && e.netns_inode != netns.inode && !alive(e))
        })
        .cloned()
        .collect();
    for e in earlier {
        del::unwire(pods, &e.attachment).map_err(|error| {
            internal(format!(
                "pod {}: cannot remove its earlier sandbox: {error}",
                e.pod()
            ))
        })?;
    }
    Ok(())
}

/// Whether the namespace of a wired pod is still there.
pub(crate) fn alive(endpoint: &LocalEndpoint) -> bool {
    netns::is_at(&endpoint.netns, endpoint.netns_inode)
}

/// Waits briefly for the pod's identity; what comes later is put right later.
/// The Pod itself is known to the kubelet, so it can only be some milliseconds
/// away; its number is a matter of the operator.
pub(crate) async fn await_identity(pods: &Pods, add: &Add) {
    let begun = Instant::now();
    loop {
        let patience = match look_up(pods, add) {
            Resolution::Known(..) => return,
            Resolution::NoNumber(_) => NUMBER_WAIT,
            Resolution::NoPod => POD_WAIT,
        };
        if begun.elapsed() >= patience {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn look_up(pods: &Pods, add: &Add) -> Resolution {
    pods.index
        .read()
        .resolve(&add.pod_namespace, &add.pod_name, &add.pod_uid)
}

/// The pod's identity and the UID of its API object, as far as known.
fn identity(pods: &Pods, add: &Add) -> (Identity, Option<String>) {
    match look_up(pods, add) {
        Resolution::Known(number, uid) => (number, Some(uid)),
        Resolution::NoNumber(uid) => (Identity::INIT, Some(uid)),
        Resolution::NoPod => (Identity::INIT, None),
    }
}

fn wire(
    pods: &Pods,
    add: &Add,
    netns: &Netns,
    undo: &mut Undo<'_>,
    reservation: Reservation,
    identity: Identity,
    object_uid: Option<String>,
) -> Result<Added, Error> {
    let (link_mtu, route_mtu, host_sources) = {
        let plan = pods.plan.read();
        (plan.link_mtu, plan.step.mtu, plan.facts.addresses.clone())
    };
    let PodAddress { address, gateway } = reservation.first;
    let host_ifname = undo.host_ifname.clone();
    let wiring = Wiring {
        host_ifname: &host_ifname,
        host_mac: endpoint::mac(&add.attachment, true),
        pod_ifname: &add.attachment.ifname,
        pod_mac: endpoint::mac(&add.attachment, false),
        addresses: &[reservation.first]
            .into_iter()
            .chain(reservation.second)
            .collect::<Vec<_>>(),
        link_mtu,
        route_mtu,
        host_sources: &host_sources,
        host_ports: add.host_ports.iter().flatten().next().is_some(),
    };
    let mut socket = Socket::route().map_err(step("open a netlink socket"))?;
    let host = pod::create(&mut socket, netns, &wiring).map_err(step("make the veth pair"))?;
    let endpoint = LocalEndpoint {
        attachment: add.attachment.clone(),
        netns: add.netns.clone(),
        netns_inode: netns.inode,
        namespace: add.pod_namespace.clone(),
        pod_name: add.pod_name.clone(),
        pod_uid: add.pod_uid.clone(),
        object_uid,
        address,
        gateway,
        second: reservation.second,
        endpoint_id: reservation.endpoint_id,
        serial: reservation.serial,
        identity,
        host_ifname: wiring.host_ifname.to_owned(),
        ifindex: Some(host.index),
        mac: wiring.pod_mac,
        node_mac: wiring.host_mac,
        host_ports: add.host_ports.clone(),
    };
    {
        let mut datapath = pods.datapath.lock();
        for hook in [Hook::PodEgress, Hook::PodIngress] {
            datapath.attach(wiring.host_ifname, hook)?;
        }
        {
            let mut store = pods.local.store();
            if let Some((port, holder)) = store.holder_of_ports(&endpoint) {
                return Err(Error::PortHeld { port, holder });
            }
            store.insert(endpoint.clone());
            undo.inserted = true;
        }
        pods.converge_pod(&mut datapath, &endpoint, None)?;
    }
    pod::configure(
        &mut socket,
        netns,
        &wiring,
        host.index,
        &pods.options.proc_sys_net,
    )
    .map_err(step("give the pod its address and routes"))?;
    if !endpoint.host_ports().is_empty() {
        host_ports(pods)?;
    }
    pods.local.store().record(&add.attachment);
    pods.local
        .persist(&add.attachment)
        .map_err(step("write the endpoint's record"))?;
    let mtu = settle_mtus(pods, &mut socket, netns, &wiring, host.index)?;
    pods.publisher
        .publish(&pods.index.read().endpoints, &endpoint);
    if endpoint.is_init() || endpoint.object_uid.is_none() {
        // The number may have come between the last look and the record.
        let _ = pods.engine.send(Input::Identities);
    }
    Ok(added(&endpoint, mtu))
}

/// Gives the pod the MTUs that the plan has now, and returns that of its
/// route. Rounds pass an ADD by; so it is among the settled pods first and looks at the
/// plan then, until the plan is what was set.
fn settle_mtus(
    pods: &Pods,
    socket: &mut Socket,
    netns: &Netns,
    wiring: &Wiring<'_>,
    host_index: IfIndex,
) -> Result<Mtu, Error> {
    pods.local.adding().remove(wiring.host_ifname);
    let mut have = (wiring.link_mtu, wiring.route_mtu);
    loop {
        let wanted = {
            let plan = pods.plan.read();
            (plan.link_mtu, plan.step.mtu)
        };
        if wanted == have {
            return Ok(wanted.1);
        }
        // Every round looks at the host's end, which must never be the smaller one.
        if wanted.0 > have.0 {
            link::set_mtu(socket, host_index, wanted.0).map_err(step("set the MTU of the veth"))?;
        }
        pod::set_mtus(
            netns,
            wiring.pod_ifname,
            wiring.addresses,
            wanted.0,
            wanted.1,
        )
        .map_err(step("set the MTU of the pod's route"))?;
        have = wanted;
    }
}

/// Has the engine write the rules of hostPorts, and waits for it.
fn host_ports(pods: &Pods) -> Result<(), Error> {
    let (tell, told) = mpsc::channel();
    let _ = pods.engine.send(Input::HostPorts(Some(tell)));
    told.recv_timeout(RULES_WAIT)
        .unwrap_or_else(|_| Err("the agent is busy or ending".to_owned()))
        .map_err(Error::HostPorts)
}

fn added(endpoint: &LocalEndpoint, mtu: Mtu) -> Added {
    Added {
        addresses: endpoint.addresses().map(|a| a.address).collect(),
        gateways: endpoint.addresses().map(|a| a.gateway).collect(),
        host_ifname: endpoint.host_ifname.clone(),
        host_mac: mac_text(endpoint.node_mac),
        container_mac: mac_text(endpoint.mac),
        mtu: mtu.get(),
    }
}
