//! The HTTP endpoints of operator and agents: `/healthz` and `/readyz` for the
//! kubelet, `/metrics` for Prometheus in the `OpenMetrics` text format.
//!
//! Others may reach the address. So memory, time and number of clients are bounded
//! ([`serve`]), and one scrape at a time reads the values, on a blocking thread.

#![forbid(unsafe_code)]

mod pages;
mod pulse;
mod server;
#[cfg(test)]
mod tests;

pub use pages::{Probed, pages};
pub use pulse::{Pulse, STUCK};
pub use server::{listen, serve};
