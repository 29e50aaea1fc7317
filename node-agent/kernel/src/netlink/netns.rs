//! Network namespaces of pods.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::message::Socket;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    /// Open file of the namespace.
    pub file: File,
    /// Inode in nsfs: what the namespace is, whatever its path.
    pub inode: u64,
}

/// `NSFS_MAGIC` (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The path as this process sees it: `/var/run` is a link to `/run` on every
/// current distribution, but not in the agent's image.
fn local(path: &str) -> PathBuf {
    path.strip_prefix("/var/run/")
        .map_or_else(|| PathBuf::from(path), |rest| Path::new("/run").join(rest))
}

/// Opens the namespace at a path. A path that no longer is a namespace (its
/// mount went and the empty file stayed) is `NotFound`.
pub fn open(path: &str) -> io::Result<Netns> {
    let file = File::open(local(path))?;
    let kind = nix::sys::statfs::fstatfs(&file)?.filesystem_type().0;
    if kind != NSFS_MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "not a network namespace any more",
        ));
    }
    let inode = file.metadata()?.ino();
    Ok(Netns { file, inode })
}

/// Whether the path still leads to the namespace with this inode.
pub fn is_at(path: &str, inode: u64) -> bool {
    open(path).is_ok_and(|n| n.inode == inode)
}

impl Netns {
    /// A route socket inside the namespace.
    pub fn socket(&self) -> io::Result<Socket> {
        self.inside(Socket::route)
    }

    /// Does something small inside the namespace, in a thread that ends right after, so
    /// no thread of a pool is left in a pod's namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name("veer-setns".into())
                .stack_size(64 << 10)
                .spawn_scoped(scope, || {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    work()
                })?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread for the namespace ended")))
        })
    }
}
