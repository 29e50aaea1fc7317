//! The programs of the node's own sockets, at the root of the machine's cgroups: they see
//! the sockets of every process, and those of other tests' objects see those of this one.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};
use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
};
use veer_bpf_common::{program, tables::HostSockets};

use crate::{datapath::Datapath, netns::Namespace};

/// Where a connect tells whose sockets are the node's, each time another place: the programs
/// of other tests see it, too.
fn telling() -> SocketAddrV4 {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [a, b, c, d] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(a | 1, b, c, d);
    SocketAddrV4::new(address, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The root of the hierarchy: where it is mounted, else mounted nowhere. (To mount it once
/// more could change its options for all.)
fn cgroup() -> Result<OwnedFd> {
    for path in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        if statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Ok(File::open(path)?.into());
        }
    }
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?)
}

impl Datapath {
    /// Loads the programs.
    pub fn load_sockets(&mut self) -> Result<()> {
        for name in program::SOCKETS {
            self.sockets_program(name)?
                .load()
                .with_context(|| format!("the verifier on {name}"))?;
        }
        Ok(())
    }

    fn sockets_program(&mut self, name: &str) -> Result<&mut CgroupSockAddr> {
        let program = self.ebpf().program_mut(name);
        Ok(program
            .with_context(|| format!("no program {name}"))?
            .try_into()?)
    }

    /// Attaches the programs, until this is dropped, and has them translate what the sockets
    /// of a namespace send.
    pub fn serve_sockets(&mut self, of: &Namespace) -> Result<()> {
        self.load_sockets()?;
        let cgroup = cgroup().context("mount the cgroups")?;
        for name in program::SOCKETS {
            let program = self.sockets_program(name)?;
            program.attach(&cgroup, CgroupAttachMode::Single)?;
        }
        self.learn_sockets(of)?;
        self.set_translates(true)
    }

    /// Has the programs learn whose sockets are the node's; by a connect to where.
    pub fn learn_sockets(&mut self, of: &Namespace) -> Result<SocketAddrV4> {
        let to = telling();
        let nonce = HostSockets::nonce(to.ip().octets(), to.port().to_be_bytes());
        self.set_host_word(HostSockets::NONCE, nonce)?;
        ensure!(
            connected(of, to)? == Some(io::ErrorKind::PermissionDenied),
            "the programs took no notice of the connect"
        );
        let left = self.array::<HostSockets>()?.get(&HostSockets::NONCE, 0)?;
        ensure!(left == 0, "another connect would be taken for it");
        Ok(to)
    }

    /// Says whether new flows are translated.
    pub fn set_translates(&mut self, translates: bool) -> Result<()> {
        self.set_host_word(HostSockets::TRANSLATES, translates.into())
    }

    fn set_host_word(&mut self, index: u32, value: u64) -> Result<()> {
        Ok(self.array::<HostSockets>()?.set(index, value, 0)?)
    }

    /// The cookie of the namespace whose sockets are the node's; 0: none is known.
    pub fn host_cookie(&mut self) -> Result<u64> {
        Ok(self.array::<HostSockets>()?.get(&HostSockets::COOKIE, 0)?)
    }
}

/// Connects a socket for datagrams; with which error.
pub fn connected(from: &Namespace, to: SocketAddrV4) -> Result<Option<io::ErrorKind>> {
    from.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(socket.connect(to).err().map(|error| error.kind()))
    })
}
