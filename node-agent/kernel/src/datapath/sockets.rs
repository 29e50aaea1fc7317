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
    /// The cgroup is that of the agent alone.
    #[error(
        "{path} is the agent's own cgroup: mount the node's /sys/fs/cgroup into its container, \
         and name the place by --cgroup-dir"
    )]
    OwnCgroup {
        /// What was found.
        path: PathBuf,
    },
    /// The hooks do not see the agent's own sockets.
    #[error("the agent is in no cgroup below the one whose hooks are used: see --cgroup-dir")]
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

/// What this process has done with the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sockets {
    /// Nothing: those of an earlier agent may be there.
    #[default]
    Untouched,
    /// New flows are translated by this version's.
    Served,
    /// New flows are not translated.
    Left,
}

/// The map that says whose sockets are translated.
pub(super) type Words = Array<MapData, u64>;

impl Datapath {
    /// Whether the node's own sockets are translated: by this version's programs, which are
    /// pinned.
    pub fn serves_sockets(&self) -> bool {
        self.sockets == Sockets::Served && self.sockets_pinned()
    }

    /// Whether programs of some version may have translated sockets that are there still.
    pub fn served_sockets(&self) -> bool {
        let folder = self.root.join(FOLDER);
        program::SOCKETS
            .iter()
            .any(|name| folder.join(name).exists())
    }

    fn sockets_pinned(&self) -> bool {
        let folder = self.root.join(FOLDER);
        program::SOCKETS
            .iter()
            .all(|name| folder.join(name).exists())
    }

    /// Has new flows of the node's own sockets translated. `cgroups`: where the node's
    /// cgroups are mounted. Of an earlier agent's programs each is replaced in one step,
    /// when this version's maps say what they said. Returns whether this process had done so
    /// before.
    pub fn serve_sockets(&mut self, cgroups: &Path) -> Result<bool, SocketsError> {
        let had = self.sockets == Sockets::Served;
        let outcome = self.take_sockets(cgroups, true);
        self.sockets = if outcome.is_ok() {
            Sockets::Served
        } else {
            // In part they would be told of by nobody. The first error says more.
            drop(self.set_word(HostSockets::TRANSLATES, 0));
            Sockets::Untouched
        };
        outcome.map(|()| had)
    }

    /// Leaves new flows of the node's own sockets to the host's stack; those that are
    /// translated go on. Programs of another version, whose maps nobody fills any more, are
    /// replaced for that.
    pub fn leave_sockets(&mut self, cgroups: &Path) -> Result<(), SocketsError> {
        if !self.served_sockets() {
            return Ok(());
        }
        self.set_word(HostSockets::TRANSLATES, 0)?;
        if self.sockets == Sockets::Untouched {
            self.take_sockets(cgroups, false)?;
        }
        self.sockets = Sockets::Left;
        Ok(())
    }

    fn take_sockets(&mut self, cgroups: &Path, translates: bool) -> Result<(), SocketsError> {
        for name in program::SOCKETS {
            let is_loaded = self
                .sockets_program(name)
                .is_ok_and(|program| program.fd().is_ok());
            if !is_loaded {
                load_program(&mut self.object, name).map_err(|source| SocketsError::Program {
                    name,
                    source: Box::new(source),
                })?;
            }
        }
        let cgroup = cgroup(cgroups)?;
        self.learn(&cgroup)?;
        // What an earlier agent's programs do those of this version do from the first on.
        if translates && self.sockets_pinned() {
            self.set_word(HostSockets::TRANSLATES, 1)?;
        }
        let folder = self.root.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|source| SocketsError::Pins {
            path: folder.clone(),
            source,
        })?;
        for name in program::SOCKETS {
            let program = self.sockets_program(name)?;
            attach(program, &cgroup, &folder.join(name))
                .map_err(|source| SocketsError::Attach { name, source })?;
        }
        self.set_word(HostSockets::TRANSLATES, translates.into())
    }

    fn set_word(&mut self, index: u32, value: u64) -> Result<(), SocketsError> {
        let set = self.maps.host_sockets.set(index, value, 0);
        set.map_err(|e| Box::new(maps::error::<HostSockets>(e)).into())
    }

    fn sockets_program(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, SocketsError> {
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
        let to = SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port));
        let asked = self.connect(cgroup, to);
        let left = self.maps.host_sockets.get(&HostSockets::NONCE, 0);
        let left = left.map_err(|e| Box::new(maps::error::<HostSockets>(e)))?;
        self.set_word(HostSockets::NONCE, 0)?;
        asked?;
        if left == 0 {
            Ok(())
        } else {
            Err(SocketsError::NotBelow)
        }
    }

    /// Connects a socket with one more program beside the pinned one, which may be of a
    /// version with other maps.
    fn connect(&mut self, cgroup: &OwnedFd, to: SocketAddrV4) -> Result<(), SocketsError> {
        let program = self.sockets_program(LEARNING)?;
        let failed = |e: ProgramError| SocketsError::Attach {
            name: LEARNING,
            source: e.into(),
        };
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(failed)?;
        let _link = program.take_link(id).map_err(failed)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(SocketsError::Socket)?;
        // Refused by the program, which is seen by what it wrote.
        let _ = socket.connect(to);
        Ok(())
    }
}

/// The root of the node's cgroups of version 2: what is mounted at `path`, or beside those of
/// version 1 at `unified` in it (as systemd has it), or where nothing is, mounted for this
/// alone. (Mounted once more it could change its options for all.)
fn cgroup(path: &Path) -> Result<OwnedFd, SocketsError> {
    let failed = |source: io::Error| SocketsError::NoCgroup {
        path: path.to_owned(),
        source,
    };
    let mut places = [path.to_owned(), path.join("unified")].into_iter();
    let is_it =
        |place: &PathBuf| statfs(place).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let Some(place) = places.find(is_it) else {
        return mounted().map_err(|e| failed(e.into()));
    };
    // A root has no type. In a cgroup namespace of a container's own, that container's
    // cgroup looks like one, and has its processes.
    let own = std::process::id().to_string();
    let members = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
    if place.join("cgroup.type").exists() && members.lines().any(|pid| pid == own) {
        return Err(SocketsError::OwnCgroup { path: place });
    }
    File::open(&place).map(OwnedFd::from).map_err(failed)
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
