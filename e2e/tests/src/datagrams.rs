//! A datagram socket as its program sees it: who answers, from where the answers are said
//! to come, where the socket says that it leads, and how it ends.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
};

use anyhow::{Context, Result, bail, ensure};
use veer_e2e_cluster::attempt;

use crate::{client, pods::Pod, site::Site};

/// Longer than the name of any pod here.
const LONGEST: usize = 256;

/// How a program uses its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Connected, as resolvers do.
    Connected,
    /// With the address at each datagram.
    Unconnected,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Connected, Self::Unconnected];
}

/// A socket for datagrams to one address, which netexec serves.
#[derive(Debug)]
pub struct Socket {
    inner: UdpSocket,
    from: String,
    to: SocketAddr,
    kind: Kind,
}

impl Socket {
    /// Opens one, which stays there wherever it is used.
    pub fn open(from: &Site, to: SocketAddr, kind: Kind) -> Result<Self> {
        let inner = from.within(|| client::udp_socket(to.ip()))?;
        inner.set_read_timeout(Some(attempt()))?;
        let opened = Self {
            inner,
            from: from.name.clone(),
            to,
            kind,
        };
        match kind {
            Kind::Connected => opened.connect()?,
            Kind::Unconnected => {}
        }
        Ok(opened)
    }

    /// Connects it, maybe again.
    pub fn connect(&self) -> Result<()> {
        self.inner.connect(self.to).with_context(|| self.what())
    }

    /// One datagram: the name of the pod that answers. The answer must come from where
    /// the datagram went, as programs check (glibc's resolver among them).
    pub fn ask(&self) -> Result<String> {
        const ASK: &[u8] = b"hostname";
        let sent = match self.kind {
            Kind::Connected => self.inner.send(ASK),
            Kind::Unconnected => self.inner.send_to(ASK, self.to),
        };
        let mut answer = [0; LONGEST];
        let (length, from) = sent
            .and_then(|_| self.inner.recv_from(&mut answer))
            .with_context(|| self.what())?;
        ensure!(from == self.to, "{}: answered by {from}", self.what());
        let name = String::from_utf8_lossy(&answer[..length]);
        Ok(name.trim().to_owned())
    }

    /// Where it says that it leads.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.inner.peer_addr().with_context(|| self.what())
    }

    /// Waits, without sending anything, until somebody ends it: with which error.
    pub fn ended(&self) -> Result<ErrorKind> {
        match self.inner.recv(&mut [0; LONGEST]) {
            Ok(_) => bail!("{}: an answer to nothing", self.what()),
            Err(error) => Ok(error.kind()),
        }
    }

    fn what(&self) -> String {
        format!("{} → udp {} ({:?})", self.from, self.to, self.kind)
    }
}

/// Sockets of both kinds to a Service of one pod.
#[derive(Debug)]
pub struct ToOne {
    backend: String,
    sockets: Vec<Socket>,
}

impl ToOne {
    /// Opens them.
    pub fn open(from: &Site, to: SocketAddr, backend: &Pod) -> Result<Self> {
        let open = |kind| Socket::open(from, to, kind);
        Ok(Self {
            backend: backend.name.clone(),
            sockets: Kind::ALL.into_iter().map(open).collect::<Result<_>>()?,
        })
    }

    /// The pod must answer each of them.
    pub fn answered(&self) -> Result<()> {
        for socket in &self.sockets {
            let name = socket.ask()?;
            ensure!(
                name == self.backend,
                "{}: answered by {name}, not by {}",
                socket.what(),
                self.backend
            );
        }
        Ok(())
    }
}
