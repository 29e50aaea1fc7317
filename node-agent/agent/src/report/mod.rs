//! The agent's reports: statuses, PodEndpoints and Events to the API server, health and
//! metrics to HTTP clients.

pub(crate) mod counters;
pub(crate) mod events;
pub(crate) mod http;
mod metrics;
pub(crate) mod publish;
pub(crate) mod repairs;
pub(crate) mod retry;
pub(crate) mod sources;
pub(crate) mod status;
mod traffic;
