//! What the agent's parts hand to each other: plain data, and the handles by which one
//! of them writes what others read.

pub(crate) mod handles;
pub(crate) mod input;
pub(crate) mod maps;
pub(crate) mod options;
pub(crate) mod plan;
