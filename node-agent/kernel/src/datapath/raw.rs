//! Map entries as bytes, for maps whose types this version does not know
//! (`include/uapi/linux/bpf.h`).

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::{Pod, maps::MapData};

use super::handover::TakeoverError;

const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_OBJ_GET: i32 = 7;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_LINK_UPDATE: i32 = 29;

/// The part of `union bpf_attr` for one entry.
#[repr(C, align(8))]
struct Attr {
    map: u32,
    pad: u32,
    key: u64,
    /// The value, or the next key.
    value: u64,
    flags: u64,
}

fn address(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

fn call(command: i32, map: BorrowedFd<'_>, key: u64, value: u64) -> io::Result<()> {
    let mut attr = Attr {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key,
        value,
        flags: 0,
    };
    // SAFETY: the layout is that of these commands; the callers pass addresses of buffers
    // that live as long and are as large as the map's keys and values.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// What is pinned at a path of a bpffs.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` for `BPF_OBJ_GET`.
    #[repr(C, align(8))]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the layout is that of the command, and the path outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a link another program, in one step.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// The part of `union bpf_attr` for `BPF_LINK_UPDATE`.
    #[repr(C, align(8))]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        before: u32,
    }
    let mut attr = Attr {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        before: 0,
    };
    // SAFETY: the layout is that of the command.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// `bpf(2)`. Returns what it returns.
///
/// # Safety
///
/// `attr` has the layout of the kernel's union for this command, and what it points to
/// outlives the call.
unsafe fn bpf<A>(command: i32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: as the caller says.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            command,
            core::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// Whether an error only says that there is no such entry.
fn absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOENT)
}

/// Copies all entries of a map into another whose keys are of the same size. Of
/// a longer value the new one has the beginning, after a shorter one it has
/// zeros; entries that are all zeros stay out. Returns how many were copied.
pub(super) fn copy(from: &MapData, to: &MapData) -> Result<usize, TakeoverError> {
    let (old, new) = (from.info()?, to.info()?);
    let (source, target) = (from.fd().as_fd(), to.fd().as_fd());
    let mut key = vec![0; old.key_size() as usize];
    let mut next = key.clone();
    let mut read = vec![0; old.value_size() as usize];
    let mut written = vec![0; new.value_size() as usize];
    let same = read.len().min(written.len());
    let mut copied = 0;
    let mut first = true;
    // If the current key is removed, the walk restarts at the first key.
    for _ in 0..=u64::from(old.max_entries()) * 2 {
        let from_key = if first { 0 } else { address(&mut key) };
        match call(BPF_MAP_GET_NEXT_KEY, source, from_key, address(&mut next)) {
            Err(e) if absent(&e) => return Ok(copied),
            other => other?,
        }
        first = false;
        key.copy_from_slice(&next);
        match call(
            BPF_MAP_LOOKUP_ELEM,
            source,
            address(&mut key),
            address(&mut read),
        ) {
            Err(e) if absent(&e) => continue,
            other => other?,
        }
        if read.iter().all(|b| *b == 0) {
            continue;
        }
        written[..same].copy_from_slice(&read[..same]);
        call(
            BPF_MAP_UPDATE_ELEM,
            target,
            address(&mut key),
            address(&mut written),
        )?;
        copied += 1;
    }
    Err(TakeoverError::Changing)
}

/// The part of `union bpf_attr` for many entries.
#[repr(C, align(8))]
struct Batch {
    /// Where to begin; 0: at the first.
    from: u64,
    /// Where to go on, four bytes for a hash map.
    next: u64,
    keys: u64,
    values: u64,
    /// How many there is room for; afterwards how many there are.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// All entries of a hash map of any kind, by one call: a walk from key to key would begin
/// anew whenever a program deletes the key that it is at. What programs add or delete
/// meanwhile may be missing.
pub(super) fn all<K: Pod, V: Pod>(map: &MapData) -> Result<Vec<(K, V)>, TakeoverError> {
    let info = map.info()?;
    let sizes = [info.key_size(), info.value_size()].map(|size| size as usize);
    if sizes != [size_of::<K>(), size_of::<V>()] {
        return Err(TakeoverError::Keys);
    }
    // Some to spare for what comes during the walk.
    let room = info.max_entries() as usize + 1024;
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    let mut next = 0u32;
    let mut batch = Batch {
        from: 0,
        next: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: info.max_entries() + 1024,
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: `batch` has the layout of the kernel's union for this command, and with the
    // buffers that it names, of keys and values of the map's sizes, it outlives the call.
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) } {
        // That there is no entry after the last.
        Err(error) if absent(&error) => {}
        result => drop(result?),
    }
    let count = (batch.count as usize).min(room);
    // SAFETY: the kernel has written so many, and any bytes make them.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    Ok(keys.into_iter().zip(values).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    const BPF_MAP_CREATE: i32 = 0;
    /// `BPF_MAP_TYPE_HASH` and `BPF_MAP_TYPE_ARRAY`.
    const KINDS: [u32; 2] = [1, 2];

    /// A map of 8 entries with keys of 4 bytes.
    fn made(kind: u32, value_size: u32) -> io::Result<MapData> {
        let attr: [u32; 5] = [kind, 4, value_size, 8, 0];
        // SAFETY: BPF_MAP_CREATE reads the five words that are there.
        let fd = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_bpf,
                BPF_MAP_CREATE,
                &raw const attr,
                size_of_val(&attr),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).expect("a descriptor");
        // SAFETY: the kernel just gave this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(MapData::from_fd(fd).expect("a map"))
    }

    fn put(map: &MapData, mut key: [u8; 4], value: &[u8]) {
        let mut value = value.to_vec();
        let (k, v) = (address(&mut key), address(&mut value));
        call(BPF_MAP_UPDATE_ELEM, map.fd().as_fd(), k, v).unwrap();
    }

    fn get(map: &MapData, mut key: [u8; 4]) -> Option<Vec<u8>> {
        let mut value = vec![0; map.info().unwrap().value_size() as usize];
        let (k, v) = (address(&mut key), address(&mut value));
        call(BPF_MAP_LOOKUP_ELEM, map.fd().as_fd(), k, v)
            .ok()
            .map(|()| value)
    }

    #[test]
    fn entries_go_to_a_map_with_longer_values_and_back() {
        for kind in KINDS {
            let maps = [4, 12, 4].map(|size| made(kind, size));
            let [Ok(short), Ok(long), Ok(back)] = maps else {
                eprintln!("skipped: no BPF map can be made here: {maps:?}");
                return;
            };
            for i in 0..5 {
                put(&short, [i, 0, 0, 0], &[i + 1, 0, 0, 9]);
            }
            assert_eq!(copy(&short, &long).unwrap(), 5, "the used ones of {kind}");
            let grown = get(&long, [4, 0, 0, 0]).unwrap();
            assert_eq!(grown, [5, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
            put(&long, [4, 0, 0, 0], &[5, 0, 0, 9, 1, 1, 1, 1, 1, 1, 1, 1]);
            assert_eq!(copy(&long, &back).unwrap(), 5);
            for i in 0..5 {
                assert_eq!(get(&back, [i, 0, 0, 0]).unwrap(), [i + 1, 0, 0, 9]);
            }
        }
    }
}
