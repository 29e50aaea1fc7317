//! One end of a flow on a TCP connection.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{
    error::{Error, Result, What},
    order::{FlowSpec, Kind, Progress},
    protocol::{MESSAGE, content, message, read_message},
    report::{End, Side},
    tally::{Pace, Tally},
};

/// How long connecting and greeting may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Octets that wait to be sent at most. What is due beyond them stays due.
const WAITING: usize = 256 << 10;
/// Bulk data is handed over so many times a second: seldom enough that the
/// kernel makes large segments of it.
const HANDED_OVER: u32 = 250;

/// What an end of a connection does.
#[derive(Debug)]
enum Work {
    /// Numbers messages and counts their answers.
    Ask { answered: u64 },
    /// Sends back what comes.
    Answer,
    /// Sends a stream and checks the other end's.
    Bulk { octets: u64, received: u64 },
}

/// An end of a connection.
#[derive(Debug)]
pub(crate) struct Pipe {
    stream: TcpStream,
    flow: u32,
    side: Side,
    work: Work,
    pace: Pace,
    /// Octets to be sent.
    out: VecDeque<u8>,
    /// Octets received that make no message yet.
    part: Vec<u8>,
    tally: Tally,
    corrupted: u64,
    resets: Vec<String>,
}

/// A connection that has not said yet what it is.
#[derive(Debug)]
pub(crate) struct Stranger {
    stream: TcpStream,
    head: Vec<u8>,
    bulk: bool,
}

impl Pipe {
    fn new(stream: TcpStream, flow: u32, side: Side, work: Work, rate: u32) -> Self {
        let pace = match work {
            Work::Bulk { .. } => Pace::new(HANDED_OVER),
            Work::Ask { .. } | Work::Answer => Pace::new(rate),
        };
        Self {
            stream,
            flow,
            side,
            work,
            pace,
            out: VecDeque::new(),
            part: Vec::new(),
            tally: Tally::default(),
            corrupted: 0,
            resets: Vec::new(),
        }
    }

    /// Connects and greets; returns when the other end has answered.
    pub(crate) fn open(spec: &FlowSpec) -> Result<Self> {
        let to = spec.to;
        let (work, rate) = match spec.kind {
            Kind::Bulk { rate } => {
                let octets = u64::from(rate / HANDED_OVER);
                (
                    Work::Bulk {
                        octets,
                        received: 0,
                    },
                    rate,
                )
            }
            Kind::Echo { rate } | Kind::Datagrams { rate, .. } => (Work::Ask { answered: 0 }, rate),
        };
        let greet = || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let hello = message(spec.flow, rate.into());
            stream.write_all(&hello)?;
            let mut back = [0; MESSAGE];
            stream.read_exact(&mut back)?;
            stream.set_nonblocking(true)?;
            io::Result::Ok((stream, back == hello))
        };
        match greet().what(|| format!("flow {} to tcp {to}", spec.flow))? {
            (stream, true) => Ok(Self::new(stream, spec.flow, Side::Client, work, rate)),
            (_, false) => Err(Error::NoWelcome {
                flow: spec.flow,
                to,
            }),
        }
    }

    /// The run begins. Who answers, or was asked, sends from the first
    /// arrival on.
    pub(crate) fn begin(&mut self, at: u64) {
        self.tally.begin(at);
        if self.side == Side::Client {
            self.pace.begin(at);
        }
    }

    /// Receives all there is and, while `sending`, sends what is due. Once the
    /// run has `ended`, an end of the connection is no harm.
    pub(crate) fn tick(&mut self, now: u64, sending: bool, ended: bool) {
        if !self.resets.is_empty() {
            return;
        }
        let mut work = || {
            self.receive(now)?;
            if sending {
                self.produce(now);
            }
            self.flush()
        };
        if let Err(error) = work()
            && !ended
        {
            self.resets.push(error.to_string());
        }
    }

    fn receive(&mut self, now: u64) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    let text = "closed by the other end";
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, text));
                }
                Ok(length) => self.take(now, &buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, now: u64, octets: &[u8]) {
        match &mut self.work {
            Work::Answer => self.out.extend(octets),
            Work::Bulk { received, .. } => {
                for octet in octets {
                    if *octet != content(self.flow, *received) {
                        self.corrupted += 1;
                    }
                    *received += 1;
                }
                self.tally.note(now, octets.len());
                if !self.pace.has_begun() {
                    self.pace.begin(now);
                }
            }
            Work::Ask { answered } => {
                self.part.extend(octets);
                let mut used = 0;
                while let Some(Ok(whole)) =
                    self.part.get(used..used + MESSAGE).map(TryInto::try_into)
                {
                    if read_message(whole) != Some((self.flow, *answered)) {
                        self.corrupted += 1;
                    }
                    *answered += 1;
                    used += MESSAGE;
                    self.tally.note(now, MESSAGE);
                }
                self.part.drain(..used);
            }
        }
    }

    fn produce(&mut self, now: u64) {
        if matches!(self.work, Work::Answer) {
            return;
        }
        for _ in 0..self.pace.due(now) {
            if self.out.len() >= WAITING {
                return;
            }
            match self.work {
                Work::Bulk { octets, .. } => {
                    let from = self.pace.sent * octets;
                    self.out
                        .extend((from..from + octets).map(|o| content(self.flow, o)));
                }
                Work::Ask { .. } | Work::Answer => {
                    self.out.extend(message(self.flow, self.pace.sent));
                }
            }
            self.pace.sent += 1;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(self.out.make_contiguous()) {
                Ok(length) => {
                    self.out.drain(..length);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sending ended at `at`. Who only answers has no gaps of its own.
    pub(crate) fn close(&mut self, at: u64) {
        if !matches!(self.work, Work::Answer) {
            self.tally.close(at);
        }
    }

    /// Sent and received, in messages or octets.
    fn counts(&self) -> (u64, u64) {
        match self.work {
            Work::Ask { answered } => (self.pace.sent, answered),
            Work::Answer => (0, 0),
            Work::Bulk { octets, received } => (self.pace.sent * octets, received),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        let (sent, received) = self.counts();
        Progress {
            flow: self.flow,
            side: self.side,
            sent,
            received,
        }
    }

    pub(crate) fn report(self) -> End {
        let (sent, received) = self.counts();
        End {
            flow: self.flow,
            side: self.side,
            sent,
            received,
            duplicated: 0,
            reordered: 0,
            corrupted: self.corrupted,
            resets: self.resets,
            gaps: self.tally.gaps,
            timeline: self.tally.timeline,
        }
    }
}

impl Stranger {
    /// A connection that was accepted on the port of echoes or of bulk.
    pub(crate) fn new(stream: TcpStream, bulk: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            head: Vec::new(),
            bulk,
        })
    }

    /// Reads what has come of the greeting: `Ok` with the pipe when it is
    /// whole and answered, `Err` with itself when more must come, or with
    /// nothing when it is none of ours.
    pub(crate) fn greet(mut self) -> Result<Pipe, Option<Self>> {
        let mut octet = [0];
        while self.head.len() < MESSAGE {
            match self.stream.read(&mut octet) {
                Ok(1) => self.head.push(octet[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Some(self)),
                Ok(_) | Err(_) => return Err(None),
            }
        }
        let head: [u8; MESSAGE] = self.head.as_slice().try_into().map_err(|_| None)?;
        let (flow, rate) = read_message(&head).ok_or(None)?;
        let rate = u32::try_from(rate).map_err(|_| None)?;
        self.stream.write_all(&head).map_err(|_| None)?;
        let work = if self.bulk {
            let octets = u64::from(rate / HANDED_OVER);
            Work::Bulk {
                octets,
                received: 0,
            }
        } else {
            Work::Answer
        };
        Ok(Pipe::new(self.stream, flow, Side::Server, work, rate))
    }
}
