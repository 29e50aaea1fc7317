//! Captures of what passes a device, in a node's or a pod's network, by
//! tcpdump and decoded.
//!
//! A capture runs before it is returned. Ending it loses nothing: it waits
//! until tcpdump has handled every packet that the kernel gave it. The file
//! is kept for a failed test and removed otherwise.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32, atomic::Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cluster::Cluster,
    error::{IoContext, Result},
    paths,
    pcap::{self, Captured},
    pod::Pod,
    wait::await_condition,
};

/// Tells captures of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running capture. Dropped without [`Capture::finish`], it ends too.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
    /// What tcpdump said so far, line by line.
    said: Arc<Mutex<Vec<String>>>,
}

/// Kilobytes of a capture's ring. A slot is as long as the longest packet, 64 KiB where
/// the device offloads segmentation, so this is 1,024 packets on a busy machine.
const BUFFER: u32 = 65_536;

impl Cluster {
    /// Captures on a device of a node (or of `world` or `switch`), by a
    /// filter of pcap-filter(7); an empty one takes everything.
    ///
    /// # Errors
    /// There is no such node or device, or the filter is wrong.
    pub fn capture(&self, node: &str, device: &str, filter: &str) -> Result<Capture> {
        let machine = self.any_machine(node)?;
        self.start_capture(machine.network_command("tcpdump")?, node, device, filter)
    }

    /// Captures on a device inside a pod's network.
    ///
    /// # Errors
    /// The pod does not run, or as [`Cluster::capture`].
    pub fn capture_in_pod(&self, pod: &Pod, device: &str, filter: &str) -> Result<Capture> {
        self.start_capture(pod.network_command("tcpdump"), pod.name(), device, filter)
    }

    fn start_capture(
        &self,
        mut tcpdump: Command,
        place: &str,
        device: &str,
        filter: &str,
    ) -> Result<Capture> {
        let dir = self.paths.root().join("captures");
        fs::create_dir_all(&dir).what(|| format!("make {}", dir.display()))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = dir.join(format!(
            "{}-{number}-{place}-{device}.pcap",
            std::process::id()
        ));
        let buffer = BUFFER.to_string();
        tcpdump
            .args([
                "-i",
                device,
                "-n",
                "-U",
                "--immediate-mode",
                "-Z",
                "root",
                "-B",
                &buffer,
                "-w",
            ])
            .arg(&file)
            .arg(filter);
        let mut child = tcpdump
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .what(|| "start tcpdump".to_owned())?;
        let said = Arc::new(Mutex::new(Vec::new()));
        if let Some(pipe) = child.stderr.take() {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    said.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                }
            });
        }
        let mut capture = Capture { child, file, said };
        let what = format!("tcpdump listens on {device} of {place}");
        await_condition(&what, Duration::from_secs(10), || {
            let said = capture.said().join(" | ");
            if said.contains("listening on") {
                Ok(Some(()))
            } else {
                Err(said)
            }
        })
        .inspect_err(|_| {
            let _ended = capture.child.kill();
        })?;
        Ok(capture)
    }
}

impl Capture {
    fn said(&self) -> Vec<String> {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process(pid, signal);
        }
    }

    /// The packets seen until now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn packets(&self) -> Result<Vec<Captured>> {
        let bytes = fs::read(&self.file).what(|| format!("read {}", self.file.display()))?;
        pcap::parse(&bytes)
    }

    /// Waits until the packets seen fulfil a condition, and returns them.
    ///
    /// # Errors
    /// They do not before the deadline; the text lists the last of them.
    pub fn await_packets(
        &self,
        what: &str,
        deadline: Duration,
        mut enough: impl FnMut(&[Captured]) -> bool,
    ) -> Result<Vec<Captured>> {
        await_condition(what, deadline, || {
            let packets = self.packets().map_err(|e| e.to_string())?;
            if enough(&packets) {
                return Ok(Some(packets));
            }
            let last: Vec<String> = packets
                .iter()
                .rev()
                .take(8)
                .rev()
                .map(|c| c.packet.to_string())
                .collect();
            Err(format!(
                "{} packets, the last: {}",
                packets.len(),
                last.join("; ")
            ))
        })
    }

    /// Ends the capture and returns every packet of it.
    ///
    /// # Errors
    /// tcpdump does not come to an end, or the kernel dropped packets that
    /// it should have seen.
    pub fn finish(mut self) -> Result<Vec<Captured>> {
        self.drain()?;
        self.signal(Signal::INT);
        self.child.wait().what(|| "wait for tcpdump".to_owned())?;
        self.packets()
    }

    /// Waits until tcpdump has written all that the kernel has for it: on
    /// SIGUSR1 it says how many it captured and how many passed its filter.
    ///
    /// The second figure may stay ahead for ever: it counts what came between
    /// the opening of the socket and the setting of the filter, which libpcap
    /// throws away. So figures that stand still for some answers are the end
    /// too; tcpdump reads at once (immediate mode) whenever it is awake.
    fn drain(&self) -> Result<()> {
        const STANDSTILL: usize = 10;
        let mut last = (0, 0);
        let mut same = 0;
        await_condition(
            "tcpdump has written all packets",
            Duration::from_secs(10),
            || {
                let before = self.said().len();
                self.signal(Signal::USR1);
                let line = await_condition("tcpdump's figures", Duration::from_secs(5), || {
                    let said = self.said();
                    Ok(said
                        .get(before..)
                        .and_then(|new| new.iter().find(|line| figures(line).is_some()).cloned()))
                })
                .map_err(|e| e.to_string())?;
                let (captured, received, dropped) =
                    figures(&line).ok_or_else(|| format!("cannot read {line:?}"))?;
                if dropped > 0 {
                    return Err(format!(
                        "the kernel dropped {dropped} packets of the capture"
                    ));
                }
                same = if last == (captured, received) {
                    same + 1
                } else {
                    0
                };
                last = (captured, received);
                if captured >= received || same >= STANDSTILL {
                    Ok(Some(()))
                } else {
                    Err(line)
                }
            },
        )
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::INT);
            let _ended = self.child.wait();
        }
        if thread::panicking() {
            let dir = paths::output();
            if let (Ok(()), Some(name)) = (fs::create_dir_all(&dir), self.file.file_name()) {
                // A failing test fails for its own reason, not for this.
                let _not_kept = fs::copy(&self.file, dir.join(name));
            }
        }
        let _gone = fs::remove_file(&self.file);
    }
}

/// Captured, received and dropped, of "tcpdump: 3 packets captured, 3 packets
/// received by filter, 0 packets dropped by kernel".
fn figures(line: &str) -> Option<(u64, u64, u64)> {
    // One is "1 packet".
    let line = line.replace(" packet ", " packets ");
    let number = |before: &str| {
        let (head, _) = line.split_once(before)?;
        head.split(|c: char| !c.is_ascii_digit())
            .rfind(|part| !part.is_empty())?
            .parse()
            .ok()
    };
    Some((
        number(" packets captured")?,
        number(" packets received by filter")?,
        number(" packets dropped by kernel")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn the_figures_of_tcpdump_are_read() {
        let line = "tcpdump: 3 packets captured, 14 packets received by filter, \
                    0 packets dropped by kernel";
        assert_eq!(figures(line), Some((3, 14, 0)));
        let one = "1 packet captured, 1 packet received by filter, 0 packets dropped by kernel";
        assert_eq!(figures(one), Some((1, 1, 0)));
        assert_eq!(figures("tcpdump: listening on eth0"), None);
    }
}
