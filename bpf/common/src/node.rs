//! Numbers of nodes.

use crate::tables::{Remotes, Table};

/// Where something is: a number of this agent's own, not cluster-wide. Those of other
/// nodes index [`Remotes`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// On no node.
    pub const NONE: Self = Self(0);
    /// The node itself.
    pub const LOCAL: Self = Self(1);
    /// The first number of another node.
    pub const FIRST_REMOTE: Self = Self(2);
    /// With identity `world`: on no node, and may send nothing to this one. Nodes and
    /// pods have longer prefixes, or the same with their own ids.
    pub const DENIED: Self = Self(u32::MAX);

    /// The number of another node; `None` where [`Remotes`] has no such index, or it
    /// is not another node's.
    pub const fn remote(index: u32) -> Option<Self> {
        if index >= Self::FIRST_REMOTE.0 && (index as usize) < Remotes::CAPACITY {
            Some(Self(index))
        } else {
            None
        }
    }

    /// The number in a map; `None` where it means nothing.
    pub const fn new(number: u32) -> Option<Self> {
        match Self(number) {
            known @ (Self::NONE | Self::LOCAL | Self::DENIED) => Some(known),
            _ => Self::remote(number),
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
}

const _: () = assert!(size_of::<NodeId>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_nodes_have_the_numbers_that_the_array_has_entries_for() {
        let end = u32::try_from(Remotes::CAPACITY).unwrap();
        for (number, legal, remote) in [
            (0, true, false),
            (1, true, false),
            (2, true, true),
            (end - 1, true, true),
            (end, false, false),
            (u32::MAX, true, false),
        ] {
            let got = (
                NodeId::new(number).is_some(),
                NodeId::remote(number).is_some(),
            );
            assert_eq!(got, (legal, remote), "{number}");
        }
    }
}
