//! Frontends of Services that no backend serves. The programs leave packets to them to
//! the stack: rules that never change, and sets of which one Service's change is some
//! elements.

use std::net::IpAddr;

use veer_agent_core::{
    family::Family,
    services::{Refusal, Unserved},
};
use veer_bpf_common::address::to_ip;

use super::{
    content::{Chain, Elements, Place, Set},
    expr::{Expr, Names},
};

/// Frontends whose clients are told.
const REFUSED: Names = ["refused4", "refused6"];
/// Frontends whose clients are not.
const DROPPED: Names = ["dropped4", "dropped6"];

/// What counts the packets to [`REFUSED`].
pub(super) const WITHOUT_ENDPOINTS: &str = "service-without-endpoints";
/// What counts the packets to [`DROPPED`].
pub(super) const WITHOUT_LOCAL_ENDPOINT: &str = "service-without-local-endpoint";

/// The sets of a family. What somebody has (`is_taken`) is his, whatever Service names it.
pub(super) fn sets(
    unserved: &Unserved,
    family: Family,
    is_taken: impl Fn(IpAddr) -> bool,
) -> [Set; 2] {
    let set = |names, of| {
        // At its NodePorts a node refuses by itself: nobody listens there.
        let frontends = unserved
            .iter()
            .filter(|(frontend, refusal)| **refusal == of && !frontend.is_node_port());
        let places = frontends.filter_map(|(frontend, _)| {
            let address = to_ip(frontend.family, frontend.address)?;
            (family.has(address) && !is_taken(address)).then_some(Place {
                address: Some(address),
                protocol: frontend.protocol,
                port: u16::from_be_bytes(frontend.port),
            })
        });
        Set {
            name: family.pick(names),
            family,
            elements: Elements::Places(places.collect()),
        }
    };
    [set(REFUSED, Refusal::Refuse), set(DROPPED, Refusal::Drop)]
}

/// Adds the rules that refuse and drop, whatever connection tracking knows of the flow: it
/// may have begun when the frontend was none. TCP is reset, since a client on this node
/// holds its socket while it sends, and then misses what ICMP says (`tcp_v4_err`,
/// `net/ipv4/tcp_ipv4.c`). A kernel that cannot answer in a rule drops instead.
pub(super) fn answered(chain: Chain, family: Family, reject: bool) -> Chain {
    let refused = |answer| {
        [
            Expr::PlaceIn(REFUSED),
            Expr::Count(WITHOUT_ENDPOINTS),
            answer,
        ]
    };
    let chain = if reject {
        let reset = [Expr::Tcp].into_iter().chain(refused(Expr::Reset));
        let chain = chain.rule(family, reset);
        chain.rule(family, refused(Expr::PortUnreachable))
    } else {
        chain.rule(family, refused(Expr::Drop))
    };
    chain.rule(
        family,
        [
            Expr::PlaceIn(DROPPED),
            Expr::Count(WITHOUT_LOCAL_ENDPOINT),
            Expr::Drop,
        ],
    )
}
