//! Where a packet goes: into a local pod, to another node, or to the host's stack.

pub(crate) mod fib;
pub(crate) mod icmp_error;
pub(crate) mod local;
pub(crate) mod remote;
pub(crate) mod stack;
pub(crate) mod tunnel;
