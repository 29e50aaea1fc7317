//! The one thread: wakes up, takes orders, receives, sends, sleeps.

use std::{
    net::{Ipv6Addr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use crate::{
    control::{Control, Heard},
    datagrams::{Client, Server},
    error::{Result, What},
    order::{Answer, FlowSpec, Kind, Order},
    pipe::{Pipe, Stranger},
    protocol::{BULK, DATAGRAMS, ECHO},
    report::PlaceReport,
    socket::now,
    tally::Pauses,
};

/// Between two looks while there are flows. Gaps shorter than this cannot be told
/// apart.
const TICK: Duration = Duration::from_millis(1);
/// The same while there are none.
const IDLE: Duration = Duration::from_millis(10);

/// All that a process does.
#[derive(Debug)]
pub struct Engine {
    control: Control,
    listeners: [(TcpListener, bool); 2],
    server: Server,
    clients: Vec<Client>,
    strangers: Vec<Stranger>,
    pipes: Vec<Pipe>,
    /// When the run began and when sending ends, nanoseconds since 1970.
    begin: Option<u64>,
    end: Option<u64>,
    closed: bool,
    pauses: Pauses,
}

impl Engine {
    /// Binds all ports.
    ///
    /// # Errors
    /// One of them, or the socket for orders, is taken.
    pub fn new() -> Result<Self> {
        Ok(Self {
            control: Control::new()?,
            listeners: [(listen(ECHO)?, false), (listen(BULK)?, true)],
            server: Server::new(DATAGRAMS)?,
            clients: Vec::new(),
            strangers: Vec::new(),
            pipes: Vec::new(),
            begin: None,
            end: None,
            closed: false,
            pauses: Pauses::default(),
        })
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// None yet: what becomes of flows is in the report.
    pub fn run(mut self) -> Result<()> {
        let mut next = Instant::now();
        loop {
            self.tick();
            let busy =
                !self.pipes.is_empty() || !self.clients.is_empty() || self.server.has_guests();
            // A tick that was missed is not made up for.
            next = (next + if busy { TICK } else { IDLE }).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn tick(&mut self) {
        let time = now();
        self.pauses.tick(time, self.begin);
        let sending = self.begin.is_some_and(|b| time >= b) && self.end.is_none_or(|e| time < e);
        self.server.tick(time, sending);
        for client in &mut self.clients {
            client.tick(time, sending);
        }
        // Afterwards ends are closed one by one; that is no reset.
        let ended = self.end.is_some_and(|e| time >= e);
        for pipe in &mut self.pipes {
            pipe.tick(time, sending, ended);
        }
        if let Some(end) = self.end
            && time >= end
            && !self.closed
        {
            self.close(end);
        }
        self.accept();
        match self.control.next() {
            Some(Heard::Order(order)) => {
                let answer = order
                    .and_then(|o| self.obey(o))
                    .unwrap_or_else(|error| Answer::Refused(error.to_string()));
                self.control.answer(&answer);
            }
            // Nobody would ever halt it.
            Some(Heard::Left) => drop(self.report()),
            None => {}
        }
    }

    fn close(&mut self, at: u64) {
        self.closed = true;
        self.server.close(at);
        self.clients.iter_mut().for_each(|c| c.close(at));
        self.pipes.iter_mut().for_each(|p| p.close(at));
    }

    fn accept(&mut self) {
        for (listener, bulk) in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                self.strangers.extend(Stranger::new(stream, *bulk).ok());
            }
        }
        for stranger in std::mem::take(&mut self.strangers) {
            match stranger.greet() {
                Ok(pipe) => self.pipes.push(pipe),
                Err(waiting) => self.strangers.extend(waiting),
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Open(flows) => flows.iter().try_for_each(|flow| self.open(flow))?,
            Order::Run(at) => {
                self.begin = Some(at);
                self.server.begin(at);
                self.clients.iter_mut().for_each(|c| c.begin(at));
                self.pipes.iter_mut().for_each(|p| p.begin(at));
            }
            Order::Progress => {
                let clients = self.clients.iter().map(Client::progress);
                let pipes = self.pipes.iter().map(Pipe::progress);
                return Ok(Answer::Progress(
                    clients.chain(pipes).chain(self.server.progress()).collect(),
                ));
            }
            Order::Halt(at) => self.end = Some(at),
            Order::Report => return Ok(Answer::Report(self.report())),
        }
        Ok(Answer::Done)
    }

    fn open(&mut self, spec: &FlowSpec) -> Result<()> {
        match spec.kind {
            Kind::Datagrams { rate, size } => {
                self.clients.push(Client::open(spec, rate, size)?);
            }
            Kind::Echo { .. } | Kind::Bulk { .. } => self.pipes.push(Pipe::open(spec)?),
        }
        Ok(())
    }

    /// What was seen; everything of the run is forgotten, connections too.
    fn report(&mut self) -> PlaceReport {
        let (mut overflown, mut ends) = self.server.report();
        for client in &mut self.clients {
            let (more, end) = client.report();
            overflown += more;
            ends.push(end);
        }
        self.clients.clear();
        ends.extend(self.pipes.drain(..).map(Pipe::report));
        (self.begin, self.end, self.closed) = (None, None, false);
        PlaceReport {
            overflown,
            pauses: self.pauses.take(),
            ends,
        }
    }
}

/// In both families.
fn listen(port: u16) -> Result<TcpListener> {
    let what = || format!("listen on tcp port {port}");
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).what(what)?;
    listener.set_nonblocking(true).what(what)?;
    Ok(listener)
}
