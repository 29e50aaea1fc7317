//! Taking orders, without ever waiting for one.

use std::{
    io::{ErrorKind, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use crate::{
    error::{Result, What},
    order::{Answer, Order, SOCKET},
};

/// How long a client may take to read the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came over it.
#[derive(Debug)]
pub(crate) enum Heard {
    /// An order, or what is none.
    Order(Result<Order>),
    /// Whoever gave orders has gone.
    Left,
}

/// The socket that orders come by.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    /// Who gives orders now, and what has come of the next one.
    master: Option<(UnixStream, Vec<u8>)>,
}

impl Control {
    pub(crate) fn new() -> Result<Self> {
        let what = || format!("listen on the abstract socket {SOCKET}");
        let address = SocketAddr::from_abstract_name(SOCKET).what(what)?;
        let listener = UnixListener::bind_addr(&address).what(what)?;
        listener.set_nonblocking(true).what(what)?;
        Ok(Self {
            listener,
            master: None,
        })
    }

    /// The next order, if a whole one has come.
    pub(crate) fn next(&mut self) -> Option<Heard> {
        if let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            // The newest master counts: an older one may have died.
            self.master = Some((stream, Vec::new()));
        }
        let (stream, text) = self.master.as_mut()?;
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    self.master = None;
                    return Some(Heard::Left);
                }
                Ok(length) => text.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.master = None;
                    return Some(Heard::Left);
                }
            }
        }
        let end = text.iter().position(|c| *c == b'\n')?;
        let line: Vec<u8> = text.drain(..=end).collect();
        let order = serde_json::from_slice(&line).map_err(Into::into);
        Some(Heard::Order(order))
    }

    /// Answers the last order.
    pub(crate) fn answer(&mut self, answer: &Answer) {
        let Some((stream, _)) = &mut self.master else {
            return;
        };
        let mut write = || {
            let mut line = serde_json::to_vec(answer)?;
            line.push(b'\n');
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(&line)?;
            stream.set_nonblocking(true)
        };
        // A master that went away asks no more.
        if write().is_err() {
            self.master = None;
        }
    }
}
