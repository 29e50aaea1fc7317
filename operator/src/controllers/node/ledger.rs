//! Claims as this process knows them: those in the cache, and those that it created
//! or met so recently that the cache may not have them yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use veer_crds::v1alpha1::PodCIDR;

/// How long a claim is remembered that the cache does not show. No cache lags that
/// far, and claiming by name is safe without the ledger.
const MEMORY: Duration = Duration::from_mins(1);

/// Claims that the cache may not show yet, by name.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    recent: HashMap<String, (Arc<PodCIDR>, Instant)>,
}

impl Ledger {
    /// Remembers a claim just made, or met in the way.
    pub(crate) fn remember(&mut self, claim: Arc<PodCIDR>) {
        self.recent
            .insert(claim.name_any(), (claim, Instant::now()));
    }

    /// Forgets a claim just deleted.
    pub(crate) fn forget(&mut self, name: &str) {
        self.recent.remove(name);
    }

    /// All claims, given those of the cache.
    pub(crate) fn claims(&mut self, mut cached: Vec<Arc<PodCIDR>>) -> Vec<Arc<PodCIDR>> {
        for claim in &cached {
            self.recent.remove(&claim.name_any());
        }
        self.recent.retain(|_, (_, since)| since.elapsed() < MEMORY);
        cached.extend(self.recent.values().map(|(claim, _)| Arc::clone(claim)));
        cached
    }
}
