//! A fault, and the table of what held.

use std::{
    fmt::Write,
    fs,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets::ASCII_MARKDOWN};
use veer_e2e_tests::{
    lab::{Mode, repository},
    scene::{Needs, Scene},
};

/// Injects a fault, and says what held.
type Run = Box<dyn Fn(&Scene) -> Result<Held> + Send>;

/// What is done to the cluster, and what must hold meanwhile.
pub(crate) struct Fault {
    /// `group::scenario`.
    pub(crate) name: String,
    /// How it is injected, for the table.
    pub(crate) injected: String,
    /// What it needs of the cluster.
    pub(crate) needs: Needs,
    run: Run,
}

/// What held, and the figure that shows it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// In a few words.
    pub(crate) what: String,
    /// As measured.
    pub(crate) figure: String,
}

impl Held {
    /// Both in words.
    pub(crate) fn new(what: impl Into<String>, figure: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figure: figure.into(),
        }
    }
}

impl Fault {
    /// A fault on a cluster in a mode.
    pub(crate) fn new(
        name: impl Into<String>,
        injected: impl Into<String>,
        mode: Mode,
        run: impl Fn(&Scene) -> Result<Held> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            injected: injected.into(),
            needs: Needs::mode(mode),
            run: Box::new(run),
        }
    }

    /// Injects it, and notes what held.
    pub(crate) fn run(&self, scene: &Scene) -> Result<()> {
        let outcome = (self.run)(scene);
        let (what, figure) = match &outcome {
            Ok(held) => (held.what.clone(), held.figure.clone()),
            Err(error) => ("FAILED".to_owned(), format!("{error:#}")),
        };
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push([self.name.clone(), self.injected.clone(), what, figure]);
        outcome.map(|_| ())
    }
}

static ROWS: Mutex<Vec<[String; 4]>> = Mutex::new(Vec::new());

/// The table of this run: empty without faults.
fn table() -> String {
    let rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table
        .load_style(ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["fault", "how it is injected", "what held", "figure"]);
    for row in rows.iter() {
        // One line per fault, whatever an error says.
        table.add_row(
            row.iter()
                .map(|cell| cell.replace('\n', " ").replace('|', "/")),
        );
    }
    table.to_string()
}

/// Prints the table; writes it to docs/faults.md when `write` says so.
pub(crate) fn report(write: bool) -> Result<()> {
    let table = table();
    if table.is_empty() {
        return Ok(());
    }
    eprintln!("\n{table}\n");
    if write {
        let path = repository().join("docs/faults.md");
        let mut text = String::from(
            "# Faults, and what held\n\nWritten by `make test-faults`: each fault is injected into \
             the three-node cluster while the load of `e2e/load` runs between pods, nodes, \
             services and the world.\n\n",
        );
        let _infallible = writeln!(text, "{table}");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
