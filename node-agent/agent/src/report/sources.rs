//! What is shown to those who ask the agent: read handles.

use std::sync::Arc;

use veer_agent_core::{endpoint::Store, index::Index};

use super::repairs::Repairs;
use crate::state::{
    handles::{Reader, View},
    maps::Maps,
    plan::Plan,
};

/// Where the answers of the socket and the figures of a scrape come from.
#[derive(Clone)]
pub(crate) struct Sources {
    /// The maps.
    pub(crate) maps: Maps,
    /// What the API server said.
    pub(crate) index: Reader<Index>,
    /// The engine's last decisions.
    pub(crate) plan: Reader<Plan>,
    /// Wired pods.
    pub(crate) store: View<Store>,
    /// What was put back.
    pub(crate) repairs: Arc<Repairs>,
}
