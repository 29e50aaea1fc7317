//! What the tests of the BPF programs share: both families ([`family`]), packets
//! ([`packet`]), the loaded
//! object with typed maps and test runs ([`datapath`]), Services ([`services`]), the node's
//! own sockets ([`host_sockets`]), pings ([`echo`]),
//! random numbers ([`random`]), network namespaces and captures ([`netns`]), and nodes with pods made of these ([`lab`]).
//!
//! The tests need root and a kernel with tcx (6.6 or later); they never skip.
//! `prog_*` files hold tables for `BPF_PROG_TEST_RUN`; `netns_*` files prove
//! delivery, which a redirect verdict does not.

#![deny(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "lengths of packets that a test wrote"
)]

pub mod datapath;
#[expect(unsafe_code, reason = "raw sockets")]
pub mod echo;
pub mod family;
pub mod host_sockets;
pub mod lab;
#[expect(unsafe_code, reason = "raw sockets")]
pub mod netns;
pub mod packet;
pub mod random;
pub mod services;
#[expect(unsafe_code, reason = "socket options")]
pub mod socket;
pub mod world;
