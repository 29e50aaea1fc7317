//! Services for the node's own sockets.

use std::collections::HashSet;

use veer_api_client::chain;
use veer_bpf_common::tables::{Backend, Frontend};

use super::{
    converge::Converger,
    services::{By, Translation},
};
use veer_agent_core::{
    index::Index,
    repair::{Kind, RoundLog},
    services::{Step, UDP, Unserved},
};
use veer_agent_kernel::{
    datapath::Datapath,
    netlink::sock_diag::{self, Datagrams},
};

/// Whether the node's own sockets are to be translated, too.
pub(super) fn is_full(index: &Index) -> bool {
    let cluster = index.cluster.as_ref();
    cluster.is_some_and(|(_, c)| c.services.is_full())
}

impl Translation {
    /// The frontends whose clients veer refuses; `None`: kube-proxy does.
    pub(super) fn unserved(&self, index: &Index) -> Option<&Unserved> {
        is_full(index).then(|| self.plan.unserved())
    }
}

impl Converger {
    /// Has the node's own sockets translated, or not any more. With `full` those whose
    /// backend is gone are looked for: nobody may have noticed when it went.
    pub(super) fn host_sockets(&mut self, done: &mut RoundLog, full: bool) {
        let Some(by) = self.translation.by else {
            // What an earlier agent did stays.
            return;
        };
        let cgroups = &self.options.cgroups;
        let mut datapath = self.datapath.lock();
        if by != (By::Programs { full: true }) {
            if let Err(error) = datapath.leave_sockets(cgroups) {
                let text = format!(
                    "the node's own sockets may be translated still: {}",
                    chain(&error)
                );
                self.concerns.push(("HostSockets", text));
            }
        } else if !datapath.serves_sockets() {
            match datapath.serve_sockets(cgroups) {
                Ok(true) => {
                    let what = "a program of the node's own sockets was unpinned".to_owned();
                    done.repaired(Kind::Program, what);
                }
                Ok(false) => tracing::info!("the node's own sockets are translated"),
                Err(error) => {
                    let text = format!(
                        "spec.services is Full, but the node's own processes reach Services by \
                         kube-proxy alone: {}",
                        chain(&error)
                    );
                    self.concerns.push(("HostSockets", text));
                }
            }
        }
        drop(datapath);
        if full {
            self.end_astray(None);
        }
    }

    /// Ends sockets whose backend this step took away.
    pub(super) fn host_datagrams(&self, step: &Step) {
        if step.gone_datagrams {
            let gone = step.gone_members.iter();
            let gone: HashSet<_> = gone.map(|m| (m.address, m.port)).collect();
            self.end_astray(Some(&gone));
        }
    }

    /// Ends the node's datagram sockets that are connected to a backend which is gone, one of
    /// `gone`: only by an error their processes learn of it, and connect again. Where the
    /// stack translates, nobody says any more what is gone.
    fn end_astray(&self, gone: Option<&HashSet<([u8; 16], [u8; 2])>>) {
        let by_programs = self.translation.by.is_some_and(By::programs);
        if !by_programs || !self.datapath.lock().served_sockets() {
            return;
        }
        let ended = sock_diag::end_datagrams(|socket| {
            let peer = Backend::at(socket.peer);
            gone.is_none_or(|gone| gone.contains(&(peer.address, peer.port)))
                && is_astray(&self.datapath.lock(), socket, &peer)
        });
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
    // It may have asked for a NodePort. Where nobody says any more what is gone, as of pods'
    // flows, the socket stays.
    let tables = &datapath.maps.tables;
    let meant = [frontend, frontend.at_node(false), frontend.at_node(true)];
    let leads: Result<Vec<_>, _> = meant.iter().map(|f| tables.leads_to(f, peer)).collect();
    leads.is_ok_and(|leads| leads.contains(&Some(false)) && !leads.contains(&Some(true)))
}
