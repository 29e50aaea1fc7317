//! The files by which the container runtime finds veer: its configuration and the
//! plugins.

pub(crate) mod conflist;
pub(crate) mod foreign;
pub(crate) mod install;
