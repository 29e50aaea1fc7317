//! `veer remote list`: nodes, and the form in which traffic to each travels.

use veer_agent_api::RemoteRow;

use crate::output::{columns_or, listed, or_dash};

pub(super) fn table(rows: &[RemoteRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.node.clone(),
            row.node_id.to_string(),
            listed(&row.pod_cidrs),
            row.address.to_string(),
            row.form.clone(),
            listed(row.next_hop.as_slice()),
            or_dash(&row.uplink),
            if row.accept_native { "yes" } else { "no" }.to_owned(),
            row.epoch.to_string(),
        ]
    });
    columns_or(
        "No other node is known yet (kubectl get nodenetworks).",
        [
            "NODE",
            "ID",
            "POD CIDRS",
            "ADDRESS",
            "FORM",
            "NEXT HOP",
            "UPLINK",
            "NATIVE ACCEPTED",
            "EPOCH",
        ],
        cells.collect(),
    )
}
