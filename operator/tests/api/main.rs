//! The API and the operator against a real kube-apiserver and etcd.
//!
//! Every test has a cluster store of its own; the operator runs as a process,
//! and the agents are played by the tests, which write what an agent would
//! report. What is awaited is awaited with a deadline and a report of what was
//! seen.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test that cannot go on ends, and a scenario or table is read in one piece"
)]

mod addresses;
mod admission;
mod blocks;
mod chart;
mod crds;
mod identities;
mod leaders;
mod modes;
mod nodes;
mod play;
mod removal;
mod rollout;
mod selection;
mod server;
mod words;
mod writes;
