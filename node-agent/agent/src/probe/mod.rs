//! Whether other nodes answer in a form: asked before the form is used, and
//! again to confirm that it works.
//!
//! A probe is an ICMP echo from this node's health address to the peer's. Its
//! mark names the form, whatever form traffic has now, so probes disturb
//! nothing. The peer's kernel answers: a peer whose agent is dead still does.

mod pairs;
mod wire;

pub(crate) use pairs::{Inputs, Pairs, Peer, View};
pub(crate) use wire::run;

use std::net::Ipv4Addr;

/// One peer to be probed in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The peer's name.
    pub(crate) node: String,
    /// The peer's health address.
    pub(crate) to: Ipv4Addr,
    /// `FORM_*`.
    pub(crate) form: u8,
    /// Bytes of the largest IP packet that the form carries.
    pub(crate) full: usize,
    /// Whether the pair has switched to the form and waits to be confirmed.
    pub(crate) confirms: bool,
}

/// What an [`Ask`] came to: `Err` says what failed and what to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// What was asked.
    pub(crate) ask: Ask,
    /// What came of it.
    pub(crate) outcome: Result<(), String>,
}
