//! Services for the node's own sockets.

use std::collections::HashSet;

use veer_api_client::chain;
use veer_bpf_common::tables::{Backend, Frontend};
use veer_crds::v1alpha1::ServiceTranslation;

use super::{
    converge::Converger,
    services::{Translation, UDP},
};
use veer_agent_core::{
    index::Index,
    repair::{Kind, RoundLog},
    services::{Step, Unserved},
};
use veer_agent_kernel::{
    datapath::Datapath,
    netlink::sock_diag::{self, Datagrams},
};

/// Nobody is refused.
static NONE: Unserved = Unserved::new();

/// Whether no kube-proxy is needed.
pub(super) fn full(index: &Index) -> bool {
    let cluster = index.cluster.as_ref();
    cluster.is_some_and(|(_, c)| c.services == ServiceTranslation::Full)
}

impl Translation {
    /// The frontends whose clients veer refuses. Beside kube-proxy it refuses none.
    pub(super) fn unserved(&self, index: &Index) -> &Unserved {
        if full(index) {
            self.plan.unserved()
        } else {
            &NONE
        }
    }
}

impl Converger {
    /// Has the node's own sockets translated, or not any more.
    pub(super) fn host_sockets(&mut self, index: &Index, done: &mut RoundLog) {
        let Some(by) = self.translation.by else {
            // What an earlier agent did stays.
            return;
        };
        let mut datapath = self.datapath.lock();
        if !(by.programs() && full(index)) {
            self.translation.serves_sockets = false;
            if let Err(error) = datapath.leave_sockets() {
                let text = format!(
                    "the node's own sockets are translated still: {}",
                    chain(&error)
                );
                self.concerns.push(("HostSockets", text));
            }
            return;
        }
        if datapath.serves_sockets() {
            return;
        }
        match datapath.serve_sockets(&self.options.cgroups) {
            Ok(()) if self.translation.serves_sockets => {
                let what = "a program of the node's own sockets was detached".to_owned();
                done.repaired(Kind::Program, what);
            }
            Ok(()) => tracing::info!("the node's own sockets are translated"),
            Err(error) => {
                let text = format!(
                    "spec.services is Full, but the node's own processes reach Services by \
                     kube-proxy alone: {}",
                    chain(&error)
                );
                self.concerns.push(("HostSockets", text));
                return;
            }
        }
        self.translation.serves_sockets = true;
    }

    /// Ends the node's datagram sockets that are connected to a backend which is gone: only
    /// by an error their processes learn of it, and connect again.
    pub(super) fn host_datagrams(&self, step: &Step) {
        if step.gone_members.is_empty() || !self.translation.serves_sockets {
            return;
        }
        let gone: HashSet<_> = step
            .gone_members
            .iter()
            .map(|m| (m.address, m.port))
            .collect();
        let datapath = self.datapath.lock();
        let ended = sock_diag::end_datagrams(|socket| {
            let peer = Backend::at(socket.peer);
            gone.contains(&(peer.address, peer.port)) && is_astray(&datapath, socket, &peer)
        });
        drop(datapath);
        match ended {
            Ok(0) => {}
            Ok(sockets) => tracing::info!(sockets, "ended: their backend is gone"),
            Err(error) => tracing::warn!(
                %error,
                "datagram sockets of the node stay connected to a backend that is gone \
                 (needs CONFIG_INET_DIAG_DESTROY)"
            ),
        }
    }
}

/// Whether a socket was given a backend that is none any more of what it asked for.
fn is_astray(datapath: &Datapath, socket: Datagrams, peer: &Backend) -> bool {
    let Ok(Some(asked)) = datapath.maps.asked_by(socket.cookie, peer) else {
        return false;
    };
    let frontend = Frontend {
        address: asked.address,
        port: asked.port,
        protocol: UDP,
        family: asked.family,
        pad: [0; 4],
    };
    let leads = datapath.maps.tables.leads_to(&frontend, peer);
    leads.is_ok_and(|leads| !leads)
}
