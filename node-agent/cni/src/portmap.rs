//! Rules of the plugin portmap for pods of an earlier release, which left hostPorts
//! to it. Its DEL removes them only where it is told what they are for, which a
//! chain without it cannot do; so the agent leaves that for veer-cni.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use veer_agent_api::{Attachment, PORTMAP_RULES};

use crate::config::Config;
use crate::error::Error;

/// How long it may take: it waits for the lock of iptables.
const DEADLINE: Duration = Duration::from_mins(1);
/// Time between looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Has portmap remove its rules for a sandbox, where there are some. Its
/// environment is the plugin's own.
pub(crate) fn remove(config: &Config, attachment: &Attachment) -> Result<(), Error> {
    let note = config.on_node(PORTMAP_RULES).join(attachment.file_name());
    let error = |problem: String| Error::Portmap {
        container: attachment.container_id.clone(),
        problem,
    };
    let input = match fs::read(&note) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|e| error(format!("{}: {e}", note.display())))?,
    };
    let program = program().ok_or_else(|| error("it is not in CNI_PATH".to_owned()))?;
    run(&program, &input).map_err(error)?;
    fs::remove_file(&note).map_err(|e| error(format!("{}: {e}", note.display())))
}

fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("CNI_PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join("portmap"))
        .find(|path| path.is_file())
}

fn run(program: &PathBuf, input: &[u8]) -> Result<(), String> {
    let words = |e: io::Error| format!("{}: {e}", program.display());
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(words)?;
    // Less than a pipe holds, both ways. What ends early tells why in its answer.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    if !ended(&mut child).map_err(words)? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("it took more than {} s", DEADLINE.as_secs()));
    }
    let output = child.wait_with_output().map_err(words)?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
