//! Wired pods, and the pools of addresses that they draw from, one of each family.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use veer_agent_api::{Attachment, HostPort};
use veer_bpf_common::identity::Identity;
use veer_bpf_common::tables::Share;

use super::{Claims, LocalEndpoint, PodAddress, Pool, gateway_of, is_device_of, pool::Released};
use crate::family::Family;

/// Why no address could be reserved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// No block yet.
    #[error(
        "the node has no pod CIDR yet: see the condition CIDRAllocated in `kubectl get nodereport`"
    )]
    NoBlock,
    /// All in use.
    #[error(
        "all {capacity} pod addresses of {block} are in use: delete pods on this node or give the \
         cluster a smaller nodeMaskSize for new nodes"
    )]
    Exhausted {
        /// The node's block.
        block: IpNet,
        /// Addresses for pods in it.
        capacity: u32,
    },
}

/// What a new endpoint gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Its address in the node's primary family of pods.
    pub first: PodAddress,
    /// Its address in the other family, if the node has a block there.
    pub second: Option<PodAddress>,
    /// Its number on this node.
    pub endpoint_id: u16,
    /// Its allocation serial.
    pub serial: i64,
}

/// So many numbers in a row have different shares of the places of flows, [`Share`], and
/// there are no more.
const SHARES: usize = 256;

/// All wired pods.
#[derive(Debug)]
pub struct Store {
    endpoints: BTreeMap<Attachment, Arc<LocalEndpoint>>,
    /// Whose records are to be on disk: from the end of ADD to the begin of DEL.
    recorded: BTreeSet<Attachment>,
    /// Whose DEL has begun: nothing is wired for them any more.
    leaving: BTreeSet<Attachment>,
    /// One of each family at most, the primary one first.
    pools: Vec<Pool>,
    /// So many of the pools, the first, are assigned to the node. The others go with the
    /// last pod that holds an address of theirs, and give none to new pods.
    assigned: usize,
    /// Released addresses read from disk before the family's block was known.
    waiting: Vec<Released>,
    last_id: u16,
    reserved_ids: Vec<u16>,
    last_serial: i64,
    released_dirty: bool,
}

impl Store {
    /// A store of what the records on disk say, and of the addresses that were given
    /// back, the longest-free one first.
    pub fn new(records: impl IntoIterator<Item = LocalEndpoint>, released: Vec<Released>) -> Self {
        let endpoints: BTreeMap<Attachment, Arc<LocalEndpoint>> = records
            .into_iter()
            .map(|e| (e.attachment.clone(), Arc::new(e)))
            .collect();
        Self {
            recorded: endpoints.keys().cloned().collect(),
            leaving: BTreeSet::new(),
            last_serial: endpoints.values().map(|e| e.serial).max().unwrap_or(0),
            endpoints,
            pools: Vec::new(),
            assigned: 0,
            waiting: released,
            last_id: 0,
            reserved_ids: Vec::new(),
            released_dirty: false,
        }
    }

    /// Brings the pools to the blocks that are assigned, the first of each family. A new
    /// one is taken over only while no pod holds an address of the old one. Returns those
    /// in use after it, and before them what new pods get addresses of.
    pub fn set_blocks(&mut self, assigned: &[IpNet]) -> Vec<IpNet> {
        let mut former = std::mem::take(&mut self.pools);
        for block in assigned {
            if self.pools.iter().any(|pool| same_family(pool, block)) {
                continue;
            }
            let at = former.iter().position(|pool| same_family(pool, block));
            let pool = match at.map(|at| former.remove(at)) {
                Some(pool) if pool.block() == *block || self.holds_beside(block) => pool,
                Some(_) | None => self.new_pool(*block),
            };
            self.pools.push(pool);
        }
        self.assigned = self.pools.len();
        former.retain(|pool| pool.held() > 0);
        self.pools.append(&mut former);
        self.blocks().collect()
    }

    /// Whether a pod holds an address of another block of the family.
    fn holds_beside(&self, block: &IpNet) -> bool {
        let mut held = self.endpoints.values().flat_map(|e| e.addresses());
        held.any(|a| Family::of_net(block).has(a.gateway) && !block.contains(&a.gateway))
    }

    fn new_pool(&mut self, block: IpNet) -> Pool {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (released, others): (Vec<_>, Vec<_>) =
            waiting.partition(|r| Family::of_net(&block).has(r.address));
        self.waiting = others;
        let used = self.endpoints.values().flat_map(|e| e.addresses());
        Pool::new(block, used.map(|a| a.address), released)
    }

    /// The pool that an address is of.
    fn pool_of(&mut self, address: IpAddr) -> Option<&mut Pool> {
        let mut pools = self.pools.iter_mut();
        pools.find(|pool| pool.block().contains(&address))
    }

    /// Takes an address of each family, a number and a serial for a new endpoint. Where
    /// one family has no address, none is taken of the other. `now` is milliseconds since
    /// 1970.
    pub fn reserve(
        &mut self,
        pod_uid: &str,
        claims: &Claims,
        now: i64,
    ) -> Result<Reservation, StoreError> {
        let mut taken = Vec::new();
        for pool in &mut self.pools[..self.assigned] {
            let block = pool.block();
            let gateway = gateway_of(&block).ok_or(StoreError::NoBlock);
            let address = gateway.and_then(|gateway| {
                let exhausted = StoreError::Exhausted {
                    block,
                    capacity: pool.capacity(),
                };
                let address = pool.take(pod_uid, claims).ok_or(exhausted)?;
                Ok(PodAddress { address, gateway })
            });
            match address {
                Ok(address) => taken.push(address),
                Err(error) => {
                    self.give_back(taken, pod_uid);
                    return Err(error);
                }
            }
        }
        let first = *taken.first().ok_or(StoreError::NoBlock)?;
        let endpoint_id = self.free_id();
        self.reserved_ids.push(endpoint_id);
        Ok(Reservation {
            first,
            second: taken.get(1).copied(),
            endpoint_id,
            serial: self.next_serial(now),
        })
    }

    /// Gives back what [`Store::reserve`] took and no endpoint uses.
    pub fn cancel(&mut self, reservation: &Reservation, pod_uid: &str) {
        self.reserved_ids
            .retain(|id| *id != reservation.endpoint_id);
        let taken = [reservation.first].into_iter().chain(reservation.second);
        self.give_back(taken, pod_uid);
    }

    fn give_back(&mut self, taken: impl IntoIterator<Item = PodAddress>, pod_uid: &str) {
        for PodAddress { address, .. } in taken {
            if let Some(pool) = self.pool_of(address) {
                pool.release(address, pod_uid);
            }
        }
    }

    /// A number that no endpoint has, if possible with a share that none has either: pods
    /// of one share take each other's places of flows.
    fn free_id(&mut self) -> u16 {
        let known = self.endpoints.values().map(|e| e.endpoint_id);
        let taken: BTreeSet<u16> = known.chain(self.reserved_ids.iter().copied()).collect();
        let share = |id: &u16| Share::of_pod(*id).number();
        let shares: BTreeSet<u16> = taken.iter().map(share).collect();
        let last = self.last_id;
        let candidates = || {
            // 0 is no number.
            let next = |id: &u16| Some(id.checked_add(1).unwrap_or(1));
            std::iter::successors(next(&last), next)
        };
        let alone = candidates()
            .take(SHARES)
            .find(|id| !shares.contains(&share(id)));
        // There are always fewer endpoints than numbers.
        let id = alone.or_else(|| candidates().find(|id| !taken.contains(id)));
        self.last_id = id.unwrap_or(1);
        self.last_id
    }

    /// `now`, or one more than the last: it rises also over restarts without a write
    /// for it.
    fn next_serial(&mut self, now: i64) -> i64 {
        self.last_serial = now.max(self.last_serial + 1);
        self.last_serial
    }

    /// Makes an endpoint known. Its record is due only with [`Store::record`]: an
    /// ADD that is killed before it is through leaves none.
    pub fn insert(&mut self, endpoint: LocalEndpoint) {
        self.reserved_ids.retain(|id| *id != endpoint.endpoint_id);
        self.leaving.remove(&endpoint.attachment);
        self.endpoints
            .insert(endpoint.attachment.clone(), Arc::new(endpoint));
    }

    /// From now on the endpoint's record is to be on disk.
    pub fn record(&mut self, attachment: &Attachment) {
        if self.endpoints.contains_key(attachment) {
            self.recorded.insert(attachment.clone());
        }
    }

    /// Makes an endpoint known that was found wired without a record, with a
    /// number and a serial if it lacks them. `None` when an address of it is another's.
    /// `now` is milliseconds since 1970.
    pub fn adopt(&mut self, mut endpoint: LocalEndpoint, now: i64) -> Option<LocalEndpoint> {
        let taken = |a: PodAddress| {
            let mut pools = self.pools.iter();
            self.by_address(a.address).is_some() || pools.any(|pool| pool.is_taken(a.address))
        };
        if endpoint.addresses().any(taken) {
            return None;
        }
        for PodAddress { address, .. } in endpoint.addresses() {
            if let Some(pool) = self.pool_of(address) {
                pool.hold(address);
            }
        }
        let id = endpoint.endpoint_id;
        let taken =
            self.reserved_ids.contains(&id) || self.endpoints.values().any(|e| e.endpoint_id == id);
        if id == 0 || taken {
            endpoint.endpoint_id = self.free_id();
        }
        if endpoint.serial == 0 {
            endpoint.serial = self.next_serial(now);
        }
        self.last_serial = self.last_serial.max(endpoint.serial);
        self.insert(endpoint.clone());
        self.record(&endpoint.attachment);
        Some(endpoint)
    }

    /// The attachment under which an interface is known here: a rebuilt record's
    /// may be another than the runtime's, but its device is the same.
    pub fn known_as(&self, attachment: &Attachment) -> Attachment {
        if self.endpoints.contains_key(attachment) {
            return attachment.clone();
        }
        self.endpoints
            .values()
            .find(|e| is_device_of(&e.host_ifname, attachment))
            .map_or_else(|| attachment.clone(), |e| e.attachment.clone())
    }

    /// Begins to forget an endpoint: its record is not to be on disk any more.
    pub fn leave(&mut self, attachment: &Attachment) -> Option<Arc<LocalEndpoint>> {
        self.recorded.remove(attachment);
        let endpoint = self.endpoints.get(attachment)?;
        self.leaving.insert(attachment.clone());
        Some(Arc::clone(endpoint))
    }

    /// Forgets an endpoint and frees its address: only once its record is off the
    /// disk, or a crash would leave two records with one address.
    pub fn remove(&mut self, attachment: &Attachment) {
        self.recorded.remove(attachment);
        self.leaving.remove(attachment);
        let Some(endpoint) = self.endpoints.remove(attachment) else {
            return;
        };
        self.give_back(endpoint.addresses(), &endpoint.pod_uid);
        self.released_dirty |= !self.pools.is_empty();
    }

    /// Whether an endpoint's record is to be on disk.
    pub fn is_recorded(&self, attachment: &Attachment) -> bool {
        self.recorded.contains(attachment)
    }

    /// The record that an interface is to have on disk; `None`: none.
    pub fn record_of(&self, attachment: &Attachment) -> Option<Arc<LocalEndpoint>> {
        let recorded = self.recorded.contains(attachment);
        self.endpoints.get(attachment).filter(|_| recorded).cloned()
    }

    /// Changes an endpoint's identity.
    pub fn set_identity(
        &mut self,
        attachment: &Attachment,
        identity: Identity,
        object_uid: Option<String>,
    ) -> Option<LocalEndpoint> {
        let endpoint = Arc::make_mut(self.endpoints.get_mut(attachment)?);
        endpoint.identity = identity;
        endpoint.object_uid = object_uid.or(endpoint.object_uid.take());
        Some(endpoint.clone())
    }

    /// The pod that has one of these ports of the node, and which: of another pod
    /// than the endpoint's own, whose earlier sandbox may still be there.
    pub fn holder_of_ports(&self, of: &LocalEndpoint) -> Option<(HostPort, String)> {
        let others = self.endpoints.values().filter(|e| {
            let same_pod = !of.pod_uid.is_empty() && e.pod_uid == of.pod_uid;
            e.attachment != of.attachment && !same_pod
        });
        others
            .flat_map(|e| e.host_ports().iter().map(move |held| (held, e)))
            .find(|(held, _)| of.host_ports().iter().any(|port| port.overlaps(held)))
            .map(|(held, e)| (*held, e.pod()))
    }

    /// Says which hostPorts an endpoint has.
    pub fn set_host_ports(&mut self, attachment: &Attachment, ports: Vec<HostPort>) {
        if let Some(endpoint) = self.endpoints.get_mut(attachment).map(Arc::make_mut) {
            endpoint.host_ports = Some(ports);
        }
    }

    /// Says whose a rebuilt endpoint is.
    pub fn name(
        &mut self,
        attachment: &Attachment,
        namespace: &str,
        pod_name: &str,
        pod_uid: &str,
    ) {
        if let Some(endpoint) = self.endpoints.get_mut(attachment).map(Arc::make_mut) {
            namespace.clone_into(&mut endpoint.namespace);
            pod_name.clone_into(&mut endpoint.pod_name);
            pod_uid.clone_into(&mut endpoint.pod_uid);
        }
    }

    /// The released addresses, the longest-free one first, if they changed since they
    /// were last asked for.
    pub fn released_to_write(&mut self) -> Option<Vec<Released>> {
        if !std::mem::take(&mut self.released_dirty) {
            return None;
        }
        let known = self.pools.iter().flat_map(Pool::released);
        Some(known.chain(&self.waiting).cloned().collect())
    }

    /// What was last asked for could not be written.
    pub fn released_unwritten(&mut self) {
        self.released_dirty = true;
    }

    /// One endpoint.
    pub fn get(&self, attachment: &Attachment) -> Option<&LocalEndpoint> {
        self.endpoints.get(attachment).map(|e| &**e)
    }

    /// The endpoint with an address.
    pub fn by_address(&self, address: IpAddr) -> Option<&LocalEndpoint> {
        self.iter().find(|e| e.has(address))
    }

    /// All endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &LocalEndpoint> {
        self.endpoints.values().map(|e| &**e)
    }

    /// Those that the node is to be wired for: no DEL of theirs has begun.
    pub fn wired(&self) -> impl Iterator<Item = &LocalEndpoint> {
        self.staying().map(|e| &**e)
    }

    /// The same for who goes on without the store.
    pub fn wired_now(&self) -> Vec<Arc<LocalEndpoint>> {
        self.staying().cloned().collect()
    }

    fn staying(&self) -> impl Iterator<Item = &Arc<LocalEndpoint>> {
        let all = self.endpoints.iter();
        all.filter(|(attachment, _)| !self.leaving.contains(attachment))
            .map(|(_, endpoint)| endpoint)
    }

    /// That of [`Store::wired`] with an address.
    pub fn wired_at(&self, address: IpAddr) -> Option<&LocalEndpoint> {
        self.wired().find(|e| e.has(address))
    }

    /// Whether no pod is wired.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many pods are wired.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// How many pods lack an address of a family that new pods get.
    pub fn lacking(&self) -> usize {
        let of = |pod: &&LocalEndpoint, block: &IpNet| {
            let mut addresses = pod.addresses();
            addresses.any(|a| Family::of_net(block).has(a.address))
        };
        let assigned = &self.pools[..self.assigned];
        let lacks = |pod: &&LocalEndpoint| !assigned.iter().all(|pool| of(pod, &pool.block()));
        self.iter().filter(lacks).count()
    }

    /// The addresses that this node probes others from and answers them at: those that
    /// pods have as next hops.
    pub fn health_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.blocks().filter_map(|block| gateway_of(&block))
    }

    /// The blocks in use, one of each family at most, the primary family's first.
    pub fn blocks(&self) -> impl Iterator<Item = IpNet> {
        self.pools.iter().map(Pool::block)
    }
}

fn same_family(pool: &Pool, block: &IpNet) -> bool {
    Family::of_net(&pool.block()) == Family::of_net(block)
}

#[cfg(test)]
mod tests;
