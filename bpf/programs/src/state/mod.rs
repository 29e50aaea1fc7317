//! The maps: what the agent wrote there, and what the programs record.

pub(crate) mod counters;
pub(crate) mod flow_slots;
pub(crate) mod flows;
pub(crate) mod fragments;
pub(crate) mod lookup;
pub(crate) mod maps;
