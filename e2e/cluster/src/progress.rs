//! One line per step on standard error, with the time since the start and the
//! time the step took: whoever waits for a cluster sees where it is.

use std::{io::Write, time::Instant};

/// The steps of one operation on a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    start: Instant,
    quiet: bool,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            quiet: false,
        }
    }

    /// Prints nothing.
    pub fn quiet() -> Self {
        Self {
            start: Instant::now(),
            quiet: true,
        }
    }

    /// Reports a finished step.
    pub fn done(&self, step: &str) {
        if !self.quiet {
            let line = format!("[{:6.1} s] {step}\n", self.start.elapsed().as_secs_f64());
            // Progress is a courtesy: a closed standard error is no failure.
            let _closed = std::io::stderr().write_all(line.as_bytes());
        }
    }
}
