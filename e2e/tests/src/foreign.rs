//! Things on a node that belong to others, a tcx program among them: veer must
//! leave them alone. The programs that Debian 12 ships cannot attach one to tcx,
//! so the few calls of bpf(2) are made here.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::libc;

use crate::site::Site;

/// Commands of bpf(2) (`include/uapi/linux/bpf.h`).
const PROG_LOAD: i32 = 5;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;
const LINK_CREATE: i32 = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
const TCX_EGRESS: u32 = 47;
/// Larger than any part of `union bpf_attr` used here.
const ATTR: usize = 128;
/// An instruction (`struct bpf_insn`).
type Instruction = [u8; 8];
/// `exit`.
const EXIT: Instruction = [0x95, 0, 0, 0, 0, 0, 0, 0];
/// `BPF_FUNC_redirect_peer`.
const REDIRECT_PEER: u32 = 155;

/// `r<register> = value`.
const fn set(register: u8, value: u32) -> Instruction {
    with_immediate(0xb7, register, value)
}

/// `r0 = helper(r1, …)`.
const fn call(helper: u32) -> Instruction {
    with_immediate(0x85, 0, helper)
}

const fn with_immediate(code: u8, register: u8, value: u32) -> Instruction {
    let [a, b, c, d] = value.to_ne_bytes();
    [code, register, 0, 0, a, b, c, d]
}

/// A program on the tcx ingress of a device, attached until this is dropped.
#[derive(Debug)]
pub struct Program {
    site: Site,
    device: String,
    id: u32,
    _link: OwnedFd,
}

/// The argument of one call.
struct Attr([u8; ATTR]);

impl Attr {
    fn new() -> Self {
        Self([0; ATTR])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T>(mut self, at: usize, to: *const T) -> Self {
        let address = to as u64;
        self.0[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }

    fn descriptor(self, at: usize, fd: &OwnedFd) -> Self {
        self.u32(at, fd.as_raw_fd().unsigned_abs())
    }

    fn get(&self, at: usize) -> u32 {
        let mut four = [0; 4];
        four.copy_from_slice(&self.0[at..at + 4]);
        u32::from_ne_bytes(four)
    }

    /// Makes the call. What pointers in it point to must live until it returns,
    /// which the callers see to.
    fn call(&mut self, command: i32) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes the given number of octets of the
        // array, and what the caller's pointers point to.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), ATTR) };
        i32::try_from(result)
            .ok()
            .filter(|r| *r >= 0)
            .ok_or_else(io::Error::last_os_error)
    }

    fn call_for_descriptor(&mut self, command: i32) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the call succeeded and returned a descriptor that nobody else
        // owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Program {
    /// Attaches one that leaves every packet to the next program (`TCX_NEXT`).
    pub fn attach(site: &Site, device: &str) -> Result<Self> {
        Self::of(&[set(0, u32::MAX), EXIT], site, device)
    }

    /// Attaches one that hands every packet to the device whose other end, in the
    /// same namespace, is `to`, and does nothing else.
    pub fn redirect_peer(site: &Site, device: &str, to: &str) -> Result<Self> {
        let to = site.within(|| Ok(nix::net::if_::if_nametoindex(to)?))?;
        let flags = 0;
        let code = [set(1, to), set(2, flags), call(REDIRECT_PEER), EXIT];
        Self::of(&code, site, device)
    }

    fn of(code: &[Instruction], site: &Site, device: &str) -> Result<Self> {
        let (id, link) = site.within(|| {
            let license = c"GPL";
            let program = Attr::new()
                .u32(0, SCHED_CLS)
                .u32(4, u32::try_from(code.len())?)
                .pointer(8, code.as_ptr())
                .pointer(16, license.as_ptr())
                .call_for_descriptor(PROG_LOAD)
                .context("load a program")?;
            // Of `struct bpf_prog_info` the first two fields: type and id.
            let mut info = [0_u32; 2];
            Attr::new()
                .descriptor(0, &program)
                .u32(4, 8)
                .pointer(8, info.as_mut_ptr())
                .call(OBJ_GET_INFO_BY_FD)
                .context("ask for a program's id")?;
            let link = Attr::new()
                .descriptor(0, &program)
                .u32(4, nix::net::if_::if_nametoindex(device)?)
                .u32(8, TCX_INGRESS)
                .call_for_descriptor(LINK_CREATE)
                .context("attach a program")?;
            Ok((info[1], link))
        })?;
        Ok(Self {
            site: site.clone(),
            device: device.to_owned(),
            id,
            _link: link,
        })
    }

    /// Whether it is still on its device.
    pub fn is_attached(&self) -> Result<bool> {
        let running = self.site.within(|| running(&self.device, TCX_INGRESS))?;
        Ok(running.contains(&self.id))
    }
}

/// Ids of the programs on a device's hook, the first first. To be called in the
/// device's namespace.
fn running(device: &str, hook: u32) -> Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut query = Attr::new()
        .u32(0, nix::net::if_::if_nametoindex(device)?)
        .u32(4, hook)
        .pointer(16, ids.as_mut_ptr())
        .u32(24, 64);
    query
        .call(PROG_QUERY)
        .context("ask for a device's programs")?;
    let count = usize::try_from(query.get(24))?;
    Ok(ids.into_iter().take(count).collect())
}

/// How many programs, whosever, run on the tcx hooks of devices: a link that was
/// taken off by force still names its program.
pub fn counts<'a>(
    site: &Site,
    devices: impl IntoIterator<Item = &'a str> + Send,
) -> Result<Vec<(&'a str, [usize; 2])>> {
    site.within(|| {
        let count = |device: &'a str| {
            let [ingress, egress] = [TCX_INGRESS, TCX_EGRESS].map(|hook| running(device, hook));
            // A device may go between two looks.
            Some((device, [ingress.ok()?.len(), egress.ok()?.len()]))
        };
        Ok(devices.into_iter().filter_map(count).collect())
    })
}
