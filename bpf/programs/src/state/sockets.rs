//! What the node's own sockets ask for, and whom they are given.

use veer_bpf_common::{
    address::{FAMILY_V4, V6},
    tables::{Backend, Frontend, HostSockets, SocketKey, Who},
};
use veer_bpf_net::ip::TCP;

use super::{
    lookup,
    maps::{HOST_SOCKETS, SOCKETS, STREAMS},
    services,
};
use crate::ctx::direct;

/// The client of all sockets of the node, where a Service keeps clients at their backends: a
/// socket may have no address yet.
const HOST: [u8; 16] = [0; 16];

#[inline(always)]
fn word(index: u32) -> u64 {
    HOST_SOCKETS.get(index).copied().unwrap_or(0)
}

/// Whether a socket is the node's, by the cookie of its network namespace.
#[inline(always)]
pub(crate) fn are_of_host(namespace: u64) -> bool {
    namespace != 0 && word(HostSockets::COOKIE) == namespace
}

/// Whether a connect is the one by which the agent learns its namespace's cookie, which is
/// then known. It came from nobody else: nobody else knows where it goes.
#[inline(always)]
pub(crate) fn learns(nonce: u64, namespace: u64) -> bool {
    if word(HostSockets::NONCE) != nonce || nonce == 0 {
        return false;
    }
    for (index, value) in [(HostSockets::COOKIE, namespace), (HostSockets::NONCE, 0)] {
        if let Some(word) = HOST_SOCKETS.get_ptr_mut(index) {
            // SAFETY: an element of an array, and a whole word.
            unsafe { *word = value };
        }
    }
    true
}

/// `::1`.
const LOOPBACK_V6: V6 = V6([0, 1_u64.to_be()]);

/// The frontend that a socket asks for: an address that is a Service's alone, or a `NodePort`.
/// What a pod or a node has is theirs, whoever names it as an external IP (CVE-2020-8554),
/// and so is what a device of this node has.
#[inline(always)]
fn meant(asked: &Frontend) -> Option<Frontend> {
    let row = if asked.family == FAMILY_V4 {
        let [a, b, c, d, ..] = asked.address;
        if a == 127 {
            return Some(asked.at_node(false));
        }
        lookup::row([a, b, c, d])
    } else {
        let address = direct::address::<V6>(&asked.address);
        if address == LOOPBACK_V6 {
            return Some(asked.at_node(false));
        }
        lookup::row(address)
    };
    if lookup::is_health(row) {
        return None;
    }
    let who = row.map_or(Who::World, |row| Who::of(*row));
    if matches!(who, Who::World) {
        Some(*asked)
    } else if matches!(who, Who::Host) {
        Some(asked.at_node(false))
    } else if matches!(who, Who::RemoteNode(_)) {
        Some(asked.at_node(true))
    } else {
        None
    }
}

/// Whom a socket that connects to a frontend is given; `None`: what it asked for. What
/// nobody serves is among that: the stack refuses it.
#[inline(always)]
pub(crate) fn connects(cookie: u64, asked: &Frontend) -> Option<Backend> {
    let frontend = meant(asked)?;
    begins(cookie, asked, &frontend)
}

#[inline(always)]
fn begins(cookie: u64, asked: &Frontend, frontend: &Frontend) -> Option<Backend> {
    if word(HostSockets::TRANSLATES) == 0 {
        return None;
    }
    let backend = services::backend(frontend, HOST)?;
    give(cookie, asked, &backend);
    Some(backend)
}

/// The same of a datagram of a socket that is not connected. The next one goes to the same
/// backend while that serves, as with a flow.
#[inline(always)]
pub(crate) fn sends(cookie: u64, asked: &Frontend) -> Option<Backend> {
    let frontend = meant(asked)?;
    // The most are to no Service.
    services::service(&frontend)?;
    let key = SocketKey::asked(cookie, asked);
    // SAFETY: a copy of integers; what another socket got meanwhile is judged as if it were
    // this one's: a backend of the same Service, or none.
    let last = unsafe { SOCKETS.get(key) }.copied();
    if let Some(last) = last
        && services::leads_to(&frontend, last.address, last.port, false) == Some(true)
    {
        // Answers have to be told from others for as long.
        give(cookie, asked, &last);
        return Some(last);
    }
    let backend = begins(cookie, asked, &frontend)?;
    let _ = SOCKETS.insert(key, backend, 0);
    Some(backend)
}

/// Remembers what a socket asked for. Where the kernel cannot, or forgets it, the process is
/// told its peer's own address.
#[inline(always)]
fn give(cookie: u64, frontend: &Frontend, backend: &Backend) {
    let key = SocketKey::given(cookie, backend);
    let asked = Backend {
        address: frontend.address,
        port: frontend.port,
        family: frontend.family,
        pad: [0; 5],
    };
    if given(key, frontend.protocol) == Some(asked) {
        return;
    }
    let _ = if frontend.protocol == TCP {
        STREAMS.insert(key, asked, 0)
    } else {
        SOCKETS.insert(key, asked, 0)
    };
}

#[inline(always)]
fn given(key: SocketKey, protocol: u8) -> Option<Backend> {
    // SAFETY: a copy of integers. An element that is used again meanwhile is another
    // socket's: its process is told of that once.
    unsafe {
        if protocol == TCP {
            STREAMS.get(key).copied()
        } else {
            SOCKETS.get(key).copied()
        }
    }
}

/// What a socket asked for by whom it was given; `None`: nobody was given to it.
#[inline(always)]
pub(crate) fn asked(cookie: u64, backend: &Backend, protocol: u8) -> Option<Backend> {
    given(SocketKey::given(cookie, backend), protocol)
}
