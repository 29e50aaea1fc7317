//! An agent that knows less than its node's maps.

use super::Engine;

/// Why an agent without its state waits.
const FORGOTTEN: &str = "the agent's state of the node is lost, and the API server has not \
                         sent it yet";

impl Engine {
    /// Whether the agent has to be told first what its node is: what it knew of it
    /// is lost, and the maps hold more than an agent that knows nothing would leave
    /// in them.
    pub(super) fn has_forgotten(&mut self) -> bool {
        if self.held.is_known() {
            return false;
        }
        let told = {
            let index = self.index.read();
            let complete = index.complete;
            index.cluster.is_some()
                && index.nodes.get(index.own()).is_some()
                && complete.pods
                && complete.endpoints_listed
        };
        let config = self.datapath.lock().maps.tables.config.get(&0);
        let wired = config.is_ok_and(|c| c.is_some_and(|c| c.gateway_v4 != [0; 4]));
        let forgotten = !told && wired;
        if forgotten {
            let mut plan = self.plan.write();
            if plan.not_ready != FORGOTTEN {
                tracing::warn!("{FORGOTTEN}; the agent changes nothing");
                FORGOTTEN.clone_into(&mut plan.not_ready);
            }
        }
        forgotten
    }
}
