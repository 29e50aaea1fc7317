//! The node's own sockets: programs at the hooks of a cgroup, by links that are pinned.
//!
//! They see the sockets of every process below the cgroup, and act on those of the node's
//! network namespace alone. Attached once, they stay: what is told of a socket that was
//! translated is told for as long as it lives.

use std::{
    collections::hash_map::RandomState,
    fs::{self, File},
    hash::BuildHasher,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Instant,
};

use aya::{
    maps::{Array, MapData},
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError,
        cgroup_sock_addr::CgroupSockAddrLink,
        links::{FdLink, LinkError},
    },
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};
use veer_bpf_common::{program, tables::HostSockets};

use super::{Datapath, load_program, maps, raw};

/// Where the pins are, below the others.
pub(super) const FOLDER: &str = "sockets";
/// The program by which the node's network namespace is learnt.
const LEARNING: &str = "host_connect4";

/// Why the node's own sockets are not translated.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// There is no cgroup v2.
    #[error(
        "no cgroup v2 is mounted at {path}, and the kernel mounts none: enable it \
         (CONFIG_CGROUPS; not cgroup_no_v1=all without systemd.unified_cgroup_hierarchy)"
    )]
    NoCgroup {
        /// Where it was looked for.
        path: PathBuf,
        /// Why none can be mounted.
        source: io::Error,
    },
    /// The kernel refuses a program.
    #[error("the kernel refuses the program {name} (needs CONFIG_CGROUP_BPF)")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<super::Error>,
    },
    /// A program cannot be attached.
    #[error(
        "cannot attach {name} to the cgroup: another program may be there without \
         BPF_F_ALLOW_MULTI (bpftool cgroup tree)"
    )]
    Attach {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hooks do not see the agent's own sockets.
    #[error(
        "the hooks of the cgroup do not see the agent's own sockets: its container has a \
         cgroup namespace of its own, and the node's /sys/fs/cgroup is not mounted there"
    )]
    NotBelow,
    /// The agent's own socket could not be used.
    #[error("cannot learn which network namespace is the node's")]
    Socket(#[source] io::Error),
    /// A pin cannot be made or removed.
    #[error("cannot use the pins in {path}")]
    Pins {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The map that says whose sockets are translated cannot be used.
    #[error(transparent)]
    Map(#[from] Box<super::Error>),
}

/// The map that says whose sockets are translated.
pub(super) type Words = Array<MapData, u64>;

impl Datapath {
    /// Whether the node's own sockets are translated: by this version's programs, which are
    /// pinned.
    pub fn serves_sockets(&self) -> bool {
        let folder = self.root.join(FOLDER);
        self.sockets_served
            && program::SOCKETS
                .iter()
                .all(|name| folder.join(name).exists())
    }

    /// Has new flows of the node's own sockets translated. `cgroups`: where the node's
    /// cgroups are mounted. Of an earlier agent's programs each is replaced in one step,
    /// when this version's maps say what they said.
    pub fn serve_sockets(&mut self, cgroups: &Path) -> Result<(), SocketsError> {
        for name in program::SOCKETS {
            let is_loaded = self.sockets(name).is_ok_and(|program| program.fd().is_ok());
            if !is_loaded {
                load_program(&mut self.object, name).map_err(|source| SocketsError::Program {
                    name,
                    source: Box::new(source),
                })?;
            }
        }
        let cgroup = cgroup(cgroups)?;
        self.learn(&cgroup)?;
        self.set_word(HostSockets::TRANSLATES, 1)?;
        let folder = self.root.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|source| SocketsError::Pins {
            path: folder.clone(),
            source,
        })?;
        for name in program::SOCKETS {
            let program = self.sockets(name)?;
            attach(program, &cgroup, &folder.join(name))
                .map_err(|source| SocketsError::Attach { name, source })?;
        }
        self.sockets_served = true;
        Ok(())
    }

    /// Leaves new flows of the node's own sockets to the host's stack; those that are
    /// translated go on.
    pub fn leave_sockets(&mut self) -> Result<(), SocketsError> {
        self.sockets_served = false;
        self.set_word(HostSockets::TRANSLATES, 0)
    }

    fn set_word(&mut self, index: u32, value: u64) -> Result<(), SocketsError> {
        let set = self.maps.host_sockets.set(index, value, 0);
        set.map_err(|e| Box::new(maps::error::<HostSockets>(e)).into())
    }

    fn sockets(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, SocketsError> {
        let missing = || SocketsError::Program {
            name,
            source: Box::new(super::Error::MissingProgram(name)),
        };
        let program = self.object.program_mut(name).ok_or_else(missing)?;
        program.try_into().map_err(|_| missing())
    }

    /// Learns which sockets are the node's: those of the agent's own network namespace. The
    /// program tells it of a connect to a place that only the agent knows, which it refuses.
    fn learn(&mut self, cgroup: &OwnedFd) -> Result<(), SocketsError> {
        let random = RandomState::new().hash_one(Instant::now()).to_be_bytes();
        let [a, b, c, d, high, low, ..] = random;
        // Neither "this host" nor port 0, which are connected to as something else.
        let (address, port) = ([a | 1, b, c, d], [high | 1, low]);
        self.set_word(HostSockets::NONCE, HostSockets::nonce(address, port))?;
        let outcome = self.connect_refused(
            cgroup,
            SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port)),
        );
        self.set_word(HostSockets::NONCE, 0)?;
        outcome
    }

    fn connect_refused(&mut self, cgroup: &OwnedFd, to: SocketAddrV4) -> Result<(), SocketsError> {
        let program = self.sockets(LEARNING)?;
        let failed = |e: ProgramError| SocketsError::Attach {
            name: LEARNING,
            source: e.into(),
        };
        // One more beside the pinned one, which may be of a version with other maps.
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(failed)?;
        let _link = program.take_link(id).map_err(failed)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(SocketsError::Socket)?;
        match socket.connect(to) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            // The hooks come before the look for a route, so that is none of theirs either.
            Ok(()) | Err(_) => Err(SocketsError::NotBelow),
        }
    }
}

/// The root of the node's cgroups of version 2: what is mounted at `path`, or where that is
/// of version 1, another mount that nobody else sees.
fn cgroup(path: &Path) -> Result<OwnedFd, SocketsError> {
    if statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        let open = File::open(path);
        return open
            .map(OwnedFd::from)
            .map_err(|source| SocketsError::NoCgroup {
                path: path.to_owned(),
                source,
            });
    }
    mounted().map_err(|e| SocketsError::NoCgroup {
        path: path.to_owned(),
        source: e.into(),
    })
}

/// Mounts the hierarchy nowhere (Linux 5.2).
fn mounted() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    openat(
        &mount,
        ".",
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Attaches a program, or gives the pinned link it.
fn attach(program: &mut CgroupSockAddr, cgroup: &OwnedFd, path: &Path) -> Result<(), Failure> {
    if path.exists() {
        let link = raw::pinned(path)?;
        match raw::update_link(link.as_fd(), program.fd()?.as_fd()) {
            // The pin holds the link; that the handle is closed detaches nothing.
            Ok(()) => return Ok(()),
            // The cgroup is gone (`cgroup_bpf_replace`), and the link with it.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOLINK) => {
                veer_agent_api::file::remove(path)?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    let link: CgroupSockAddrLink = program.take_link(id)?;
    let link: FdLink = link.try_into().map_err(|e: LinkError| Box::new(e))?;
    link.pin(path)?;
    Ok(())
}
