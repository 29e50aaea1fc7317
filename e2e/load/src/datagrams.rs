//! One end of a flow of datagrams: what it sends and when, and what has come.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    order::{FlowSpec, Progress},
    protocol::{HEAD, Head, Purpose},
    report::{End, Side},
    socket::{Arrival, LONGEST, Socket},
    tally::{Numbers, Pace, Tally},
};

/// How long greetings are answered at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// From one greeting to the next.
const AGAIN: Duration = Duration::from_millis(5);
/// Greetings from one port. Then another: what a service's rules made of the
/// first one, before they were complete, sticks to its port.
const PER_PORT: usize = 40;

/// Numbering and counting, the same at both ends.
#[derive(Debug)]
struct Ends {
    flow: u32,
    side: Side,
    size: usize,
    pace: Pace,
    seen: Numbers,
    tally: Tally,
}

impl Ends {
    fn new(flow: u32, end: Side, rate: u32, size: u16) -> Self {
        Self {
            flow,
            side: end,
            size: usize::from(size).clamp(HEAD, LONGEST),
            pace: Pace::new(rate),
            seen: Numbers::default(),
            tally: Tally::default(),
        }
    }

    fn head(&self, purpose: Purpose, number: u64) -> Head {
        Head {
            purpose,
            flow: self.flow,
            number,
            size: u16::try_from(self.size).unwrap_or(u16::MAX),
        }
    }

    /// Hands `send` the datagrams that are due. One that cannot be sent keeps
    /// its number and so is lost.
    fn send_due(&mut self, now: u64, mut send: impl FnMut(&[u8])) {
        let mut datagram = [0; LONGEST];
        for _ in 0..self.pace.due(now) {
            self.head(Purpose::Data, self.pace.sent)
                .write(&mut datagram);
            send(&datagram[..self.size]);
            self.pace.sent += 1;
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            flow: self.flow,
            side: self.side,
            sent: self.pace.sent,
            received: self.seen.distinct,
        }
    }

    fn report(&mut self) -> End {
        End {
            flow: self.flow,
            side: self.side,
            sent: self.pace.sent,
            received: self.seen.distinct,
            duplicated: self.seen.duplicated,
            reordered: self.seen.reordered,
            corrupted: 0,
            resets: Vec::new(),
            gaps: std::mem::take(&mut self.tally.gaps),
            timeline: std::mem::take(&mut self.tally.timeline),
        }
    }
}

/// The end that opened the flow.
#[derive(Debug)]
pub(crate) struct Client {
    socket: Socket,
    ends: Ends,
}

impl Client {
    /// Greets until the other end answers.
    pub(crate) fn open(spec: &FlowSpec, rate: u32, size: u16) -> Result<Self> {
        let ends = Ends::new(spec.flow, Side::Client, rate, size);
        let mut hello = [0; HEAD];
        ends.head(Purpose::Hello, rate.into()).write(&mut hello);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let mut socket = Socket::bind(0)?;
            socket.connect(spec.to)?;
            for _ in 0..PER_PORT {
                // Refused until somebody listens there.
                let _refused = socket.send(&hello);
                let next = Instant::now() + AGAIN;
                while socket.readable_before(next)? {
                    if welcomed(&mut socket, spec.flow) {
                        return Ok(Self { socket, ends });
                    }
                }
            }
        }
        Err(Error::NoWelcome {
            flow: spec.flow,
            to: spec.to,
        })
    }

    pub(crate) fn begin(&mut self, at: u64) {
        self.ends.tally.begin(at);
        self.ends.pace.begin(at);
    }

    /// Receives all there is and, before `end`, sends what is due.
    pub(crate) fn tick(&mut self, now: u64, sending: bool) {
        let mut buffer = [0; LONGEST];
        while let Some(arrival) = self.socket.receive(&mut buffer) {
            if let Some(head) = Head::read(arrival.octets)
                && head.purpose == Purpose::Data
                && head.flow == self.ends.flow
            {
                self.ends.seen.note(head.number);
                self.ends.tally.note(arrival.at, arrival.octets.len());
            }
        }
        if sending {
            let socket = &self.socket;
            self.ends.send_due(now, |datagram| {
                let _lost = socket.send(datagram);
            });
        }
    }

    pub(crate) fn close(&mut self, at: u64) {
        self.ends.tally.close(at);
    }

    pub(crate) fn progress(&self) -> Progress {
        self.ends.progress()
    }

    pub(crate) fn report(&mut self) -> (u64, End) {
        (self.socket.overflown, self.ends.report())
    }
}

fn welcomed(socket: &mut Socket, flow: u32) -> bool {
    let mut buffer = [0; LONGEST];
    while let Some(arrival) = socket.receive(&mut buffer) {
        if Head::read(arrival.octets)
            .is_some_and(|h| h.purpose == Purpose::Welcome && h.flow == flow)
        {
            return true;
        }
    }
    false
}

/// The ends that were asked: all flows of one socket.
#[derive(Debug)]
pub(crate) struct Server {
    socket: Socket,
    /// What overflowed before the run.
    overflown_before: u64,
    guests: Vec<Guest>,
    begin: u64,
}

#[derive(Debug)]
struct Guest {
    from: SocketAddrV6,
    to: Ipv6Addr,
    ends: Ends,
    /// Datagrams from another address than the greeting.
    strange: u64,
}

impl Guest {
    fn note(&mut self, arrival: &Arrival<'_>, number: u64, now: u64) {
        // From elsewhere than the greeting: a translation that was in force
        // has changed under the flow.
        if arrival.from != self.from {
            self.strange += 1;
        }
        self.ends.seen.note(number);
        self.ends.tally.note(arrival.at, arrival.octets.len());
        if !self.ends.pace.has_begun() {
            self.ends.pace.begin(now);
        }
    }

    fn report(&mut self) -> End {
        End {
            corrupted: self.strange,
            ..self.ends.report()
        }
    }
}

impl Server {
    pub(crate) fn new(port: u16) -> Result<Self> {
        Ok(Self {
            socket: Socket::bind(port)?,
            overflown_before: 0,
            guests: Vec::new(),
            begin: 0,
        })
    }

    pub(crate) fn begin(&mut self, at: u64) {
        self.begin = at;
        self.overflown_before = self.socket.overflown;
        for guest in &mut self.guests {
            guest.ends.tally.begin(at);
        }
    }

    pub(crate) fn tick(&mut self, now: u64, sending: bool) {
        let mut buffer = [0; LONGEST];
        while let Some(arrival) = self.socket.receive(&mut buffer) {
            let Some(head) = Head::read(arrival.octets) else {
                continue;
            };
            match head.purpose {
                Purpose::Hello => {
                    let rate = u32::try_from(head.number).unwrap_or(1);
                    let (from, to) = (arrival.from, arrival.to);
                    self.welcome(
                        from,
                        to,
                        Ends::new(head.flow, Side::Server, rate, head.size),
                    );
                }
                Purpose::Data => {
                    let known = self.guests.iter_mut().find(|g| g.ends.flow == head.flow);
                    if let Some(guest) = known {
                        guest.note(&arrival, head.number, now);
                    }
                }
                Purpose::Welcome => {}
            }
        }
        if !sending {
            return;
        }
        for guest in &mut self.guests {
            let (socket, from, to) = (&self.socket, guest.to, guest.from);
            guest.ends.send_due(now, |datagram| {
                let _lost = socket.send_from(from, to, datagram);
            });
        }
    }

    /// Answers a greeting. The flow's newest greeting counts.
    fn welcome(&mut self, from: SocketAddrV6, to: Ipv6Addr, mut ends: Ends) {
        let mut answer = [0; HEAD];
        ends.head(Purpose::Welcome, 0).write(&mut answer);
        let _lost = self.socket.send_from(to, from, &answer);
        if self.begin != 0 {
            ends.tally.begin(self.begin);
        }
        self.guests.retain(|g| g.ends.flow != ends.flow);
        self.guests.push(Guest {
            from,
            to,
            ends,
            strange: 0,
        });
    }

    pub(crate) fn close(&mut self, at: u64) {
        for guest in &mut self.guests {
            guest.ends.tally.close(at);
        }
    }

    pub(crate) fn progress(&self) -> impl Iterator<Item = Progress> {
        self.guests.iter().map(|g| g.ends.progress())
    }

    /// Whether anybody greeted since the last report.
    pub(crate) fn has_guests(&self) -> bool {
        !self.guests.is_empty()
    }

    pub(crate) fn report(&mut self) -> (u64, Vec<End>) {
        let ends = self.guests.iter_mut().map(Guest::report).collect();
        self.guests.clear();
        self.begin = 0;
        (self.socket.overflown - self.overflown_before, ends)
    }
}
