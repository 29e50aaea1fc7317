//! What the agent keeps on disk of the API server's word, so that it can start
//! without it: its block, the cluster's settings, the epoch in force.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veer_crds::v1alpha1::{ClusterNetworkSpec, Epoch};

use crate::{files, probe::Pairs};

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Held {
    /// Blocks assigned from.
    #[serde(default, rename = "podCIDRs")]
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// UID and spec of the ClusterNetwork.
    #[serde(default)]
    pub(crate) cluster: Option<(String, ClusterNetworkSpec)>,
    /// The last epoch taken up.
    #[serde(default)]
    pub(crate) epoch: Option<Epoch>,
    /// The last epoch acknowledged.
    #[serde(default)]
    pub(crate) applied: Option<Epoch>,
    /// What probes of other nodes found in that epoch or the one under way.
    #[serde(default)]
    pub(crate) pairs: Pairs,
    /// The node was told to clean up and has.
    #[serde(default)]
    pub(crate) decommissioned: bool,
}

/// [`Held`] with its file.
#[derive(Debug)]
pub(crate) struct HeldFile {
    path: PathBuf,
    /// What the file holds.
    held: Held,
    /// There was a file.
    known: bool,
}

impl HeldFile {
    /// Reads it; an absent or unreadable file is an empty one.
    pub(crate) fn open(state: &Path) -> Self {
        let path = state.join("held.json");
        let (held, known) = match fs::read(&path).map(|b| serde_json::from_slice(&b)) {
            Ok(Ok(held)) => (held, true),
            Ok(Err(error)) => {
                tracing::error!(path = %path.display(), %error, "unreadable; starting without it");
                (Held::default(), false)
            }
            Err(_) => (Held::default(), false),
        };
        Self { path, held, known }
    }

    /// What is held.
    pub(crate) fn get(&self) -> &Held {
        &self.held
    }

    /// Whether anything is known of an earlier agent.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Changes it, on disk first; no write when nothing changed.
    pub(crate) fn set(&mut self, held: Held) -> io::Result<()> {
        if held != self.held || !self.path.exists() {
            let bytes = serde_json::to_vec(&held)?;
            files::write_atomically(&self.path, &bytes)?;
            self.held = held;
            self.known = true;
        }
        Ok(())
    }
}
