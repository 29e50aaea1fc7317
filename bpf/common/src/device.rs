//! Numbers of network devices.

/// An interface index; never 0. Of the host's network namespace, where nothing else is said.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfIndex(u32);

impl IfIndex {
    /// The index with this number; `None` for 0, which is no device.
    #[inline(always)]
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            0 => None,
            _ => Some(Self(number)),
        }
    }

    /// The index that the kernel gives of a device that there is.
    #[inline(always)]
    pub const fn from_kernel(number: u32) -> Self {
        Self(number)
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

const _: () = assert!(size_of::<IfIndex>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_device() {
        assert_eq!(IfIndex::new(0), None);
        assert_eq!(IfIndex::new(7).map(IfIndex::get), Some(7));
    }
}
