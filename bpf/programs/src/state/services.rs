//! Services: who receives a new flow to one.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use veer_bpf_common::{
    address::{FAMILY_V4, V6},
    tables::{
        Affinity, AffinityKey, Backend, BackendKey, Frontend, Member, Members, Question, Service,
    },
};

use super::{
    lookup,
    maps::{AFFINITY, BACKENDS, MEMBERS, SERVICES},
    translations,
};
use crate::ctx::clock::now;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// The Service that packets like this one are sent to.
#[inline(always)]
pub(super) fn service(frontend: &Frontend) -> Option<Service> {
    // SAFETY: a copy of integers. A row that is used again meanwhile is another
    // Service's, which `backend` finds out.
    unsafe { SERVICES.get(frontend) }.copied()
}

/// Whether a packet to a node is for a `NodePort` that leads somewhere.
#[inline(always)]
pub(super) fn is_node_port(frontend: &Frontend) -> bool {
    service(frontend).is_some_and(|service| service.backends != 0)
}

/// Whether new flows to a Service may go to this backend.
#[inline(always)]
fn has(id: u32, backend: &Backend) -> bool {
    let member = Member::new(id, backend.address, backend.port);
    // SAFETY: a copy of an integer.
    unsafe { MEMBERS.get(member) }.copied() == Some(Members::CHOSEN)
}

/// Whether a flow to what packets like this one are sent to may stay with this backend, or,
/// where it is `new`, go there; `None`: there is no such Service.
#[inline(always)]
pub(super) fn leads_to(
    frontend: &Frontend,
    address: [u8; 16],
    port: [u8; 2],
    new: bool,
) -> Option<bool> {
    let service = service(frontend)?;
    let member = Member::new(service.id, address, port);
    // SAFETY: as above.
    let found = unsafe { MEMBERS.get(member) }.copied();
    Some(found.is_some_and(|found| !new || found == Members::CHOSEN))
}

/// Chooses a backend for a new flow, and says what its packets become. 0 where there is
/// none: the host's stack is to decide.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn choose_backend() -> u32 {
    translations::question().map_or(0, |question| u32::from(choose(question)))
}

#[inline(always)]
fn choose(question: &mut Question) -> bool {
    let frontend = question.frontend();
    let Some(backend) = backend(&frontend, question.tuple.source) else {
        return false;
    };
    let to = question.tuple.sent_to(&backend);
    question.to = if to.destination == to.source {
        // Its own stack would answer itself without this node.
        let Some(config) = lookup::config() else {
            return false;
        };
        if to.family == FAMILY_V4 {
            to.sent_by(lookup::gateway::<[u8; 4]>(config))
        } else {
            to.sent_by(lookup::gateway::<V6>(config))
        }
    } else {
        to
    };
    true
}

/// A backend for a new flow of a client, given by its address.
#[inline(always)]
pub(super) fn backend(frontend: &Frontend, client: [u8; 16]) -> Option<Backend> {
    let found = service(frontend)?;
    if found.backends == 0 {
        return None;
    }
    let key = AffinityKey {
        client,
        service: found.id,
    };
    let before = if found.affinity == 0 {
        None
    } else {
        // SAFETY: a copy of integers, which is judged below.
        let last = unsafe { AFFINITY.get(key) }.copied();
        let lasts = u64::from(found.affinity) * SECOND;
        last.filter(|last| now().wrapping_sub(last.since) < lasts && has(found.id, &last.backend))
    };
    let backend = match before {
        Some(last) => last.backend,
        None => any(&found)?,
    };
    if found.affinity != 0 {
        let last = Affinity {
            backend,
            since: now(),
        };
        // A client that is not remembered gets any backend the next time.
        let _ = AFFINITY.insert(key, last, 0);
    }
    // The rows of a Service that changed meanwhile may have become another's.
    let is_same = service(frontend).is_some_and(|again| again.id == found.id);
    (is_same && has(found.id, &backend)).then_some(backend)
}

/// Any backend of a Service.
#[inline(always)]
fn any(service: &Service) -> Option<Backend> {
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let key = BackendKey {
        service: service.id,
        version: service.version,
        slot: random % service.backends,
    };
    // SAFETY: a copy of integers, which `backend` looks up among the members.
    unsafe { BACKENDS.get(key) }.copied()
}
