//! Security identities: the reserved numbers and the range of the others.
//!
//! An identity is 24 bits wide because a VXLAN VNI carries it (RFC 7348,
//! section 5).

/// No identity: never stored, never on the wire.
pub const NONE: u32 = 0;
/// The node's own host stack.
pub const HOST: u32 = 1;
/// Everything that is neither a pod nor a node.
pub const WORLD: u32 = 2;
/// A pod of this cluster that veer did not wire.
pub const UNMANAGED: u32 = 3;
/// The address from which a node probes others and answers their probes: one of
/// its host stack. On the wire it is [`REMOTE_NODE`].
pub const HEALTH: u32 = 4;
/// A pod whose own number is not known yet.
pub const INIT: u32 = 5;
/// The host stack of another node.
pub const REMOTE_NODE: u32 = 6;

/// The smallest number that stands for a label set. Those below are reserved.
pub const FIRST_ALLOCATED: u32 = 256;
/// The largest number: 24 bits.
pub const LAST_ALLOCATED: u32 = 0x00ff_ffff;

/// The reserved numbers with the names that tools print.
pub const RESERVED: [(u32, &str); 6] = [
    (HOST, "host"),
    (WORLD, "world"),
    (UNMANAGED, "unmanaged"),
    (HEALTH, "health"),
    (INIT, "init"),
    (REMOTE_NODE, "remote-node"),
];

/// Whether a VXLAN packet may carry this number as VNI. A sender writes its
/// pod's identity, `init` for a pod whose number is not known yet, or
/// `remote-node` for its host stack; it never writes the others.
pub const fn allowed_on_wire(identity: u32) -> bool {
    matches!(
        identity,
        INIT | REMOTE_NODE | FIRST_ALLOCATED..=LAST_ALLOCATED
    )
}
