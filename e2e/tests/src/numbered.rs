//! Numbered datagrams from a pod to sockets of ours in other pods, each answered with its
//! number and the name of the pod that got it: what became of every one is known, and
//! when it was sent. The flows are opened one by one, so that a test can choose which
//! pods they begin with; the load generator's cannot be.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use veer_e2e_cluster::{Family, attempt, patience};

use crate::{client, pods::Pod, site::Site};

/// The port in the pods that answer.
pub const PORT: u16 = 7007;
/// Octets that a socket holds: a slow moment of this process must not lose a datagram.
const BUFFER: usize = 8 << 20;
/// Between two rounds, in which each flow sends one datagram.
const PACE: Duration = Duration::from_millis(20);
/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// What has not been answered by then is lost.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// Longer than any datagram here.
const LONGEST: usize = 64;

/// Sockets in pods that answer until this is dropped.
#[derive(Debug)]
pub struct Servers {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Answers in each pod, at its address of each family. Pods are known by their place
    /// in the list.
    pub fn start(pods: &[Pod], families: &[Family]) -> Result<Self> {
        let mut servers = Self {
            ended: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for (who, pod) in pods.iter().enumerate() {
            for family in families {
                let own = SocketAddr::from((pod.address_in(*family)?, PORT));
                let socket = pod.site.within(|| Ok(UdpSocket::bind(own)?));
                let socket = socket.with_context(|| format!("listen at {own}"))?;
                setsockopt(&socket, RcvBufForce, &BUFFER)?;
                socket.set_read_timeout(Some(LOOK))?;
                let ended = Arc::clone(&servers.ended);
                let answers = move || answer(&socket, who, &ended);
                servers.threads.push(thread::spawn(answers));
            }
        }
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What one that panicked did not answer has been counted.
            let _panicked = thread.join();
        }
    }
}

/// Answers until `ended`. The pod may be gone before: nothing comes any more then.
fn answer(socket: &UdpSocket, who: usize, ended: &AtomicBool) {
    let mut buffer = [0; LONGEST];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let number = String::from_utf8_lossy(&buffer[..length]);
            // An answer that cannot be sent is missing where it is counted.
            let _lost = socket.send_to(format!("{number} {who}").as_bytes(), from);
        }
    }
}

/// The number of a datagram, and who answered it.
fn parsed(answer: &[u8]) -> Result<(usize, usize)> {
    let text = String::from_utf8_lossy(answer);
    let numbers = text
        .split_once(' ')
        .and_then(|(number, who)| Some((number.parse().ok()?, who.parse().ok()?)));
    numbers.with_context(|| format!("answered {text:?}"))
}

/// A flow of datagrams: one socket that sends to one address.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
    /// Who answered its first datagram.
    pub first: usize,
}

impl Flow {
    /// Opens one with its first datagram, which must be answered.
    pub fn open(from: &Site, to: SocketAddr) -> Result<Self> {
        // Not connected: an ICMP error would take the place of the next datagram.
        let socket = from.within(|| client::udp_socket(to.ip()))?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(attempt()))?;
        socket.send_to(b"0", to)?;
        let mut buffer = [0; LONGEST];
        let (length, _) = socket
            .recv_from(&mut buffer)
            .with_context(|| format!("{} → udp {to}: the first datagram", from.name))?;
        let (_, first) = parsed(&buffer[..length])?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to, first })
    }
}

/// A datagram.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Place of its flow in the list.
    pub flow: usize,
    /// It was sent then or a moment later.
    pub at: Instant,
    /// Who answered it; `None`: it is lost, or its answer is.
    pub by: Option<usize>,
}

/// Sends over some flows as long as `change` runs, which is told how many datagrams have
/// been answered. Returns all datagrams in the order in which they were sent.
pub fn during<T>(
    flows: &[Flow],
    change: impl FnOnce(&AtomicUsize) -> Result<T>,
) -> Result<(T, Vec<Sent>)> {
    let (answered, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(flows, &answered, &ended));
        let changed = change(&answered);
        ended.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("a sender panicked"))?;
        // The change's own error says more than what came of it.
        Ok((changed?, sent?))
    })
}

fn send(flows: &[Flow], answered: &AtomicUsize, ended: &AtomicBool) -> Result<Vec<Sent>> {
    let mut all: Vec<Sent> = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        for (index, flow) in flows.iter().enumerate() {
            let number = all.len().to_string();
            all.push(Sent {
                flow: index,
                at: Instant::now(),
                by: None,
            });
            // One that cannot be sent is not answered either.
            let _lost = flow.socket.send_to(number.as_bytes(), flow.to);
        }
        thread::sleep(PACE);
        collect(flows, &mut all, answered)?;
    }
    let end = Instant::now() + UNDER_WAY * patience();
    let last = all.len().saturating_sub(flows.len());
    while Instant::now() < end && all[last..].iter().any(|s| s.by.is_none()) {
        thread::sleep(PACE);
        collect(flows, &mut all, answered)?;
    }
    Ok(all)
}

/// Takes the answers that have come. Each must come from where its datagram went.
fn collect(flows: &[Flow], all: &mut [Sent], answered: &AtomicUsize) -> Result<()> {
    let mut buffer = [0; LONGEST];
    for (index, flow) in flows.iter().enumerate() {
        while let Ok((length, from)) = flow.socket.recv_from(&mut buffer) {
            ensure!(from == flow.to, "asked {}, answered by {from}", flow.to);
            let (number, who) = parsed(&buffer[..length])?;
            let sent = all.get_mut(number).filter(|s| s.flow == index);
            let sent = sent.with_context(|| format!("{number} is no datagram of the flow"))?;
            ensure!(sent.by.is_none(), "datagram {number} was answered twice");
            sent.by = Some(who);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_number_and_who_gave_it() {
        assert_eq!(parsed(b"17 1").expect("an answer"), (17, 1));
        for wrong in ["", "17", "17 ", "x 1"] {
            assert!(parsed(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
