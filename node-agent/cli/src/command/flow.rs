//! `veer flow list`: flows that the host's stack translates, whose replies go up
//! the stack.

use veer_agent_api::FlowRow;

use crate::output::columns_or;

pub(super) fn table(rows: &[FlowRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.protocol.clone(),
            row.source.clone(),
            row.destination.clone(),
            format!("{} s", row.expires_in),
        ]
    });
    columns_or(
        "No translated flows are noted.",
        ["PROTOCOL", "SOURCE", "DESTINATION", "EXPIRES IN"],
        cells.collect(),
    )
}
