//! `veer remote list`: nodes, and the form in which traffic to each travels.

use veer_agent_api::RemoteRow;

use crate::output::{columns_or, listed};

pub(super) fn table(rows: &[RemoteRow]) -> String {
    let cells = rows.iter().map(|row| {
        let hops = row.next_hop.iter().chain(&row.next_hop_v6);
        let mut uplinks = vec![row.uplink.as_str(), row.uplink_v6.as_str()];
        uplinks.retain(|name| !name.is_empty());
        uplinks.dedup();
        [
            row.node.clone(),
            row.node_id.to_string(),
            listed(&row.pod_cidrs),
            row.address.to_string(),
            row.form.clone(),
            listed(&hops.collect::<Vec<_>>()),
            listed(&uplinks),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_next_hops_and_uplinks_of_both_families() {
        let of = |v4: Option<&str>, v6: Option<&str>, uplinks: [&str; 2]| {
            let row = RemoteRow {
                node: "b".to_owned(),
                node_id: 2,
                pod_cidrs: vec!["10.0.2.0/24".to_owned(), "fd00:2::/64".to_owned()],
                address: "192.0.2.2".parse().unwrap(),
                form: "native".to_owned(),
                next_hop: v4.map(|hop| hop.parse().unwrap()),
                uplink: uplinks[0].to_owned(),
                next_hop_v6: v6.map(|hop| hop.parse().unwrap()),
                uplink_v6: uplinks[1].to_owned(),
                accept_native: true,
                epoch: 3,
                falls_back_in: None,
                trouble: String::new(),
            };
            let table = table(&[row]);
            let line = table.lines().nth(1).unwrap();
            line.split("native  ").nth(1).unwrap().to_owned()
        };
        let (v4, v6) = (Some("192.0.2.2"), Some("fe80::1"));
        for (hops, uplinks, expected) in [
            ((v4, None), ["eth0", ""], ["192.0.2.2 ", " eth0 "]),
            (
                (v4, v6),
                ["eth0", "eth0"],
                ["192.0.2.2, fe80::1 ", " eth0 "],
            ),
            (
                (v4, v6),
                ["eth0", "eth1"],
                ["192.0.2.2, fe80::1 ", " eth0, eth1 "],
            ),
            ((None, None), ["", ""], ["-", " - "]),
        ] {
            let line = of(hops.0, hops.1, uplinks);
            assert!(
                line.starts_with(expected[0]) && line.contains(expected[1]),
                "{line}"
            );
        }
    }
}
