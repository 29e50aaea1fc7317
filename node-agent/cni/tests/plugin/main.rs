//! The real plugin, run as a container runtime runs it.
//!
//! If an agent is needed, a test double listens in its place: it answers one
//! request with a given line and hands out what it was asked. It proves the shape
//! of what goes over the socket and nothing about wiring.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod add;
mod del;
mod input;
mod node;
mod verbs;
