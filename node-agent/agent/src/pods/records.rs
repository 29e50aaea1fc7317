//! The records of wired pods below the state folder.
//!
//! A record's content is decided under the store's lock and written without it. A
//! lock for each file, held only for its write, makes the last decision the last
//! write.

use std::{
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    path::{Path, PathBuf},
    sync::MutexGuard,
};

use veer_agent_api::{Attachment, file};

use veer_agent_core::endpoint::{LocalEndpoint, Store};
use veer_agent_kernel::lock::Lock;

/// As many files can be written at once.
const LANES: usize = 16;

/// Folder of the records.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
    /// Released addresses, the longest-free one first.
    released: PathBuf,
    lanes: [Lock<()>; LANES],
}

impl Records {
    /// Reads the records below the state folder. One that cannot be read is named in
    /// the log, and rebuilt like any that is missing.
    ///
    /// # Errors
    ///
    /// The folder cannot be made or listed.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Store)> {
        let folder = state.join("endpoints");
        fs::create_dir_all(&folder)?;
        let mut endpoints: Vec<LocalEndpoint> = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                let _ = fs::remove_file(&path);
                continue;
            }
            match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "unreadable endpoint record");
                }
            }
        }
        let released = state.join("released.json");
        let given_back = fs::read(&released)
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default();
        let records = Self {
            folder,
            released,
            lanes: Default::default(),
        };
        Ok((records, Store::new(endpoints, given_back)))
    }

    /// Path of an interface's record.
    pub(super) fn path(&self, attachment: &Attachment) -> PathBuf {
        self.folder.join(attachment.file_name())
    }

    /// Brings the record of an interface on disk to what the store says.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub(super) fn persist(&self, store: &Lock<Store>, attachment: &Attachment) -> io::Result<()> {
        let _order = self.lane(&attachment.container_id);
        let record = store.lock().record_of(attachment);
        let path = self.path(attachment);
        match record {
            Some(endpoint) => file::write(&path, &serde_json::to_vec(&*endpoint)?),
            None => file::remove(&path),
        }
    }

    /// Writes the order of released addresses to disk, if it changed.
    ///
    /// # Errors
    ///
    /// The file cannot be written; it is due again.
    pub(super) fn persist_released(&self, store: &Lock<Store>) -> io::Result<()> {
        let _order = self.lane("released");
        let Some(released) = store.lock().released_to_write() else {
            return Ok(());
        };
        let content = serde_json::to_vec(&released)?;
        file::write(&self.released, &content).inspect_err(|_| store.lock().released_unwritten())
    }

    /// Held while the file of this name is written or removed: taken before the
    /// store is asked for its content.
    fn lane(&self, name: &str) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
        let lane = usize::try_from(hash % LANES as u64).unwrap_or(0);
        self.lanes[lane].lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_agent_core::endpoint::{Claims, mac};

    fn wire(records: &Records, store: &Lock<Store>, n: u32) -> LocalEndpoint {
        let attachment = Attachment {
            container_id: format!("c{n}"),
            ifname: "eth0".into(),
        };
        let uid = format!("u{n}");
        let reservation = store.lock().reserve(&uid, &Claims::new(), 1).unwrap();
        let endpoint = LocalEndpoint {
            netns: String::new(),
            netns_inode: 0,
            namespace: "default".into(),
            pod_name: format!("p{n}"),
            pod_uid: uid,
            object_uid: None,
            address: reservation.first.address,
            gateway: reservation.first.gateway,
            second: reservation.second,
            endpoint_id: reservation.endpoint_id,
            serial: reservation.serial,
            identity: veer_bpf_common::identity::Identity::INIT,
            host_ifname: String::new(),
            ifindex: veer_bpf_common::device::IfIndex::new(n),
            mac: mac(&attachment, false),
            node_mac: mac(&attachment, true),
            host_ports: None,
            attachment: attachment.clone(),
        };
        store.lock().insert(endpoint.clone());
        store.lock().record(&attachment);
        records.persist(store, &attachment).unwrap();
        endpoint
    }

    fn open(state: &Path) -> (Records, Lock<Store>) {
        let (records, mut store) = Records::open(state).unwrap();
        store.set_blocks(&["10.1.0.0/24".parse().unwrap()]);
        (records, Lock::new(store))
    }

    #[test]
    fn a_damaged_record_is_left_aside_and_the_others_are_read() {
        let state = tempfile::tempdir().unwrap();
        let (records, store) = open(state.path());
        let (a, b) = (wire(&records, &store, 1), wire(&records, &store, 2));
        // A full disk leaves an empty file.
        fs::write(records.path(&a.attachment), "").unwrap();
        let (_, again) = open(state.path());
        assert!(again.lock().get(&a.attachment).is_none());
        assert_eq!(again.lock().get(&b.attachment), Some(&b));
    }

    #[test]
    fn a_released_address_is_remembered_with_its_pod_over_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let (records, store) = open(state.path());
        let pod = wire(&records, &store, 1);
        store.lock().leave(&pod.attachment).unwrap();
        records.persist(&store, &pod.attachment).unwrap();
        assert!(!records.path(&pod.attachment).exists());
        store.lock().remove(&pod.attachment);
        records.persist_released(&store).unwrap();
        let (_, again) = open(state.path());
        let back = again.lock().reserve("u1", &Claims::new(), 1).unwrap();
        assert_eq!(back.first.address, pod.address);
    }
}
