//! The free addresses of one block: never used ones first, then the one that has been
//! free for longest.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veer_bpf_common::tables::{Interfaces, Table};

/// An address that a pod gave back.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Released {
    /// The address.
    pub address: IpAddr,
    /// UID of the pod that had it; it gets it back if it is wired again.
    pub pod_uid: String,
}

/// Addresses that pods of this node have by their status, and the UIDs that each
/// such pod goes by. Their namespaces may be another network's.
pub type Claims = HashMap<IpAddr, Vec<String>>;

/// Whether an address is another pod's.
fn is_anothers(claims: &Claims, address: IpAddr, pod_uid: &str) -> bool {
    claims
        .get(&address)
        .is_some_and(|uids| !uids.iter().any(|uid| uid == pod_uid))
}

/// The addresses of one block.
#[derive(Debug)]
pub struct Pool {
    block: IpNet,
    /// Next address that was never handed out, as its distance from the base.
    next: u128,
    released: VecDeque<Released>,
    used: HashSet<IpAddr>,
}

/// The address pods use as next hop and other nodes probe: the one after the base of
/// the block (in IPv6 the base is every router's). The node has it on `lo`. `None`:
/// the block is a single address.
pub fn gateway_of(block: &IpNet) -> Option<IpAddr> {
    Some(at(block, GATEWAY)).filter(|gateway| block.contains(gateway))
}

/// Distance of the gateway from the base.
const GATEWAY: u128 = 1;

/// Distance of the first address for pods from the base: network and gateway
/// come before it.
const FIRST: u128 = 2;

/// So many addresses of an IPv6 block are used, as many as the node can have pods.
/// What was given back is remembered address by address, and a /64 has no end.
const MOST_V6: u128 = Interfaces::CAPACITY as u128;

/// Distance of an address from the base of a block; huge if it lies before it.
fn distance(block: &IpNet, address: IpAddr) -> u128 {
    let number = |address: IpAddr| match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    number(address).wrapping_sub(number(block.network()))
}

/// The address at a distance from the base of a block.
fn at(block: &IpNet, distance: u128) -> IpAddr {
    match block.network() {
        IpAddr::V4(base) => {
            let low = u32::try_from(distance & u128::from(u32::MAX)).unwrap_or_default();
            Ipv4Addr::from_bits(base.to_bits().wrapping_add(low)).into()
        }
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().wrapping_add(distance)).into(),
    }
}

impl Pool {
    /// A pool of which `used` are taken and `released` were given back, the
    /// longest-free one first.
    pub fn new(
        block: IpNet,
        used: impl IntoIterator<Item = IpAddr>,
        released: impl IntoIterator<Item = Released>,
    ) -> Self {
        let used: HashSet<IpAddr> = used.into_iter().filter(|a| block.contains(a)).collect();
        let mut pool = Self {
            block,
            next: FIRST,
            released: VecDeque::new(),
            used,
        };
        let mut known: HashSet<IpAddr> = pool.used.clone();
        for r in released {
            if pool.is_for_pods(r.address) && known.insert(r.address) {
                pool.released.push_back(r);
            }
        }
        // What lies below the highest address ever seen was used before, even
        // if a crash lost the note of its release.
        let highest = known
            .iter()
            .filter(|a| pool.is_for_pods(**a))
            .map(|a| distance(&block, *a))
            .max();
        if let Some(highest) = highest {
            let unknown = (FIRST..=highest)
                .map(|distance| at(&block, distance))
                .filter(|address| !known.contains(address));
            pool.released.extend(unknown.map(nobodys));
            pool.next = highest + 1;
        }
        pool
    }

    /// Distance of the last address for pods. The broadcast address, which IPv6 does not
    /// have, stays out.
    fn last(&self) -> u128 {
        let end = distance(&self.block, self.block.broadcast());
        match self.block {
            IpNet::V4(_) => end.saturating_sub(1),
            IpNet::V6(_) => end.min(FIRST + MOST_V6 - 1),
        }
    }

    fn is_for_pods(&self, address: IpAddr) -> bool {
        let range = FIRST..=self.last();
        self.block.contains(&address) && range.contains(&distance(&self.block, address))
    }

    /// The block.
    pub fn block(&self) -> IpNet {
        self.block
    }

    /// How many addresses pods can have.
    pub fn capacity(&self) -> u32 {
        u32::try_from((self.last() + 1).saturating_sub(FIRST)).unwrap_or(u32::MAX)
    }

    /// How many addresses are taken.
    pub fn held(&self) -> usize {
        self.used.len()
    }

    /// Whether an address is taken.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.used.contains(&address)
    }

    /// Marks an address as taken that a pod turns out to have. Whether it was
    /// free.
    pub fn hold(&mut self, address: IpAddr) -> bool {
        if !self.block.contains(&address) {
            return true;
        }
        self.released.retain(|r| r.address != address);
        if self.is_for_pods(address) {
            while self.next <= distance(&self.block, address) {
                let skipped = at(&self.block, self.next);
                self.next += 1;
                if skipped != address && !self.used.contains(&skipped) {
                    self.released.push_back(nobodys(skipped));
                }
            }
        }
        self.used.insert(address)
    }

    /// Takes an address: the one this pod had before, as remembered here or as
    /// its status has it, if it is still free; and none that is another pod's.
    /// `None` when all are in use.
    pub fn take(&mut self, pod_uid: &str, claims: &Claims) -> Option<IpAddr> {
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
            let address = at(&self.block, self.next);
            self.next += 1;
            if self.used.contains(&address) {
                continue;
            }
            if is_anothers(claims, address, pod_uid) {
                self.released.push_back(nobodys(address));
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
    pub fn release(&mut self, address: IpAddr, pod_uid: &str) {
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

/// A free address of which no pod is known that had it.
fn nobodys(address: IpAddr) -> Released {
    Released {
        address,
        pod_uid: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks alike, but for IPv4's broadcast address: pods get 2 to 6 in both.
    const BLOCKS: [&str; 2] = ["10.1.0.0/29", "fd00:1::/125"];

    /// The address of a family's block with this last part.
    fn ip(block: &str, last: u8) -> IpAddr {
        at(&block.parse().unwrap(), last.into())
    }

    /// Runs a scenario over both families. In IPv6 the last address, which is no
    /// broadcast address, is in use.
    fn each(scenario: impl Fn(&str, Pool)) {
        for block in BLOCKS {
            let used = (block == BLOCKS[1]).then(|| ip(block, 7));
            let mut pool = Pool::new(block.parse().unwrap(), [], []);
            if let Some(used) = used {
                pool.used.insert(used);
            }
            scenario(block, pool);
        }
    }

    /// The last parts of all addresses that a pool still gives.
    fn rest(pool: &mut Pool, uid: &str, claims: &Claims) -> Vec<u128> {
        let block = pool.block;
        std::iter::from_fn(|| pool.take(uid, claims))
            .map(|a| distance(&block, a))
            .collect()
    }

    #[test]
    fn base_gateway_and_broadcast_are_never_given() {
        for (block, gateway, last) in [
            ("10.1.0.0/29", "10.1.0.1", "10.1.0.6"),
            ("fd00:1::/125", "fd00:1::1", "fd00:1::7"),
        ] {
            let block: IpNet = block.parse().unwrap();
            let mut p = Pool::new(block, [], []);
            assert_eq!(gateway_of(&block), Some(gateway.parse().unwrap()));
            let all: Vec<_> = std::iter::from_fn(|| p.take("", &Claims::new())).collect();
            assert_eq!(all[0], at(&block, 2));
            assert_eq!(all.last(), Some(&last.parse().unwrap()));
            assert_eq!(p.capacity() as usize, all.len());
        }
        for single in ["10.1.0.1/32", "fd00::1/128"] {
            assert_eq!(gateway_of(&single.parse().unwrap()), None);
        }
    }

    #[test]
    fn a_large_ipv6_block_serves_as_many_pods_as_a_node_has_and_is_never_counted_through() {
        let block: IpNet = "fd00:1::/64".parse().unwrap();
        let far: IpAddr = "fd00:1::ffff:ffff:ffff:1".parse().unwrap();
        let mut p = Pool::new(block, [far], [nobodys(far)]);
        assert_eq!(p.capacity() as usize, Interfaces::CAPACITY);
        assert!(!p.hold(far), "a pod has it already");
        let claims = Claims::from([(far, vec!["u".to_owned()])]);
        let all: HashSet<_> = std::iter::from_fn(|| p.take("u", &claims)).collect();
        assert_eq!(all.len(), Interfaces::CAPACITY);
        assert!(all.contains(&"fd00:1::2".parse().unwrap()) && !all.contains(&far));
        p.release(far, "u");
        assert_eq!(p.take("u", &claims), None);
        let wide = Pool::new("10.0.0.0/8".parse().unwrap(), [], []);
        assert_eq!(wide.capacity(), (1 << 24) - 3);
    }

    #[test]
    fn the_longest_free_comes_back_first_and_only_after_the_unused() {
        each(|_, mut p| {
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
        });
    }

    #[test]
    fn a_sandbox_made_again_for_the_same_pod_gets_its_address_back() {
        each(|_, mut p| {
            let a = p.take("uid-a", &Claims::new()).unwrap();
            p.take("uid-b", &Claims::new()).unwrap();
            p.release(a, "uid-a");
            assert_eq!(p.take("uid-a", &Claims::new()), Some(a));
        });
    }

    #[test]
    fn a_restart_keeps_the_order_and_what_is_in_use() {
        for block in BLOCKS {
            let released = Released {
                address: ip(block, 4),
                pod_uid: "u".into(),
            };
            let used = [ip(block, 5)];
            let mut p = Pool::new(block.parse().unwrap(), used, [released]);
            let mut order = rest(&mut p, "", &Claims::new());
            order.retain(|last| *last != 7);
            assert_eq!(order, [6, 4, 2, 3]);
        }
    }

    #[test]
    fn releasing_twice_does_not_hand_out_twice() {
        each(|_, mut p| {
            let a = p.take("", &Claims::new()).unwrap();
            p.release(a, "");
            p.release(a, "");
            let again = std::iter::from_fn(|| p.take("", &Claims::new()))
                .filter(|x| *x == a)
                .count();
            assert_eq!(again, 1);
        });
    }

    fn claims(block: &str, all: &[(u8, &str)]) -> Claims {
        all.iter()
            .map(|(last, uid)| (ip(block, *last), vec![(*uid).to_owned()]))
            .collect()
    }

    #[test]
    fn an_address_that_a_pod_of_another_network_has_is_never_given() {
        each(|block, mut p| {
            let claims = claims(block, &[(3, "old"), (6, "old-2")]);
            assert_eq!(rest(&mut p, "new", &claims), [2, 4, 5]);
            // Once the old pod is gone its address is free.
            assert_eq!(p.take("new", &Claims::new()), Some(ip(block, 3)));
        });
    }

    #[test]
    fn a_pod_whose_release_was_forgotten_gets_the_address_of_its_status_back() {
        each(|block, mut p| {
            let mut claims = claims(block, &[(4, "u")]);
            for other in ["10.9.0.1", "fd00:9::1"] {
                let uids = vec!["u".into(), "v".into()];
                claims.insert(other.parse().unwrap(), uids);
            }
            assert_eq!(p.take("u", &claims), Some(ip(block, 4)));
            assert_eq!(p.take("v", &claims), Some(ip(block, 5)));
            assert_eq!(p.take("x", &claims), Some(ip(block, 6)));
        });
    }

    #[test]
    fn in_a_full_block_an_address_given_back_here_serves_before_its_pod_is_gone() {
        each(|_, mut p| {
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
        });
    }

    #[test]
    fn an_address_found_in_use_is_held_and_those_before_it_stay_free() {
        each(|block, mut p| {
            assert!(p.hold(ip(block, 4)));
            assert!(!p.hold(ip(block, 4)), "held once");
            assert_eq!(rest(&mut p, "", &Claims::new()), [5, 6, 2, 3]);
        });
    }

    #[test]
    fn released_addresses_are_on_disk_as_the_former_release_has_them() {
        let text = r#"[{"address":"10.1.0.4","pod_uid":"u"},{"address":"fd00:1::4","pod_uid":""}]"#;
        let all: Vec<Released> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&all).unwrap(), text);
    }
}
