//! The order of writes to the records' files. What a record is to be is decided
//! under the store's lock and written without it; these locks, of which nothing
//! but a write is done under, make the last decision the last write.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// As many files can be written at once.
const LANES: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Disk {
    lanes: [Mutex<()>; LANES],
}

impl Disk {
    /// Held while the file of this name is written or removed: taken before the
    /// store is asked for its content.
    pub(crate) fn lane(&self, name: &str) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
        let lane = usize::try_from(hash % LANES as u64).unwrap_or(0);
        self.lanes[lane]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
