//! Tables as kubectl prints them, JSON and YAML, and the way to standard output.

use std::io::{self, Write};

use anyhow::Context;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::arguments::Format;

/// `value` in the wanted format; `table` makes the one for people.
pub(crate) fn render<T: Serialize>(
    value: &T,
    format: Format,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<String> {
    match format {
        Format::Table => Ok(table(value)),
        Format::Json => serde_json::to_string_pretty(value).context("cannot write JSON"),
        Format::Yaml => serde_yaml::to_string(value).context("cannot write YAML"),
    }
}

/// Rows under a header, in columns two spaces apart, without lines. A cell with
/// line ends takes several lines.
pub(crate) fn columns<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// `rows` as [`columns`], or `nothing` when there is none.
pub(crate) fn columns_or<const N: usize>(
    nothing: &str,
    header: [&str; N],
    rows: Vec<[String; N]>,
) -> String {
    if rows.is_empty() {
        nothing.to_owned()
    } else {
        columns(header, rows)
    }
}

/// Names and values, one per line, the values aligned. Host routing is the
/// longest name there is, so that its line reads `Host Routing: BPF`.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default()
        + 1;
    let line = |(name, value): &(&str, String)| format!("{:width$} {value}", format!("{name}:"));
    fields.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `text`, or a dash when there is none.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

/// `values` with a comma between them, or a dash when there is none.
pub(crate) fn listed<T: ToString>(values: &[T]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    or_dash(&texts.join(", "))
}

/// A time in seconds as kubectl prints ages.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        172_800.. => format!("{}d", seconds / 86_400),
    }
}

/// What becomes of the next output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is wanted.
    Wanted,
    /// The reader of standard output is gone.
    Unwanted,
}

/// What follows from an attempt to write to standard output. A reader that ends early
/// (`veer … | head`) is not an error.
pub(crate) fn printed(result: io::Result<()>) -> anyhow::Result<Next> {
    match result {
        Ok(()) => Ok(Next::Wanted),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Next::Unwanted),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// Writes a text and the end of its last line to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<Next> {
    let mut stdout = io::stdout().lock();
    printed(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_trailing_spaces() {
        let rows = [
            ["10.0.1.7".to_owned(), "a".to_owned()],
            ["10.0.1.70".into(), "b\nc".into()],
        ];
        assert_eq!(
            columns(["ADDRESS", "LABELS"], rows),
            "ADDRESS    LABELS\n10.0.1.7   a\n10.0.1.70  b\n           c"
        );
    }
}
