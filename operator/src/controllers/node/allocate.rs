//! The search for a free block: pure arithmetic over what is taken.

use std::collections::BTreeMap;

use ipnet::IpNet;

/// Address ranges that are taken, in both families; ranges that meet are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    v4: BTreeMap<u128, u128>,
    v6: BTreeMap<u128, u128>,
}

/// First and last address of a block, as numbers.
fn range(block: &IpNet) -> (u128, u128) {
    match block {
        IpNet::V4(b) => (
            u128::from(u32::from(b.network())),
            u128::from(u32::from(b.broadcast())),
        ),
        IpNet::V6(b) => (u128::from(b.network()), u128::from(b.broadcast())),
    }
}

/// The block of `prefix` bits at `first` in the family of `like`.
fn block(like: &IpNet, first: u128, prefix: u8) -> Option<IpNet> {
    match like {
        IpNet::V4(_) => {
            let address = u32::try_from(first).ok()?;
            Some(IpNet::V4(ipnet::Ipv4Net::new(address.into(), prefix).ok()?))
        }
        IpNet::V6(_) => Some(IpNet::V6(ipnet::Ipv6Net::new(first.into(), prefix).ok()?)),
    }
}

impl Taken {
    /// Takes a block.
    pub(crate) fn insert(&mut self, block: &IpNet) {
        let (mut first, mut last) = range(block);
        let ranges = match block {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        };
        while let Some((&from, &to)) = ranges.range(..=last).next_back().filter(|r| *r.1 >= first) {
            (first, last) = (first.min(from), last.max(to));
            ranges.remove(&from);
        }
        ranges.insert(first, last);
    }

    /// The end of the last taken range that meets these addresses.
    fn meets(&self, like: &IpNet, first: u128, last: u128) -> Option<u128> {
        let ranges = match like {
            IpNet::V4(_) => &self.v4,
            IpNet::V6(_) => &self.v6,
        };
        ranges
            .range(..=last)
            .next_back()
            .map(|(_, to)| *to)
            .filter(|to| *to >= first)
    }
}

impl<'a> FromIterator<&'a IpNet> for Taken {
    fn from_iter<I: IntoIterator<Item = &'a IpNet>>(blocks: I) -> Self {
        let mut taken = Self::default();
        for block in blocks {
            taken.insert(block);
        }
        taken
    }
}

/// The lowest free part of `from` with `prefix` bits; none if `from` is full, or
/// if `prefix` is no length of a part of it.
pub(crate) fn lowest_free(from: &IpNet, prefix: u8, taken: &Taken) -> Option<IpNet> {
    if prefix < from.prefix_len() || prefix > from.max_prefix_len() {
        return None;
    }
    let (mut candidate, end) = range(from);
    // Less by one than the size, which for a /0 of IPv6 has no number.
    let span = u128::MAX
        .checked_shr(128 - u32::from(from.max_prefix_len() - prefix))
        .unwrap_or(0);
    loop {
        let last = candidate.checked_add(span).filter(|last| *last <= end)?;
        let Some(to) = taken.meets(from, candidate, last) else {
            return block(from, candidate, prefix);
        };
        // The next boundary after the range in the way.
        candidate = (to | span).checked_add(1)?;
    }
}

/// How many parts of `prefix` bits a block has.
pub(crate) fn capacity(of: &IpNet, prefix: u8) -> i64 {
    let bits = u32::from(prefix.saturating_sub(of.prefix_len()));
    1i64.checked_shl(bits)
        .filter(|n| *n > 0)
        .unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_gap_is_found_and_a_full_block_gives_nothing() {
        let from = net("10.244.0.0/22");
        let mut taken: Taken = [net("10.244.0.0/24"), net("10.244.2.0/24")]
            .iter()
            .collect();
        for expected in ["10.244.1.0/24", "10.244.3.0/24"] {
            let got = lowest_free(&from, 24, &taken).unwrap();
            assert_eq!(got, net(expected));
            taken.insert(&got);
        }
        assert_eq!(lowest_free(&from, 24, &taken), None);
        assert_eq!(capacity(&from, 24), 4);
    }

    #[test]
    fn a_claim_of_another_size_is_stepped_over() {
        let from = net("10.244.0.0/16");
        let taken: Taken = [net("10.244.0.128/25"), net("10.244.2.0/23")]
            .iter()
            .collect();
        assert_eq!(lowest_free(&from, 24, &taken), Some(net("10.244.1.0/24")));
        assert_eq!(lowest_free(&from, 23, &taken), Some(net("10.244.4.0/23")));
        assert_eq!(lowest_free(&from, 25, &taken), Some(net("10.244.0.0/25")));
    }

    #[test]
    fn the_ends_of_both_address_spaces_do_not_overflow() {
        let v4 = net("255.255.255.0/24");
        assert_eq!(lowest_free(&v4, 24, &[v4].iter().collect()), None);
        let v6 = net("ffff:ffff:ffff:ffff::/64");
        assert_eq!(lowest_free(&v6, 80, &[v6].iter().collect()), None);
        let all = net("::/0");
        assert_eq!(lowest_free(&all, 0, &Taken::default()), Some(all));
        assert_eq!(
            lowest_free(&v6, 128, &Taken::default()),
            Some(net("ffff:ffff:ffff:ffff::/128"))
        );
    }

    #[test]
    fn families_do_not_see_each_other() {
        let taken: Taken = [net("0.0.0.0/0")].iter().collect();
        assert!(lowest_free(&net("fd00::/48"), 64, &taken).is_some());
        assert_eq!(lowest_free(&net("0.0.0.0/8"), 24, &taken), None);
    }

    proptest! {
        /// Whatever is claimed, in whatever sizes: what is found lies in the
        /// block, overlaps nothing, and nothing below it would have done.
        #[test]
        fn what_is_found_is_free_and_the_lowest(
            claims in proptest::collection::vec((0u32..1024, 22u8..=28), 0..60),
            prefix in 22u8..=28,
        ) {
            let from = net("10.0.0.0/18");
            let base = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0));
            let claims: Vec<IpNet> = claims
                .iter()
                .map(|(at, p)| {
                    IpNet::V4(ipnet::Ipv4Net::new((base + at * 16).into(), *p).unwrap().trunc())
                })
                .collect();
            let taken: Taken = claims.iter().collect();
            let free = |b: &IpNet| !claims.iter().any(|c| c.contains(b) || b.contains(c));
            let mut expected = from.subnets(prefix).unwrap();
            prop_assert_eq!(lowest_free(&from, prefix, &taken), expected.find(free));
        }

        /// Blocks of several sizes given out one after the other until none is
        /// left never overlap, and fill the block.
        #[test]
        fn a_block_given_out_to_the_end_is_filled_without_overlap(
            prefixes in proptest::collection::vec(20u8..=24, 1..40),
        ) {
            let from = net("10.0.0.0/18");
            let (mut taken, mut given) = (Taken::default(), Vec::<IpNet>::new());
            for prefix in prefixes.into_iter().chain(std::iter::repeat_n(24, 64)) {
                if let Some(got) = lowest_free(&from, prefix, &taken) {
                    prop_assert!(!given.iter().any(|g| g.contains(&got) || got.contains(g)));
                    taken.insert(&got);
                    given.push(got);
                }
            }
            let total: u64 = given.iter().map(|g| 1u64 << (32 - g.prefix_len())).sum();
            prop_assert_eq!(total, 1 << 14);
        }
    }
}
