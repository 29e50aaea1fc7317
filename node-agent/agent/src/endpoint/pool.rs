//! The free addresses of the node's block: never used ones first, then the one
//! that has been free for longest.

use std::{
    collections::{HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// An address that a pod gave back.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Released {
    /// The address.
    pub(crate) address: Ipv4Addr,
    /// UID of the pod that had it; it gets it back if it is wired again.
    pub(crate) pod_uid: String,
}

/// The addresses of one block.
#[derive(Debug)]
pub(crate) struct Pool {
    block: Ipv4Net,
    /// Next address that was never handed out, as its distance from the base.
    next: u32,
    released: VecDeque<Released>,
    used: HashSet<Ipv4Addr>,
}

/// The address pods use as next hop and other nodes probe: the first of the
/// block. The node has it on `lo`.
pub(crate) fn gateway_of(block: &IpNet) -> Option<IpAddr> {
    block.hosts().next()
}

/// Distance of the first address for pods from the base: network and gateway
/// come before it.
const FIRST: u32 = 2;

impl Pool {
    /// A pool of which `used` are taken and `released` were given back, the
    /// longest-free one first.
    pub(crate) fn new(
        block: Ipv4Net,
        used: impl IntoIterator<Item = Ipv4Addr>,
        released: impl IntoIterator<Item = Released>,
    ) -> Self {
        let used: HashSet<Ipv4Addr> = used.into_iter().filter(|a| block.contains(a)).collect();
        let mut pool = Self {
            block,
            next: FIRST,
            released: VecDeque::new(),
            used,
        };
        for r in released {
            let known = pool.released.iter().any(|k| k.address == r.address);
            if pool.is_for_pods(r.address) && !known && !pool.used.contains(&r.address) {
                pool.released.push_back(r);
            }
        }
        // What lies below the highest address ever seen was used before, even
        // if a crash lost the note of its release.
        let highest = pool
            .used
            .iter()
            .chain(pool.released.iter().map(|r| &r.address))
            .map(|a| pool.distance(*a))
            .max();
        if let Some(highest) = highest {
            for distance in FIRST..=highest {
                let address = pool.at(distance);
                let known = pool.released.iter().any(|r| r.address == address);
                if !known && !pool.used.contains(&address) {
                    pool.released.push_back(Released {
                        address,
                        pod_uid: String::new(),
                    });
                }
            }
            pool.next = highest + 1;
        }
        pool
    }

    fn distance(&self, address: Ipv4Addr) -> u32 {
        u32::from(address).wrapping_sub(u32::from(self.block.network()))
    }

    fn at(&self, distance: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.block.network()).wrapping_add(distance))
    }

    fn last(&self) -> u32 {
        // The broadcast address stays out.
        self.distance(self.block.broadcast()).saturating_sub(1)
    }

    fn is_for_pods(&self, address: Ipv4Addr) -> bool {
        self.block.contains(&address) && (FIRST..=self.last()).contains(&self.distance(address))
    }

    /// The block.
    pub(crate) fn block(&self) -> Ipv4Net {
        self.block
    }

    /// How many addresses pods can have.
    pub(crate) fn capacity(&self) -> u32 {
        (self.last() + 1).saturating_sub(FIRST)
    }

    /// Takes an address: the one this pod had before, if it is still free.
    /// `None` when all are in use.
    pub(crate) fn take(&mut self, pod_uid: &str) -> Option<Ipv4Addr> {
        let before = self
            .released
            .iter()
            .position(|r| !pod_uid.is_empty() && r.pod_uid == pod_uid);
        if let Some(address) = before
            .and_then(|at| self.released.remove(at))
            .map(|r| r.address)
        {
            self.used.insert(address);
            return Some(address);
        }
        while self.next <= self.last() {
            let address = self.at(self.next);
            self.next += 1;
            if self.used.insert(address) {
                return Some(address);
            }
        }
        let address = self.released.pop_front()?.address;
        self.used.insert(address);
        Some(address)
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr, pod_uid: &str) {
        if self.used.remove(&address) && self.is_for_pods(address) {
            self.released.push_back(Released {
                address,
                pod_uid: pod_uid.to_owned(),
            });
        }
    }

    /// Addresses that were given back, the longest-free one first.
    pub(crate) fn released(&self) -> impl Iterator<Item = &Released> {
        self.released.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new("10.1.0.0/29".parse().unwrap(), [], [])
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_given() {
        let mut p = pool();
        let all: Vec<_> = std::iter::from_fn(|| p.take("")).collect();
        let text: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
        );
        assert_eq!(p.capacity() as usize, all.len());
        let block: IpNet = "10.1.0.0/29".parse().unwrap();
        assert_eq!(gateway_of(&block), Some("10.1.0.1".parse().unwrap()));
    }

    #[test]
    fn the_longest_free_comes_back_first_and_only_after_the_unused() {
        let mut p = pool();
        let a = p.take("a").unwrap();
        let b = p.take("b").unwrap();
        p.release(a, "a");
        p.release(b, "b");
        for _ in 0..3 {
            let fresh = p.take("x").unwrap();
            assert!(fresh != a && fresh != b);
        }
        assert_eq!(p.take("x"), Some(a));
        assert_eq!(p.take("x"), Some(b));
        assert_eq!(p.take("x"), None);
    }

    #[test]
    fn a_sandbox_made_again_for_the_same_pod_gets_its_address_back() {
        let mut p = pool();
        let a = p.take("uid-a").unwrap();
        p.take("uid-b").unwrap();
        p.release(a, "uid-a");
        assert_eq!(p.take("uid-a"), Some(a));
    }

    #[test]
    fn a_restart_keeps_the_order_and_what_is_in_use() {
        let released = Released {
            address: "10.1.0.4".parse().unwrap(),
            pod_uid: "u".into(),
        };
        let mut p = Pool::new(
            "10.1.0.0/29".parse().unwrap(),
            ["10.1.0.5".parse().unwrap()],
            [released],
        );
        let order: Vec<_> = std::iter::from_fn(|| p.take(""))
            .map(|a| a.to_string())
            .collect();
        assert_eq!(order, ["10.1.0.6", "10.1.0.4", "10.1.0.2", "10.1.0.3"]);
    }

    #[test]
    fn releasing_twice_does_not_hand_out_twice() {
        let mut p = pool();
        let a = p.take("").unwrap();
        p.release(a, "");
        p.release(a, "");
        let again = std::iter::from_fn(|| p.take(""))
            .filter(|x| *x == a)
            .count();
        assert_eq!(again, 1);
    }
}
