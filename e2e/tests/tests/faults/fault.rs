//! A fault, and the table of what held.

use std::{
    env, fs,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets::ASCII_MARKDOWN};
use veer_e2e_tests::{
    lab::{Mode, repository},
    load,
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
    /// Whether it is one of those that `make test` runs too.
    pub(crate) in_short: bool,
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
            in_short: false,
            run: Box::new(run),
        }
    }

    /// The same while the host's stack translates what pods send to Services.
    pub(crate) fn by_kube_proxy(mut self) -> Self {
        self.needs = self.needs.by_kube_proxy();
        self
    }

    /// The same as one of the short form's.
    pub(crate) fn short(self) -> Self {
        self.short_if(true)
    }

    /// The same when `it_is`.
    pub(crate) fn short_if(mut self, it_is: bool) -> Self {
        self.in_short = it_is;
        self
    }

    /// Injects it, and notes what held.
    pub(crate) fn run(&self, scene: &Scene) -> Result<()> {
        // Before anything is disturbed.
        let outcome = load::limit(&scene.lab).and_then(|_| (self.run)(scene));
        let (what, figure) = match &outcome {
            Ok(held) => (held.what.clone(), held.figure.clone()),
            // All of it is in the test's own output.
            Err(error) => (
                "FAILED".to_owned(),
                format!("{error:#}").chars().take(200).collect(),
            ),
        };
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        // One line per fault, whatever an error says.
        let cell = |text: String| text.replace('\n', " ").replace('|', "/");
        rows.push([self.name.clone(), self.injected.clone(), what, figure].map(cell));
        outcome.map(|_| ())
    }
}

/// Of the table.
const HEADER: [&str; 4] = ["fault", "how it is injected", "what held", "figure"];

static ROWS: Mutex<Vec<[String; 4]>> = Mutex::new(Vec::new());

/// Rows as a table of Markdown.
fn table(rows: &[[String; 4]]) -> String {
    let mut table = Table::new();
    table
        .load_style(ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(HEADER);
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// The rows of a table of Markdown.
fn rows_of(text: &str) -> Vec<[String; 4]> {
    let row = |line: &str| {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
        let cells: Vec<String> = cells.map(|c| c.trim().to_owned()).collect();
        <[String; 4]>::try_from(cells).ok()
    };
    let rows = text.lines().filter_map(row);
    rows.filter(|r| r[0] != HEADER[0] && !r[0].starts_with('-'))
        .collect()
}

/// When and on what the last of the rows were made.
fn conditions() -> Result<String> {
    let said = |program: &str, words: &[&str]| -> Result<String> {
        let out = Command::new(program).args(words).output();
        let out = out.with_context(|| format!("start {program}"))?.stdout;
        Ok(String::from_utf8_lossy(&out).trim().to_owned())
    };
    let kernel = said("uname", &["-r"])?;
    let kernel: Vec<&str> = kernel.split('.').take(2).collect();
    Ok(format!(
        "Last written on {}, on {} virtual CPUs with kernel {}",
        said("date", &["+%F"])?,
        std::thread::available_parallelism()?,
        kernel.join(".")
    ))
}

/// Whether the documents are to be written.
pub(crate) fn writes() -> bool {
    env::var_os("VEER_FAULTS_WRITE").is_some_and(|v| !v.is_empty())
}

/// Prints the table; brings docs/faults.md up to date when that is wanted: rows
/// of faults that did not run now stay.
pub(crate) fn report() -> Result<()> {
    let rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if rows.is_empty() {
        return Ok(());
    }
    eprintln!("\n{}\n", table(&rows));
    if !writes() {
        return Ok(());
    }
    let path = repository().join("docs/faults.md");
    let mut all = rows_of(&fs::read_to_string(&path).unwrap_or_default());
    all.retain(|old| rows.iter().all(|new| new[0] != old[0]));
    all.extend(rows);
    all.sort();
    let text = format!(
        "# Faults, and what held\n\nWritten by `make test-faults`: each fault is injected into the \
         three-node cluster while the load of `e2e/load` runs between pods, nodes, services and \
         the world. Lost, doubled or altered data or a reset make a fault fail. Times and gaps \
         are as measured on the machine named below, and judge nothing. {}.\n\n{}\n",
        conditions()?,
        table(&all)
    );
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
