//! veer-load: steady, numbered traffic between places of a cluster, and a report of
//! its fate.
//!
//! The program runs where packets begin and end: in pods, on nodes, in the world.
//! Each process is server and client. It is controlled over an abstract Unix socket
//! ([`order::SOCKET`]), which belongs to the network namespace like the traffic
//! itself but uses no device.
//!
//! Invariants: one thread wakes up every millisecond and does all the work, so that
//! with real-time priority a busy machine hardly shows in the figures; the report
//! lists the times when it did not wake up; the kernel timestamps the arrival of
//! datagrams; a datagram has a number, so that each lost, doubled or late one is
//! known, in each direction separately.

#![forbid(unsafe_code)]

mod control;
mod datagrams;
mod engine;
mod error;
pub mod order;
mod pipe;
pub mod protocol;
pub mod report;
mod socket;
mod tally;

pub use engine::Engine;
pub use error::{Error, Result};
