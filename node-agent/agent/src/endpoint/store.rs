//! Records of wired pods below the state folder, and the pool they draw from.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::{IpNet, Ipv4Net};
use veer_agent_api::Attachment;
use veer_bpf_common::maps::FIRST_FOREIGN_SHARE;

use super::{LocalEndpoint, Pool, gateway_of, pool::Released};
use crate::files;

/// Why no address could be reserved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum StoreError {
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
        block: Ipv4Net,
        /// Addresses for pods in it.
        capacity: u32,
    },
}

/// What a new endpoint gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Its gateway.
    pub(crate) gateway: IpAddr,
    /// Its number on this node.
    pub(crate) endpoint_id: u16,
    /// Its allocation serial.
    pub(crate) serial: i64,
}

/// All wired pods.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    released_file: PathBuf,
    endpoints: BTreeMap<Attachment, LocalEndpoint>,
    pool: Option<Pool>,
    /// Released addresses read from disk before the block was known.
    waiting: Vec<Released>,
    last_id: u16,
    reserved_ids: Vec<u16>,
    last_serial: i64,
    released_dirty: bool,
}

impl Store {
    /// Reads the records below the state folder. One that cannot be read is
    /// left aside and named in the log: its sandbox is collected like any
    /// device without a record.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("endpoints");
        fs::create_dir_all(&folder)?;
        let mut endpoints = BTreeMap::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                let _ = fs::remove_file(&path);
                continue;
            }
            match serde_json::from_slice::<LocalEndpoint>(&fs::read(&path)?) {
                Ok(e) => {
                    endpoints.insert(e.attachment.clone(), e);
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "unreadable endpoint record");
                }
            }
        }
        let released_file = state.join("released.json");
        let waiting = fs::read(&released_file)
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default();
        let last_serial = endpoints.values().map(|e| e.serial).max().unwrap_or(0);
        Ok(Self {
            folder,
            released_file,
            endpoints,
            pool: None,
            waiting,
            last_id: 0,
            reserved_ids: Vec::new(),
            last_serial,
            released_dirty: false,
        })
    }

    /// The block in use: a new one is taken over only while no pod holds an
    /// address of the old one. Returns what is in use after it.
    pub(crate) fn set_block(&mut self, wanted: Ipv4Net) -> Ipv4Net {
        if let Some(pool) = &self.pool
            && pool.block() == wanted
        {
            return wanted;
        }
        let held = self.endpoints.values().find_map(|e| match e.gateway {
            IpAddr::V4(g) if !wanted.contains(&g) => Some(g),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        if held.is_some()
            && let Some(pool) = &self.pool
        {
            return pool.block();
        }
        let used = self.addresses();
        self.pool = Some(Pool::new(wanted, used, std::mem::take(&mut self.waiting)));
        wanted
    }

    fn addresses(&self) -> Vec<Ipv4Addr> {
        self.endpoints
            .values()
            .filter_map(|e| match e.address {
                IpAddr::V4(a) => Some(a),
                IpAddr::V6(_) => None,
            })
            .collect()
    }

    /// Takes an address, a number and a serial for a new endpoint.
    pub(crate) fn reserve(&mut self, pod_uid: &str) -> Result<Reservation, StoreError> {
        let pool = self.pool.as_mut().ok_or(StoreError::NoBlock)?;
        let block = pool.block();
        let gateway = gateway_of(&IpNet::V4(block)).ok_or(StoreError::NoBlock)?;
        let address = pool.take(pod_uid).ok_or(StoreError::Exhausted {
            block,
            capacity: pool.capacity(),
        })?;
        let endpoint_id = self.free_id();
        self.reserved_ids.push(endpoint_id);
        Ok(Reservation {
            address,
            gateway,
            endpoint_id,
            serial: self.next_serial(),
        })
    }

    /// Gives back what [`Store::reserve`] took and no endpoint uses.
    pub(crate) fn cancel(&mut self, reservation: &Reservation, pod_uid: &str) {
        self.reserved_ids
            .retain(|id| *id != reservation.endpoint_id);
        if let Some(pool) = &mut self.pool {
            pool.release(reservation.address, pod_uid);
        }
    }

    fn free_id(&mut self) -> u16 {
        loop {
            let next = self.last_id.checked_add(1);
            let id = next.filter(|id| *id < FIRST_FOREIGN_SHARE).unwrap_or(1);
            self.last_id = id;
            let taken = self.reserved_ids.contains(&id)
                || self.endpoints.values().any(|e| e.endpoint_id == id);
            if !taken {
                return id;
            }
        }
    }

    /// Milliseconds of the clock, or one more than the last: it rises also over
    /// restarts without a write for it.
    fn next_serial(&mut self) -> i64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|d| i64::try_from(d.as_millis()).ok())
            .unwrap_or(0);
        self.last_serial = now.max(self.last_serial + 1);
        self.last_serial
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        let name = format!("{}-{}.json", attachment.container_id, attachment.ifname);
        self.folder.join(name.replace('/', "_"))
    }

    /// Writes an endpoint's record to disk. Does not make it known: that is
    /// [`Store::insert`]'s, so that no lock is held over the disk's answer.
    pub(crate) fn record(&self, endpoint: &LocalEndpoint) -> (PathBuf, Vec<u8>) {
        let bytes = serde_json::to_vec(endpoint).unwrap_or_default();
        (self.path(&endpoint.attachment), bytes)
    }

    /// Makes an endpoint known.
    pub(crate) fn insert(&mut self, endpoint: LocalEndpoint) {
        self.reserved_ids.retain(|id| *id != endpoint.endpoint_id);
        self.endpoints.insert(endpoint.attachment.clone(), endpoint);
    }

    /// Forgets an endpoint, its record, and frees its address.
    pub(crate) fn remove(&mut self, attachment: &Attachment) -> io::Result<Option<LocalEndpoint>> {
        files::remove(&self.path(attachment))?;
        let Some(endpoint) = self.endpoints.remove(attachment) else {
            return Ok(None);
        };
        if let (Some(pool), IpAddr::V4(address)) = (&mut self.pool, endpoint.address) {
            pool.release(address, &endpoint.pod_uid);
            self.released_dirty = true;
        }
        Ok(Some(endpoint))
    }

    /// Changes an endpoint's identity, here and in its record.
    pub(crate) fn set_identity(
        &mut self,
        attachment: &Attachment,
        identity: u32,
        object_uid: Option<String>,
    ) -> io::Result<Option<LocalEndpoint>> {
        let path = self.path(attachment);
        let Some(endpoint) = self.endpoints.get_mut(attachment) else {
            return Ok(None);
        };
        endpoint.identity = identity;
        endpoint.object_uid = object_uid.or(endpoint.object_uid.take());
        let bytes = serde_json::to_vec(endpoint)?;
        files::write_atomically(&path, &bytes)?;
        Ok(Some(endpoint.clone()))
    }

    /// Notes the order of released addresses on disk, if it changed.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if let (true, Some(pool)) = (self.released_dirty, &self.pool) {
            let released: Vec<&Released> = pool.released().collect();
            files::write_atomically(&self.released_file, &serde_json::to_vec(&released)?)?;
            self.released_dirty = false;
        }
        Ok(())
    }

    /// One endpoint.
    pub(crate) fn get(&self, attachment: &Attachment) -> Option<&LocalEndpoint> {
        self.endpoints.get(attachment)
    }

    /// The endpoint with an address.
    pub(crate) fn by_address(&self, address: IpAddr) -> Option<&LocalEndpoint> {
        self.endpoints.values().find(|e| e.address == address)
    }

    /// All endpoints.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &LocalEndpoint> {
        self.endpoints.values()
    }

    /// How many pods are wired.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The block in use.
    pub(crate) fn block(&self) -> Option<Ipv4Net> {
        self.pool.as_ref().map(Pool::block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn attachment(n: u32) -> Attachment {
        Attachment {
            container_id: format!("c{n}"),
            ifname: "eth0".into(),
        }
    }

    fn endpoint(n: u32, r: Reservation) -> LocalEndpoint {
        LocalEndpoint {
            attachment: attachment(n),
            netns: String::new(),
            netns_inode: 0,
            namespace: "default".into(),
            pod_name: format!("p{n}"),
            pod_uid: format!("u{n}"),
            object_uid: None,
            address: r.address.into(),
            gateway: r.gateway,
            endpoint_id: r.endpoint_id,
            serial: r.serial,
            identity: 5,
            host_ifname: String::new(),
            ifindex: n,
            mac: [0; 6],
            node_mac: [0; 6],
        }
    }

    fn wire(store: &mut Store, n: u32) -> LocalEndpoint {
        let e = endpoint(n, store.reserve(&format!("u{n}")).unwrap());
        let (path, bytes) = store.record(&e);
        files::write_atomically(&path, &bytes).unwrap();
        store.insert(e.clone());
        e
    }

    #[test]
    fn addresses_numbers_and_serials_are_unique_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let block: Ipv4Net = "10.1.0.0/24".parse().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.reserve("x"), Err(StoreError::NoBlock));
        store.set_block(block);
        let all: Vec<_> = (0..252).map(|n| wire(&mut store, n)).collect();
        let addresses: HashSet<_> = all.iter().map(|e| e.address).collect();
        let ids: HashSet<_> = all.iter().map(|e| e.endpoint_id).collect();
        assert_eq!((addresses.len(), ids.len()), (252, 252));
        assert!(all.windows(2).all(|w| w[0].serial < w[1].serial));

        let mut again = Store::open(dir.path()).unwrap();
        again.set_block(block);
        assert_eq!(again.len(), 252);
        let r = again.reserve("new").unwrap();
        assert!(!addresses.contains(&IpAddr::from(r.address)));
        assert!(r.serial > all[251].serial);
        assert!(matches!(
            again.reserve("more"),
            Err(StoreError::Exhausted { capacity: 253, .. })
        ));
    }

    #[test]
    fn removing_what_is_not_there_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.remove(&attachment(1)).unwrap(), None);
    }

    #[test]
    fn a_released_address_is_remembered_with_its_pod_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let block: Ipv4Net = "10.1.0.0/24".parse().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.set_block(block);
        let e = wire(&mut store, 1);
        store.remove(&e.attachment).unwrap();
        store.flush().unwrap();
        let mut again = Store::open(dir.path()).unwrap();
        again.set_block(block);
        assert_eq!(
            IpAddr::from(again.reserve("u1").unwrap().address),
            e.address
        );
    }

    #[test]
    fn a_new_block_waits_for_the_pods_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new): (Ipv4Net, Ipv4Net) = (
            "10.1.0.0/24".parse().unwrap(),
            "10.2.0.0/24".parse().unwrap(),
        );
        let mut store = Store::open(dir.path()).unwrap();
        store.set_block(old);
        let e = wire(&mut store, 1);
        assert_eq!(store.set_block(new), old);
        store.remove(&e.attachment).unwrap();
        assert_eq!(store.set_block(new), new);
    }
}
