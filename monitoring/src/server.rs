//! The server. `axum::serve` bounds neither a client's time nor its headers (400 KiB)
//! nor the number of clients, and takes no settings of hyper's. So hyper's connections
//! are driven here.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::Ipv6V6Only},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::AbortHandle,
    time::timeout,
};

/// The largest request, in bytes: the smallest limit that hyper accepts.
const REQUEST: usize = 8192;

/// Limits of the clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the connection to the end of the answer.
    pub(crate) patience: Duration,
    /// How many may be connected at a time.
    pub(crate) clients: usize,
}

/// A scrape waits for its turn and for locks, hence seconds; kubelet and Prometheus
/// together have a handful of connections.
const LIMITS: Limits = Limits {
    patience: Duration::from_secs(5),
    clients: 64,
};

/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 64;

/// Listens on an address. `::` stands for all addresses of both families, whatever the
/// node's sysctl `bindv6only` says, and for those of IPv4 where the kernel has no IPv6.
///
/// # Errors
///
/// The address is not the node's, or the port is in use.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let every = address.is_ipv6() && address.ip().is_unspecified();
    if !every {
        return TcpListener::bind(address).await;
    }
    match dual(address) {
        Err(error) if lacks_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        outcome => outcome,
    }
}

fn dual(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    setsockopt(&socket, Ipv6V6Only, &false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the kernel has no IPv6, or none on any device.
fn lacks_ipv6(error: &io::Error) -> bool {
    let lacks = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|e| lacks.contains(&e))
}

/// Serves pages until it is dropped: one request per connection, of 8 KiB, in 5
/// seconds, for 64 clients. A further client takes the place of the oldest, so that
/// idle clients cannot keep out a probe.
pub async fn serve(listener: TcpListener, pages: Router) -> Infallible {
    serve_within(listener, pages, LIMITS).await
}

pub(crate) async fn serve_within(
    listener: TcpListener,
    pages: Router,
    limits: Limits,
) -> Infallible {
    let mut clients: VecDeque<AbortHandle> = VecDeque::with_capacity(limits.clients);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        clients.retain(|client| !client.is_finished());
        if clients.len() >= limits.clients
            && let Some(oldest) = clients.pop_front()
        {
            oldest.abort();
        }
        let served = timeout(limits.patience, answer(stream, pages.clone()));
        clients.push_back(tokio::spawn(served).abort_handle());
    }
}

async fn answer(stream: TcpStream, pages: Router) {
    let served = http1::Builder::new()
        .keep_alive(false)
        // A client may end its direction after its request.
        .half_close(true)
        .max_buf_size(REQUEST)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of /healthz, /readyz or /metrics was not served");
    }
}
