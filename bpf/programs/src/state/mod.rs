//! The maps: what the agent wrote there, and what the programs record.

pub(crate) mod counters;
pub(crate) mod flows;
mod flows_before;
pub(crate) mod fragments;
pub(crate) mod lookup;
pub(crate) mod maps;
mod places;
mod services;
pub(crate) mod sockets;
pub(crate) mod translations;
