//! What rules can do depends on the kernel.

/// Which expressions the kernel has that some are built without. An error does not say
/// which one it was about: what cannot be written is tried again with fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// A rule can ask the kernel's routes (`nft_fib_inet`).
    pub(super) fib: bool,
    /// A rule can answer what it discards (`nft_reject_inet`).
    pub(super) reject: bool,
}

impl Abilities {
    /// All of them.
    pub(super) const ALL: Self = Self {
        fib: true,
        reject: true,
    };

    /// What to try after these; `None`: it is not for want of one of them.
    pub(super) fn fewer(self) -> Option<Self> {
        match (self.fib, self.reject) {
            (fib, true) => Some(Self { fib, reject: false }),
            (true, false) => Some(Self {
                fib: false,
                reject: true,
            }),
            (false, false) => None,
        }
    }

    /// Says what follows from those that the kernel lacks.
    pub(super) fn tell(self) {
        if !self.fib {
            tracing::warn!("the kernel has no nft_fib: nodes' addresses are not looked at");
        }
        if !self.reject {
            tracing::warn!(
                "the kernel has no nft_reject: clients of Services without endpoints are \
                 not refused, but wait"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_without_the_other_before_both_are_given_up() {
        let all: Vec<_> = std::iter::successors(Some(Abilities::ALL), |a| a.fewer())
            .map(|a| (a.fib, a.reject))
            .collect();
        assert_eq!(
            all,
            [(true, true), (true, false), (false, true), (false, false)]
        );
    }
}
