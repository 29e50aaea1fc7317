//! Clients and servers of [`crate::services`]: connections and round trips of one octet.
//!
//! What one translator remembers of a connection that is over, another one goes by for up
//! to two minutes. So each has ports of its own at the same backends, and a client's port
//! rests before it is used again: every connection is a new flow to everybody.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, socket_with,
        sockopt::{Timeout, set_socket_linger, set_socket_timeout},
    },
    thread::{CpuSet, sched_setaffinity},
};
use veer_e2e_cluster::{attempt, await_condition};
use veer_e2e_tests::pods::Pod;

use crate::report::By;

/// Where a client connects to.
pub(crate) struct Target {
    /// Where connections are opened and closed.
    pub(crate) brief: SocketAddr,
    /// Where one stays.
    pub(crate) lasting: SocketAddr,
    /// What the right server sends.
    pub(crate) answer: u8,
    /// The client's.
    pub(crate) ports: Ports,
}

/// A client's ports, which take turns.
pub(crate) struct Ports {
    used: Vec<Option<Instant>>,
    next: usize,
}

impl Ports {
    /// veer takes source ports from 61,000 on for flows of its own choice.
    const ALL: Range<u16> = 10_000..60_000;
    /// What is known of a connection that was reset is known for two minutes.
    const REST: Duration = Duration::from_secs(125);
    /// A measurement needs some.
    const ENOUGH: usize = 5_000;

    /// All of them, rested.
    pub(crate) fn new() -> Self {
        Self {
            used: vec![None; Self::ALL.len()],
            next: 0,
        }
    }

    /// Whether the port whose turn is after so many others has rested.
    fn is_rested(&self, after: usize, now: Instant) -> bool {
        let used = self.used[(self.next + after) % self.used.len()];
        used.is_none_or(|at| now.saturating_duration_since(at) >= Self::REST)
    }

    /// The next port; `None`: it has not rested yet.
    fn take(&mut self, now: Instant) -> Option<u16> {
        if !self.is_rested(0, now) {
            return None;
        }
        self.used[self.next] = Some(now);
        let port = Self::ALL.start + u16::try_from(self.next).ok()?;
        self.next = (self.next + 1) % Self::ALL.len();
        Some(port)
    }
}

/// Has the calling thread run on the CPU that client and servers share: the length of the
/// path is measured, not the wake-up of a CPU.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    Ok(sched_setaffinity(None, &cpus)?)
}

/// Connects from a port; 0: from any. To close it is to reset it, which frees the port.
fn open(from: u16, to: SocketAddr) -> Result<TcpStream> {
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    let stream = TcpStream::from(socket_with(family, kind, SocketFlags::CLOEXEC, None)?);
    stream.set_read_timeout(Some(attempt()))?;
    // It bounds the connect, too.
    stream.set_write_timeout(Some(attempt()))?;
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    bind(&stream, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, from))?;
    connect(&stream, &to)?;
    Ok(stream)
}

fn microseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// Connections one after the other: microseconds of each, and the time of all. They end
/// early where no port has rested.
pub(crate) fn connections(to: &mut Target, time: Duration) -> Result<(Vec<f64>, Duration)> {
    pin()?;
    await_condition("a client's ports have rested", Ports::REST, || {
        let enough = to.ports.is_rested(Ports::ENOUGH, Instant::now());
        Ok(enough.then_some(()))
    })?;
    let mut each = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let begun = Instant::now();
        let Some(port) = to.ports.take(begun) else {
            break;
        };
        let mut byte = [u8::MAX];
        open(port, to.brief)
            .and_then(|mut stream| Ok(stream.read_exact(&mut byte)?))
            .with_context(|| format!("connection {} from port {port}", each.len()))?;
        each.push(microseconds(begun));
        ensure!(byte == [to.answer], "another server answered: {byte:?}");
    }
    Ok((each, start.elapsed()))
}

/// Microseconds of each round trip on one connection.
pub(crate) fn round_trips(to: &Target, time: Duration) -> Result<Vec<f64>> {
    pin()?;
    let mut stream = open(0, to.lasting)?;
    stream.set_nodelay(true)?;
    let mut each = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let begun = Instant::now();
        let mut byte = [u8::MAX];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        each.push(microseconds(begun));
        ensure!(byte == [to.answer], "another server answered: {byte:?}");
    }
    Ok(each)
}

/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Servers in pods, until dropped. Each sends the number of its pod.
pub(crate) struct Servers {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What is done with a connection.
type Serve = fn(TcpStream, u8, &AtomicBool);

impl Servers {
    /// One of each kind, for each translator, in each pod.
    pub(crate) fn start(pods: &[Pod]) -> Result<Self> {
        let mut servers = Self {
            ended: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for (answer, pod) in (0..).zip(pods) {
            for by in By::ALL {
                let serve: [Serve; 2] = [greet, converse];
                for (port, serve) in by.ports().into_iter().zip(serve) {
                    servers.add(pod, port, answer, serve)?;
                }
            }
        }
        Ok(servers)
    }

    fn add(&mut self, pod: &Pod, port: u16, answer: u8, serve: Serve) -> Result<()> {
        let own = SocketAddr::from((pod.address, port));
        let listener = pod.site.within(|| Ok(TcpListener::bind(own)?));
        let listener = listener.with_context(|| format!("listen at {own}"))?;
        // Its connections have the same.
        set_socket_timeout(&listener, Timeout::Recv, Some(LOOK))?;
        let ended = Arc::clone(&self.ended);
        self.threads.push(thread::spawn(move || {
            // A client that cannot be pinned either says so.
            let _anywhere = pin();
            while !ended.load(Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    serve(stream, answer, &ended);
                }
            }
        }));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // What one that panicked did not answer has failed.
            let _panicked = thread.join();
        }
    }
}

fn greet(mut stream: TcpStream, answer: u8, _ended: &AtomicBool) {
    // The client misses what does not arrive.
    let _lost = stream.write_all(&[answer]);
}

/// Answers every octet until the client is gone.
fn converse(mut stream: TcpStream, answer: u8, ended: &AtomicBool) {
    let _slower = stream.set_nodelay(true);
    while !ended.load(Relaxed) {
        match stream.read(&mut [0]) {
            Ok(0) => return,
            Ok(_) => {
                if stream.write_all(&[answer]).is_err() {
                    return;
                }
            }
            // Nothing came for a while.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_port_is_taken_again_when_it_has_rested() {
        let mut ports = Ports::new();
        let now = Instant::now();
        let all: BTreeSet<u16> = (0..Ports::ALL.len())
            .filter_map(|_| ports.take(now))
            .collect();
        assert_eq!(all.len(), Ports::ALL.len());
        assert!(all.iter().all(|port| Ports::ALL.contains(port)));
        assert_eq!(ports.take(now), None);
        assert!(!ports.is_rested(Ports::ENOUGH, now));
        assert_eq!(ports.take(now + Ports::REST), Some(Ports::ALL.start));
    }

    #[test]
    fn no_two_translators_meet_at_a_port() {
        let ports: BTreeSet<u16> = By::ALL.into_iter().flat_map(By::ports).collect();
        assert_eq!(ports.len(), 6);
    }
}
