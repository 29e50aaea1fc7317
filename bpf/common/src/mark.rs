//! The packet mark (`skb->mark`) by which veer's programs know their own
//! packets in a later hook.
//!
//! Only the programs set it: `pod_egress` clears what a pod brought. The low
//! half is left to others (kube-proxy uses 0x4000 and 0x8000), so everything
//! here reads and writes through [`MASK`].

/// The bits that are veer's.
pub const MASK: u32 = 0xffff_0000;
/// A program redirected this packet: the egress hook of the target device lets
/// it pass untouched.
pub const REDIRECTED: u32 = 0x7ee1_0000;
/// A program sent this packet up the stack on purpose (a flow with an entry,
/// or a packet too big for its path): it is not recorded again.
pub const TO_STACK: u32 = 0x7ee2_0000;
/// A probe of the agent, from the node's health address: goes by the tunnel,
/// whatever form the remote's entry has. Set by the agent on its socket
/// (`SO_MARK`, which takes `CAP_NET_ADMIN`); `overlay_egress` reads it. What a
/// pod marks so is cleared by `pod_egress`.
pub const PROBE_TUNNEL: u32 = 0x7ee3_0000;
/// As [`PROBE_TUNNEL`], bare out of the uplink.
pub const PROBE_NATIVE: u32 = 0x7ee4_0000;

/// `mark` with veer's bits replaced by `ours`, the rest kept.
pub const fn set(mark: u32, ours: u32) -> u32 {
    (mark & !MASK) | (ours & MASK)
}

/// Veer's bits of `mark`.
pub const fn get(mark: u32) -> u32 {
    mark & MASK
}
