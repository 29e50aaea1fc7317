//! Frontends that lead nowhere, and what their clients are told.

use std::collections::BTreeMap;

use veer_bpf_common::tables::Frontend;

use crate::index::ServicePort;

/// What becomes of packets to a frontend that no backend serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusal {
    /// The client is told at once.
    #[default]
    Refuse,
    /// Nothing is answered: the policy keeps flows on this node, and no endpoint is here.
    Drop,
}

impl Refusal {
    /// What becomes of packets to a port while no backend serves it here, as with
    /// kube-proxy.
    pub(super) fn of(port: &ServicePort) -> Self {
        if port.local
            && port
                .endpoints
                .iter()
                .any(|endpoint| endpoint.state.serves())
        {
            Self::Drop
        } else {
            Self::Refuse
        }
    }
}

/// Frontends that no backend serves.
pub type Unserved = BTreeMap<Frontend, Refusal>;
