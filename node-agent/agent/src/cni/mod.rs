//! The CNI side: the socket that veer-cni and the `veer` command talk to, and
//! what it does for them.

mod add;
mod check;
pub(crate) mod conflist;
mod del;
mod drops;
pub(crate) mod foreign;
pub(crate) mod gc;
pub(crate) mod portmap;
mod query;
pub(crate) mod recover;
pub(crate) mod results;
pub(crate) mod rewire;
pub(crate) mod server;

pub(crate) use query::readable_counters;

use veer_agent_api::{Failure, code};

use veer_agent_core::{endpoint::LocalEndpoint, prefix::host_prefix};
use veer_agent_kernel::datapath::{self, Datapath};
use veer_bpf_common::value::{IpcacheEntry, NODE_ID_LOCAL};

/// Writes the rows of a local pod: what others look up comes last.
pub(crate) fn write_rows(
    datapath: &mut Datapath,
    endpoint: &LocalEndpoint,
) -> Result<(), datapath::Error> {
    let maps = &mut datapath.maps;
    maps.set_interface(endpoint.ifindex, Some(endpoint.interface_value()))?;
    maps.set_endpoint(endpoint.key(), Some(endpoint.endpoint_value()))?;
    let entry = IpcacheEntry {
        identity: endpoint.identity,
        node_id: NODE_ID_LOCAL,
    };
    maps.set_ipcache(host_prefix(endpoint.address), Some(entry))
}

/// Removes the rows of a local pod that is gone.
pub(crate) fn remove_rows(
    datapath: &mut Datapath,
    endpoint: &LocalEndpoint,
) -> Result<(), datapath::Error> {
    let maps = &mut datapath.maps;
    maps.set_ipcache(host_prefix(endpoint.address), None)?;
    maps.set_endpoint(endpoint.key(), None)?;
    maps.set_interface(endpoint.ifindex, None)
}

/// A failure of the agent's own.
pub(crate) fn internal(msg: String) -> Failure {
    Failure {
        code: code::INTERNAL,
        msg,
        details: String::new(),
    }
}
