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
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
};
use veer_bpf_common::{program, tables::HostSockets};

use crate::{datapath::Datapath, netns::Namespace};

/// Where a connect tells whose sockets are the node's, in these tests.
const TELLING: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 77), 4711);

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

    /// Has the programs learn whose sockets are the node's.
    pub fn learn_sockets(&mut self, of: &Namespace) -> Result<()> {
        let nonce = HostSockets::nonce(TELLING.0.octets(), TELLING.1.to_be_bytes());
        self.set_host_word(HostSockets::NONCE, nonce)?;
        ensure!(
            telling(of)? == Some(io::ErrorKind::PermissionDenied),
            "the programs took no notice of the connect"
        );
        let left = self.array::<HostSockets>()?.get(&HostSockets::NONCE, 0)?;
        ensure!(left == 0, "another connect would be taken for it");
        Ok(())
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

/// Connects to where the programs are told from; with which error.
pub fn telling(of: &Namespace) -> Result<Option<io::ErrorKind>> {
    of.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let outcome = socket.connect(SocketAddr::from(TELLING));
        Ok(outcome.err().map(|error| error.kind()))
    })
}
