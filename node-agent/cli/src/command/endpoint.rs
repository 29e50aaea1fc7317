//! `veer endpoint list`: pods wired on the node, as the endpoint map has them.

use veer_agent_api::EndpointRow;

use crate::output::columns_or;

pub(super) fn table(rows: &[EndpointRow]) -> String {
    let cells = rows.iter().map(|row| {
        // The map's flags are zero in every layout so far.
        let entry = format!(
            "id={} flags=0x0000 ifindex={} mac={} nodemac={}",
            row.id, row.ifindex, row.mac, row.node_mac
        );
        [
            row.address.to_string(),
            entry,
            row.identity.to_string(),
            row.ifname.clone(),
            row.pod.clone(),
        ]
    });
    columns_or(
        "No pods of the pod network on this node.",
        ["ADDRESS", "ENDPOINT", "IDENTITY", "DEVICE", "POD"],
        cells.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_shows_the_entry_of_the_map() {
        let row = EndpointRow {
            address: "10.0.1.124".parse().unwrap(),
            id: 1580,
            identity: 40123,
            pod: "default/a".to_owned(),
            ifindex: 26,
            ifname: "veer0123456789".to_owned(),
            mac: "02:00:00:00:00:02".to_owned(),
            node_mac: "02:00:00:00:00:01".to_owned(),
        };
        let table = table(&[row]);
        let line = table.lines().nth(1).unwrap();
        assert!(
            line.starts_with(
                "10.0.1.124  id=1580 flags=0x0000 ifindex=26 mac=02:00:00:00:00:02 \
                 nodemac=02:00:00:00:00:01  40123 "
            ),
            "{line}"
        );
    }

    #[test]
    fn without_pods_it_says_so() {
        assert_eq!(table(&[]), "No pods of the pod network on this node.");
    }
}
