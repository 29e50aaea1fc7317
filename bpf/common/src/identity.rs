//! Security identities, and the VNIs that carry them.
//!
//! An identity is 24 bits wide because a VXLAN VNI carries it (RFC 7348,
//! section 5).

/// The largest number of 24 bits.
const LARGEST: u32 = 0x00ff_ffff;

/// A security identity: a reserved number, or one that stands for a label set.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(u32);

impl Identity {
    /// The node's own host stack.
    pub const HOST: Self = Self(1);
    /// Everything that is neither a pod nor a node.
    pub const WORLD: Self = Self(2);
    /// A pod of this cluster that veer did not wire.
    pub const UNMANAGED: Self = Self(3);
    /// The address from which a node probes others and answers their probes: one of
    /// its host stack. On the wire it is [`Self::REMOTE_NODE`].
    pub const HEALTH: Self = Self(4);
    /// A pod whose own number is not known yet.
    pub const INIT: Self = Self(5);
    /// The host stack of another node.
    pub const REMOTE_NODE: Self = Self(6);

    /// The smallest number that stands for a label set. Those below are reserved.
    pub const FIRST_ALLOCATED: Self = Self(256);
    /// The largest number: 24 bits.
    pub const LAST_ALLOCATED: Self = Self(LARGEST);

    /// The reserved numbers with the names that tools print.
    pub const RESERVED: [(Self, &str); 6] = [
        (Self::HOST, "host"),
        (Self::WORLD, "world"),
        (Self::UNMANAGED, "unmanaged"),
        (Self::HEALTH, "health"),
        (Self::INIT, "init"),
        (Self::REMOTE_NODE, "remote-node"),
    ];

    /// The identity with this number; `None` for 0 and for more than 24 bits.
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            1..=LARGEST => Some(Self(number)),
            _ => None,
        }
    }

    /// A number that a map holds, see [the crate](crate#numbers).
    #[inline(always)]
    pub(crate) const fn stored(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether it stands for a label set.
    pub const fn is_allocated(self) -> bool {
        self.0 >= Self::FIRST_ALLOCATED.0
    }
}

/// A VXLAN network identifier: 24 bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The VNI of a tunnel key that names no tunnel.
    pub const ZERO: Self = Self(0);

    /// The VNI with this number; `None` for more than 24 bits.
    #[inline(always)]
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            0..=LARGEST => Some(Self(number)),
            _ => None,
        }
    }

    /// As a VXLAN header has it, in network byte order.
    #[inline(always)]
    pub const fn from_header([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The identity that the sender claims. A sender writes its pod's identity,
    /// `init` for a pod whose number is not known yet, or `remote-node` for its host
    /// stack; `None`: one that no sender writes.
    #[inline(always)]
    pub const fn claimed(self) -> Option<Identity> {
        match Identity(self.0) {
            claimed @ (Identity::INIT | Identity::REMOTE_NODE) => Some(claimed),
            claimed if claimed.is_allocated() => Some(claimed),
            _ => None,
        }
    }
}

impl From<Identity> for Vni {
    #[inline(always)]
    fn from(identity: Identity) -> Self {
        Self(identity.0)
    }
}

const _: () = assert!(size_of::<Identity>() == 4 && size_of::<Vni>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_vni_holds_are_no_identities() {
        for (number, legal) in [
            (0, false),
            (1, true),
            (0x00ff_ffff, true),
            (0x0100_0000, false),
            (u32::MAX, false),
        ] {
            assert_eq!(Identity::new(number).is_some(), legal, "{number}");
        }
        assert_eq!(Vni::new(0), Some(Vni::ZERO));
        assert_eq!(Vni::new(0x0100_0000), None);
    }

    #[test]
    fn an_identity_comes_out_of_its_vni_if_senders_write_it() {
        for (number, written) in [(1, false), (4, false), (5, true), (6, true)]
            .into_iter()
            .chain([(7, false), (255, false), (256, true), (0x00ff_ffff, true)])
        {
            let identity = Identity::new(number).unwrap();
            let claimed = Vni::from(identity).claimed();
            assert_eq!(claimed, written.then_some(identity), "{number}");
        }
        assert_eq!(Vni::ZERO.claimed(), None);
    }

    #[test]
    fn a_header_has_the_vni_in_network_byte_order() {
        assert_eq!(Vni::from_header([0xab, 0xcd, 0xef]).get(), 0x00ab_cdef);
    }
}
