//! `veer identity list`: numbers and the labels behind them, the reserved ones
//! first.

use veer_agent_api::IdentityRow;

use crate::output::columns;

pub(super) fn table(rows: &[IdentityRow]) -> String {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|row| row.identity);
    let cells = rows.into_iter().map(|row| {
        [
            row.identity.to_string(),
            row.state.clone(),
            row.labels.join("\n"),
        ]
    });
    columns(["IDENTITY", "STATE", "LABELS"], cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_has_its_line_and_numbers_are_in_order() {
        let row = |identity, labels: &[&str]| IdentityRow {
            identity,
            state: "Active".to_owned(),
            labels: labels.iter().map(ToString::to_string).collect(),
        };
        let table = table(&[row(40123, &["app=a", "tier=b"]), row(1, &["reserved:host"])]);
        let lines: Vec<_> = table.lines().skip(1).map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "1         Active  reserved:host",
                "40123     Active  app=a",
                "tier=b"
            ]
        );
    }
}
