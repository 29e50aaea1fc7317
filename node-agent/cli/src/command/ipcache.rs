//! `veer ipcache list`: who a prefix is and where.

use veer_agent_api::IpcacheRow;

use crate::output::columns_or;

pub(super) fn table(rows: &[IpcacheRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.prefix.clone(),
            row.identity.to_string(),
            row.tunnel_endpoint.to_string(),
            row.node_id.to_string(),
        ]
    });
    columns_or(
        "The ipcache is empty: the agent has not filled it yet (veer status).",
        ["PREFIX", "IDENTITY", "TUNNEL ENDPOINT", "NODE ID"],
        cells.collect(),
    )
}
