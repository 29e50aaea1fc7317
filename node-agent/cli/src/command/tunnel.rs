//! `veer tunnel list`: which pod CIDR is on which node, the own one included, by
//! which tunnel address, in which form packets go there now, and what keeps
//! them from the form they should have.

use std::net::IpAddr;

use serde::Serialize;
use veer_agent_api::RemoteRow;

use crate::output::columns_or;

/// One pod CIDR.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct TunnelRow {
    pod_cidr: String,
    address: IpAddr,
    node: String,
    form: String,
    note: String,
}

/// One row per pod CIDR of each node.
pub(super) fn rows(remotes: Vec<RemoteRow>) -> Vec<TunnelRow> {
    let of_node = |remote: RemoteRow| {
        let RemoteRow {
            node,
            address,
            pod_cidrs,
            form,
            falls_back_in,
            trouble,
            ..
        } = remote;
        let note = match falls_back_in {
            Some(seconds) => format!("falls back in {seconds} s unless confirmed"),
            None => trouble,
        };
        pod_cidrs.into_iter().map(move |pod_cidr| TunnelRow {
            pod_cidr,
            address,
            node: node.clone(),
            form: form.clone(),
            note: note.clone(),
        })
    };
    remotes.into_iter().flat_map(of_node).collect()
}

pub(super) fn table(rows: &[TunnelRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.pod_cidr.clone(),
            row.address.to_string(),
            row.node.clone(),
            row.form.clone(),
            row.note.clone(),
        ]
    });
    columns_or(
        "No node has a pod CIDR yet (kubectl get nodenetworks).",
        ["POD CIDR", "TUNNEL ENDPOINT", "NODE", "FORM", "NOTE"],
        cells.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_with_two_blocks_has_two_rows() {
        let remote = RemoteRow {
            node: "a".to_owned(),
            node_id: 2,
            pod_cidrs: vec!["10.0.1.0/24".to_owned(), "10.0.9.0/24".to_owned()],
            address: "192.0.2.1".parse().unwrap(),
            form: "native".to_owned(),
            next_hop: None,
            uplink: "eth0".to_owned(),
            next_hop_v6: None,
            uplink_v6: String::new(),
            accept_native: true,
            epoch: 3,
            falls_back_in: Some(7),
            trouble: String::new(),
        };
        let rows = rows(vec![remote]);
        let cidrs: Vec<_> = rows.iter().map(|row| row.pod_cidr.as_str()).collect();
        assert_eq!(cidrs, ["10.0.1.0/24", "10.0.9.0/24"]);
        assert!(
            rows.iter()
                .all(|row| row.node == "a" && row.form == "native")
        );
        assert!(table(&rows).contains("falls back in 7 s"));
    }
}
