//! veer-load: steady, numbered traffic between places of a cluster, and a
//! report of what became of it.
//!
//! The program runs where packets are to begin and end: in pods, on nodes, in
//! the world. Each process serves and asks; whoever directs them connects to
//! an abstract Unix socket ([`order::SOCKET`]), which lives in the network
//! namespace like the traffic itself but touches no device.
//!
//! Invariants: one thread, which wakes up every millisecond and does all there
//! is to do, so that with real-time priority little of a busy machine shows in
//! the figures; when it did not wake up all the same is told; arrivals of
//! datagrams are timed by the kernel; a datagram has a number, so that each
//! lost, doubled or late one is known, in each direction by itself.

#![forbid(unsafe_code)]

mod control;
mod datagrams;
mod engine;
mod error;
pub mod order;
mod pipe;
pub mod report;
mod socket;
mod tally;
pub mod wire;

pub use engine::Engine;
pub use error::{Error, Result};
