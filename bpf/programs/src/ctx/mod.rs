//! The packet as the kernel hands it over, and the kernel's clock.

pub(crate) mod apart;
pub(crate) mod captured;
pub(crate) mod clock;
pub(crate) mod direct;
pub(crate) mod rewrite;
pub(crate) mod skb;
pub(crate) mod xdp;
