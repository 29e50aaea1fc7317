//! Running commands: output captured, status checked, the command line in the
//! error.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
};

use crate::error::{Error, IoContext, Result};

/// What a command printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
}

/// The command line as a person would type it.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs to the end and returns what was printed, whatever the status.
///
/// # Errors
/// The program cannot be started.
pub(crate) fn run_any(command: &mut Command) -> Result<Output> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .what(|| format!("start `{}`", line(command)))?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        code: out.status.code().unwrap_or(-1),
    })
}

/// Runs to the end.
///
/// # Errors
/// The program cannot be started or its status is not 0.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    run_with_input(command, &[])
}

/// Runs to the end with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .what(|| format!("start `{}`", line(command)))?;
    let stdin = child.stdin.take();
    let out = thread::scope(|scope| {
        // Written beside the reading: a program that prints much before it
        // has read all would otherwise wait for us and we for it.
        scope.spawn(move || {
            if let Some(mut pipe) = stdin {
                // A program may end without reading; its status says more.
                let _unread = pipe.write_all(input);
            }
        });
        child.wait_with_output()
    })
    .what(|| format!("wait for `{}`", line(command)))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() {
        return Ok(Output {
            stdout,
            stderr,
            code: 0,
        });
    }
    let said = if stderr.trim().is_empty() {
        &stdout
    } else {
        &stderr
    };
    Err(Error::Command {
        command: line(command),
        status: out.status,
        output: said.trim().to_owned(),
    })
}

/// Runs a program with arguments to the end.
///
/// # Errors
/// As [`run`].
pub(crate) fn sh(words: &[&str]) -> Result<Output> {
    let (program, args) = words
        .split_first()
        .ok_or_else(|| Error::State("an empty command".to_owned()))?;
    run(Command::new(program).args(args))
}
