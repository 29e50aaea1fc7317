//! The entries of maps in the kernel, one kind of map after the other.

use std::collections::{BTreeSet, HashMap};

use aya::{
    Pod,
    maps::{Array, HashMap as BpfHashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use veer_agent_core::tables::{Entries, Error, Filled, Rows};
use veer_bpf_common::{
    address::{IpKey, PrefixKey},
    tables::Table,
};

/// Unused entries of an array looked at in one round; all of them, as a read takes a
/// system call each, would be most of a small cluster's round.
const IN_TURN: u32 = 512;

fn failed<T: Table>(source: MapError) -> Error {
    Error {
        name: T::NAME,
        source: Box::new(source),
    }
}

/// Whether an error only says that there is no such entry.
fn is_absent(error: &MapError) -> bool {
    if let MapError::SyscallError(error) = error {
        return error.io_error.raw_os_error() == Some(nix::libc::ENOENT);
    }
    matches!(error, MapError::KeyNotFound)
}

fn or_absent<T: Table, V>(result: Result<V, MapError>) -> Result<Option<V>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(failed::<T>(error)),
    }
}

/// A hash map.
pub(super) struct HashRows<K, V>(pub(super) BpfHashMap<MapData, K, V>);

impl<K: Pod + Send, V: Pod + Send, T: Filled<Key = K, Value = V>> Rows<T> for HashRows<K, V> {
    fn read(&mut self, _: Option<&Entries<T>>) -> Result<Entries<T>, Error> {
        let rows = self.0.iter();
        rows.map(|row| row.map_err(failed::<T>)).collect()
    }

    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        or_absent::<T, _>(self.0.get(key, 0))
    }

    fn write(&mut self, key: K, value: V) -> Result<(), Error> {
        self.0.insert(key, value, 0).map_err(failed::<T>)
    }

    fn remove(&mut self, key: K) -> Result<(), Error> {
        or_absent::<T, _>(self.0.remove(&key)).map(|_| ())
    }
}

/// A longest-prefix map.
pub(super) struct TrieRows<V>(pub(super) LpmTrie<MapData, IpKey, V>)
where
    V: Pod;

const fn trie_key(key: PrefixKey) -> Key<IpKey> {
    Key::new(key.bits, key.ip)
}

impl<V: Pod + Send, T: Filled<Key = PrefixKey, Value = V>> Rows<T> for TrieRows<V> {
    fn read(&mut self, _: Option<&Entries<T>>) -> Result<Entries<T>, Error> {
        let mut found = HashMap::new();
        for row in &self.0 {
            let (key, value) = row.map_err(failed::<T>)?;
            let (bits, ip) = (key.prefix_len(), key.data());
            found.insert(PrefixKey { bits, ip }, value);
        }
        Ok(found)
    }

    fn get(&self, key: &PrefixKey) -> Result<Option<V>, Error> {
        or_absent::<T, _>(self.0.get(&trie_key(*key), 0))
    }

    fn write(&mut self, key: PrefixKey, value: V) -> Result<(), Error> {
        self.0.insert(&trie_key(key), value, 0).map_err(failed::<T>)
    }

    fn remove(&mut self, key: PrefixKey) -> Result<(), Error> {
        or_absent::<T, _>(self.0.remove(&trie_key(key))).map(|_| ())
    }
}

/// An array, of which an entry of zeros is unused.
pub(super) struct ArrayRows<V: Pod> {
    array: Array<MapData, V>,
    /// Where the look at unused entries goes on.
    turn: u32,
}

impl<V: Pod> ArrayRows<V> {
    pub(super) fn new(array: Array<MapData, V>) -> Self {
        Self { array, turn: 0 }
    }

    /// Entries to be read: the agent's own each time, the others in turn. What stands in
    /// an entry that no row names changes nothing.
    fn due<T: Table<Key = u32, Value = V>>(&mut self, own: Option<&Entries<T>>) -> BTreeSet<u32> {
        let last = self.array.len();
        let Some(own) = own else {
            return (0..last).collect();
        };
        let end = (self.turn + IN_TURN).min(last);
        let due = own.keys().copied().chain(self.turn..end).collect();
        self.turn = if end == last { 0 } else { end };
        due
    }
}

impl<V: Pod + Send + Default, T: Filled<Key = u32, Value = V>> Rows<T> for ArrayRows<V> {
    fn read(&mut self, own: Option<&Entries<T>>) -> Result<Entries<T>, Error> {
        let mut found = HashMap::new();
        for index in self.due::<T>(own) {
            let value = self.array.get(&index, 0).map_err(failed::<T>)?;
            if value != V::default() {
                found.insert(index, value);
            }
        }
        Ok(found)
    }

    fn get(&self, key: &u32) -> Result<Option<V>, Error> {
        let value = self.array.get(key, 0).map_err(failed::<T>)?;
        Ok((value != V::default()).then_some(value))
    }

    fn write(&mut self, key: u32, value: V) -> Result<(), Error> {
        self.array.set(key, value, 0).map_err(failed::<T>)
    }

    fn remove(&mut self, key: u32) -> Result<(), Error> {
        self.array.set(key, V::default(), 0).map_err(failed::<T>)
    }
}
