//! Datagrams sent steadily to a pod that echoes them, for tests of what a
//! change costs: each is numbered, so a lost, doubled or late one is known.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use anyhow::{Context, Result, anyhow};

use crate::site::Site;

/// Between two datagrams.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long the last answers are waited for.
const LAST: Duration = Duration::from_secs(1);

/// A stream that runs until it is stopped.
#[derive(Debug)]
pub struct Stream {
    name: String,
    /// Where the server is, and what its sockets had no room for before.
    server: (Site, u64),
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Result<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: Vec<u32>,
    longest_gap: Duration,
}

/// What a stream came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// From where to where.
    pub name: String,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams answered, each counted once.
    pub answered: u64,
    /// Answers that came more than once.
    pub doubled: u64,
    /// Datagrams that reached the server's socket when that was full, by the
    /// kernel's counter: the server was slow, not the network.
    pub overflown: u64,
    /// Longest time between two answers.
    pub longest_gap: Duration,
}

impl Tally {
    /// Datagrams that the network lost.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.answered + self.overflown)
    }
}

/// Datagrams that sockets of a site had no room for, of all time
/// (`UdpRcvbufErrors`).
fn overflows(site: &Site) -> Result<u64> {
    let text = site.exec(&["cat", "/proc/net/snmp"])?.stdout;
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (lines.next(), lines.next());
    let mut pairs = names
        .unwrap_or_default()
        .split(' ')
        .zip(values.unwrap_or_default().split(' '));
    let found = pairs.find(|(name, _)| *name == "RcvbufErrors");
    let value = found.and_then(|(_, value)| value.parse().ok());
    value.with_context(|| format!("no RcvbufErrors in {}", site.name))
}

impl Stream {
    /// Starts sending from `from` to a netexec UDP server in `at`. Returns once
    /// the first answer came.
    pub fn start(from: &Site, to: SocketAddr, at: &Site) -> Result<Self> {
        let name = format!("{} → udp {to}", from.name);
        let socket = from.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(LAST))?;
        // A slow machine must not lose here what the network has delivered.
        setsockopt(&socket, RcvBufForce, &(16 << 20)).context("widen the receive buffer")?;
        socket.send(b"echo 0")?;
        socket
            .recv(&mut [0; 64])
            .with_context(|| format!("{name}: the first datagram"))?;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let receiving = socket.try_clone()?;
        let sender = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || send(&socket, &stop, &sent))
        };
        let receiver = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || receive(&receiving, &stop, &sent))
        };
        let server = (at.clone(), overflows(at)?);
        Ok(Self {
            name,
            server,
            stop,
            sent,
            sender,
            receiver,
        })
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the stream and counts.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = || anyhow!("a thread of the stream panicked");
        self.sender.join().map_err(|_| panicked())?;
        let mut seen = self.receiver.join().map_err(|_| panicked())??;
        let all = seen.answers.len();
        seen.answers.sort_unstable();
        seen.answers.dedup();
        let (site, before) = &self.server;
        let overflown = overflows(site)?.saturating_sub(*before);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Tally {
            name: self.name,
            sent: self.sent.load(Ordering::Relaxed),
            answered: count(seen.answers.len()),
            doubled: count(all - seen.answers.len()),
            overflown,
            longest_gap: seen.longest_gap,
        })
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool, sent: &AtomicU64) {
    let start = Instant::now();
    let mut number: u32 = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        // An ICMP error on the socket is a lost answer, counted as such.
        if socket.send(format!("echo {number}").as_bytes()).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        let due = INTERVAL * number;
        // The pace of the stream, not a wait for anything.
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, sent: &AtomicU64) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut last = Instant::now();
    let mut stopped: Option<Instant> = None;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    loop {
        let mut buffer = [0; 64];
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            if let Ok(number) = text.trim().parse() {
                seen.longest_gap = seen.longest_gap.max(last.elapsed());
                last = Instant::now();
                seen.answers.push(number);
            }
        }
        if stop.load(Ordering::Relaxed) {
            let since = stopped.get_or_insert_with(Instant::now);
            let missing = sent.load(Ordering::Relaxed) > seen.answers.len() as u64;
            if !missing || since.elapsed() > LAST {
                seen.longest_gap = seen.longest_gap.max(since.saturating_duration_since(last));
                return Ok(seen);
            }
        }
    }
}
