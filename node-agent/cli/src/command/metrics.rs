//! `veer metrics list`: packets by program and by how they ended. Drops come
//! first, since they are what one looks for.

use std::cmp::Reverse;

use veer_agent_api::CounterRow;

use crate::output::columns_or;

pub(super) fn table(rows: &[CounterRow]) -> String {
    let mut rows: Vec<_> = rows.iter().filter(|row| row.packets > 0).collect();
    rows.sort_by_key(|row| {
        (
            Reverse(row.drop),
            row.program.as_str(),
            Reverse(row.packets),
        )
    });
    let cells = rows.into_iter().map(|row| {
        [
            if row.drop { "drop" } else { "forward" }.to_owned(),
            row.program.clone(),
            row.outcome.clone(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]
    });
    columns_or(
        "No packets so far.",
        ["VERDICT", "PROGRAM", "REASON", "PACKETS", "BYTES"],
        cells.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_come_first_and_zeros_not_at_all() {
        let row = |program: &str, drop, packets| CounterRow {
            program: program.to_owned(),
            outcome: "x".to_owned(),
            drop,
            packets,
            bytes: 0,
        };
        let table = table(&[row("a", false, 9), row("b", true, 1), row("c", false, 0)]);
        let kinds: Vec<_> = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap())
            .collect();
        assert_eq!(kinds, ["drop", "forward"]);
    }
}
