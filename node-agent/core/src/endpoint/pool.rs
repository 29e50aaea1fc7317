//! The free addresses of the node's block: never used ones first, then the one
//! that has been free for longest.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// An address that a pod gave back.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Released {
    /// The address.
    pub address: Ipv4Addr,
    /// UID of the pod that had it; it gets it back if it is wired again.
    pub pod_uid: String,
}

/// Addresses that pods of this node have by their status, and the UIDs that each
/// such pod goes by. Their namespaces may be another network's.
pub type Claims = HashMap<Ipv4Addr, Vec<String>>;

/// Whether an address is another pod's.
fn is_anothers(claims: &Claims, address: Ipv4Addr, pod_uid: &str) -> bool {
    claims
        .get(&address)
        .is_some_and(|uids| !uids.iter().any(|uid| uid == pod_uid))
}

/// The addresses of one block.
#[derive(Debug)]
pub struct Pool {
    block: Ipv4Net,
    /// Next address that was never handed out, as its distance from the base.
    next: u32,
    released: VecDeque<Released>,
    used: HashSet<Ipv4Addr>,
}

/// The address pods use as next hop and other nodes probe: the first of the
/// block. The node has it on `lo`.
pub fn gateway_of(block: &IpNet) -> Option<IpAddr> {
    block.hosts().next()
}

/// Distance of the first address for pods from the base: network and gateway
/// come before it.
const FIRST: u32 = 2;

impl Pool {
    /// A pool of which `used` are taken and `released` were given back, the
    /// longest-free one first.
    pub fn new(
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
    pub fn block(&self) -> Ipv4Net {
        self.block
    }

    /// How many addresses pods can have.
    pub fn capacity(&self) -> u32 {
        (self.last() + 1).saturating_sub(FIRST)
    }

    /// Marks an address as taken that a pod turns out to have. Whether it was
    /// free.
    pub fn hold(&mut self, address: Ipv4Addr) -> bool {
        if !self.block.contains(&address) {
            return true;
        }
        self.released.retain(|r| r.address != address);
        if self.is_for_pods(address) {
            while self.next <= self.distance(address) {
                let skipped = self.at(self.next);
                self.next += 1;
                if skipped != address && !self.used.contains(&skipped) {
                    self.released.push_back(Released {
                        address: skipped,
                        pod_uid: String::new(),
                    });
                }
            }
        }
        self.used.insert(address)
    }

    /// Takes an address: the one this pod had before, as remembered here or as
    /// its status has it, if it is still free; and none that is another pod's.
    /// `None` when all are in use.
    pub fn take(&mut self, pod_uid: &str, claims: &Claims) -> Option<Ipv4Addr> {
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
        let own = claims
            .iter()
            .filter(|(_, uids)| !pod_uid.is_empty() && uids.iter().any(|uid| uid == pod_uid))
            .map(|(address, _)| *address)
            .find(|a| self.is_for_pods(*a) && !self.used.contains(a));
        if let Some(address) = own {
            self.hold(address);
            return Some(address);
        }
        while self.next <= self.last() {
            let address = self.at(self.next);
            self.next += 1;
            if self.used.contains(&address) {
                continue;
            }
            if is_anothers(claims, address, pod_uid) {
                self.released.push_back(Released {
                    address,
                    pod_uid: String::new(),
                });
                continue;
            }
            self.used.insert(address);
            return Some(address);
        }
        let free = |r: &Released| !is_anothers(claims, r.address, pod_uid);
        // The status of a pod that is going names its address until it is gone.
        // That it gave the address back is certain only where it was seen here.
        let given_back =
            |r: &Released| !r.pod_uid.is_empty() && !is_anothers(claims, r.address, &r.pod_uid);
        let at = self
            .released
            .iter()
            .position(free)
            .or_else(|| self.released.iter().position(given_back))?;
        let address = self.released.remove(at)?.address;
        self.used.insert(address);
        Some(address)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr, pod_uid: &str) {
        if self.used.remove(&address) && self.is_for_pods(address) {
            self.released.push_back(Released {
                address,
                pod_uid: pod_uid.to_owned(),
            });
        }
    }

    /// Addresses that were given back, the longest-free one first.
    pub fn released(&self) -> impl Iterator<Item = &Released> {
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
        let all: Vec<_> = std::iter::from_fn(|| p.take("", &Claims::new())).collect();
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
        let a = p.take("a", &Claims::new()).unwrap();
        let b = p.take("b", &Claims::new()).unwrap();
        p.release(a, "a");
        p.release(b, "b");
        for _ in 0..3 {
            let fresh = p.take("x", &Claims::new()).unwrap();
            assert!(fresh != a && fresh != b);
        }
        assert_eq!(p.take("x", &Claims::new()), Some(a));
        assert_eq!(p.take("x", &Claims::new()), Some(b));
        assert_eq!(p.take("x", &Claims::new()), None);
    }

    #[test]
    fn a_sandbox_made_again_for_the_same_pod_gets_its_address_back() {
        let mut p = pool();
        let a = p.take("uid-a", &Claims::new()).unwrap();
        p.take("uid-b", &Claims::new()).unwrap();
        p.release(a, "uid-a");
        assert_eq!(p.take("uid-a", &Claims::new()), Some(a));
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
        let order: Vec<_> = std::iter::from_fn(|| p.take("", &Claims::new()))
            .map(|a| a.to_string())
            .collect();
        assert_eq!(order, ["10.1.0.6", "10.1.0.4", "10.1.0.2", "10.1.0.3"]);
    }

    #[test]
    fn releasing_twice_does_not_hand_out_twice() {
        let mut p = pool();
        let a = p.take("", &Claims::new()).unwrap();
        p.release(a, "");
        p.release(a, "");
        let again = std::iter::from_fn(|| p.take("", &Claims::new()))
            .filter(|x| *x == a)
            .count();
        assert_eq!(again, 1);
    }

    fn claims(all: &[(&str, &str)]) -> Claims {
        all.iter()
            .map(|(address, uid)| (address.parse().unwrap(), vec![(*uid).to_owned()]))
            .collect()
    }

    #[test]
    fn an_address_that_a_pod_of_another_network_has_is_never_given() {
        let mut p = pool();
        let claims = claims(&[("10.1.0.3", "old"), ("10.1.0.6", "old-2")]);
        let all: Vec<_> = std::iter::from_fn(|| p.take("new", &claims))
            .map(|a| a.to_string())
            .collect();
        assert_eq!(all, ["10.1.0.2", "10.1.0.4", "10.1.0.5"]);
        // Once the old pod is gone its address is free.
        assert_eq!(
            p.take("new", &Claims::new()),
            Some("10.1.0.3".parse().unwrap())
        );
    }

    #[test]
    fn a_pod_whose_release_was_forgotten_gets_the_address_of_its_status_back() {
        let mut p = pool();
        let claims = claims(&[("10.1.0.4", "u"), ("10.9.0.1", "v")]);
        assert_eq!(p.take("u", &claims), Some("10.1.0.4".parse().unwrap()));
        assert_eq!(p.take("v", &claims), Some("10.1.0.5".parse().unwrap()));
        assert_eq!(p.take("x", &claims), Some("10.1.0.6".parse().unwrap()));
    }

    #[test]
    fn in_a_full_block_an_address_given_back_here_serves_before_its_pod_is_gone() {
        let mut p = pool();
        let all: Vec<_> = (0..5)
            .map(|n| p.take(&format!("u{n}"), &Claims::new()).unwrap())
            .collect();
        let claims: Claims = all
            .iter()
            .enumerate()
            .map(|(n, a)| (*a, vec![format!("u{n}")]))
            .collect();
        assert_eq!(p.take("new", &claims), None);
        p.release(all[3], "u3");
        assert_eq!(p.take("new", &claims), Some(all[3]));
    }

    #[test]
    fn an_address_found_in_use_is_held_and_those_before_it_stay_free() {
        let mut p = pool();
        assert!(p.hold("10.1.0.4".parse().unwrap()));
        assert!(!p.hold("10.1.0.4".parse().unwrap()), "held once");
        let order: Vec<_> = std::iter::from_fn(|| p.take("", &Claims::new()))
            .map(|a| a.to_string())
            .collect();
        assert_eq!(order, ["10.1.0.5", "10.1.0.6", "10.1.0.2", "10.1.0.3"]);
    }
}
