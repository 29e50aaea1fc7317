//! Live progress: a spinner while a step runs, a line with its time after.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// The steps of one run.
#[derive(Debug)]
pub(crate) struct Steps {
    start: Instant,
}

impl Steps {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Runs a step under a spinner and says how long it took.
    pub(crate) fn run<T>(&self, what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("         {spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        let done = step();
        bar.finish_and_clear();
        let mark = if done.is_ok() { '✔' } else { '✘' };
        let line = format!(
            "[{:5.1} s] {mark} {what} ({:.1} s)\n",
            self.start.elapsed().as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
        // Progress is a courtesy: a closed standard error is no failure.
        let _closed = std::io::stderr().write_all(line.as_bytes());
        done
    }
}
