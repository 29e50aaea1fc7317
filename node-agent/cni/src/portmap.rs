//! Removes the rules that the plugin portmap made for pods of an earlier release. Its
//! DEL needs the configuration of the ADD, which a chain without portmap does not pass;
//! so the agent keeps that configuration for veer-cni.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use veer_agent_api::{Attachment, PORTMAP_RULES};

use crate::config::Config;
use crate::error::Error;

/// Why the rules are still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// A file or the plugin cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The configuration or the plugin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The plugin is missing.
    #[error("it is not in CNI_PATH")]
    Absent,
    /// The plugin did not end.
    #[error("it took more than {} s", DEADLINE.as_secs())]
    Timeout,
    /// The plugin's own message.
    #[error("{0}")]
    Refused(String),
}

/// Adds the path to an I/O error.
fn at(path: &Path) -> impl Fn(io::Error) -> Failed {
    let path = path.to_owned();
    move |source| Failed::Io {
        path: path.clone(),
        source,
    }
}

/// How long it may take: it waits for the lock of iptables.
const DEADLINE: Duration = Duration::from_mins(1);
/// Time between looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Has portmap remove its rules for a sandbox, where there are some. Its
/// environment is the plugin's own.
pub(crate) fn remove(config: &Config, attachment: &Attachment) -> Result<(), Error> {
    let note = config.on_node(PORTMAP_RULES).join(attachment.file_name());
    take_back(&note).map_err(|problem| Error::Portmap {
        container: attachment.container_id.clone(),
        problem,
    })
}

fn take_back(note: &Path) -> Result<(), Failed> {
    let input = match fs::read(note) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(at(note))?,
    };
    run(&program().ok_or(Failed::Absent)?, &input)?;
    fs::remove_file(note).map_err(at(note))
}

fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("CNI_PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join("portmap"))
        .find(|path| path.is_file())
}

fn run(program: &Path, input: &[u8]) -> Result<(), Failed> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(at(program))?;
    // Less than a pipe holds, both ways. A program that ends early gives its reason in its answer.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    if !ended(&mut child).map_err(at(program))? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Failed::Timeout);
    }
    let output = child.wait_with_output().map_err(at(program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    Err(Failed::Refused(said.trim().to_owned()))
}

/// Whether it ended in time.
fn ended(child: &mut Child) -> io::Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        thread::sleep(LOOK);
    }
    Ok(false)
}
