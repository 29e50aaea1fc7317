//! Attaching: tcx links pinned by device and hook, or clsact filters with a
//! fixed priority and handle on kernels before 6.6.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::Path,
};

use aya::{
    programs::{
        LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
    util::KernelVersion,
};
use nix::net::if_::if_nametoindex;
use veer_bpf_common::{device::IfIndex, program};

use super::{Datapath, Error};
use crate::netlink::{filter, message::Socket};

/// Priority and handle of veer's clsact filters.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7ee1);

/// What follows a device's name in the name of a pin.
const SUFFIXES: [&str; 4] = ["-ingress", "-egress", "-xdp-driver", "-xdp-generic"];

/// A place where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Host-side veth, what comes from the pod.
    PodEgress,
    /// Host-side veth, what goes to the pod.
    PodIngress,
    /// VXLAN device, arriving.
    OverlayIngress,
    /// VXLAN device, leaving.
    OverlayEgress,
    /// Uplink, arriving.
    UplinkIngress,
    /// Uplink, leaving.
    UplinkEgress,
}

impl Hook {
    /// Name of the hook's program.
    pub fn program(self) -> &'static str {
        match self {
            Self::PodEgress => program::POD_EGRESS,
            Self::PodIngress => program::POD_INGRESS,
            Self::OverlayIngress => program::OVERLAY_INGRESS,
            Self::OverlayEgress => program::OVERLAY_EGRESS,
            Self::UplinkIngress => program::UPLINK_INGRESS,
            Self::UplinkEgress => program::UPLINK_EGRESS,
        }
    }

    /// Whether its program records flows; the others ask for them. What asks must be
    /// replaced first: it looks where the old ones record, but not the other way round.
    pub fn records(self) -> bool {
        match self {
            Self::PodIngress | Self::OverlayEgress | Self::UplinkEgress => true,
            Self::PodEgress | Self::OverlayIngress | Self::UplinkIngress => false,
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::PodEgress | Self::OverlayIngress | Self::UplinkIngress => TcAttachType::Ingress,
            Self::PodIngress | Self::OverlayEgress | Self::UplinkEgress => TcAttachType::Egress,
        }
    }

    fn parent(self) -> filter::Parent {
        match self.direction() {
            TcAttachType::Egress => filter::Parent::Egress,
            TcAttachType::Ingress | TcAttachType::Custom(_) => filter::Parent::Ingress,
        }
    }

    fn suffix(self) -> &'static str {
        match self.direction() {
            TcAttachType::Egress => "egress",
            TcAttachType::Ingress | TcAttachType::Custom(_) => "ingress",
        }
    }
}

/// How an XDP program is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAttach {
    /// In the driver.
    Driver,
    /// In the stack, on every driver.
    Generic,
}

/// What attaching did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It was there, with this very program.
    Kept,
    /// It was there with another program, replaced in one step.
    Replaced,
    /// It was not there.
    New,
}

/// tcx came with 6.6 (kernel commit e420bed02507).
/// `VEER_FORCE_CLSACT` in the environment tries the older way on a newer kernel; a
/// node must not change over while the pins of the other way are there.
pub(super) fn tcx_supported() -> bool {
    KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(6, 6, 0))
        && std::env::var_os("VEER_FORCE_CLSACT").is_none()
}

/// bpffs refuses names with dots (`bpf_lookup` in kernel/bpf/inode.c).
fn pin_name(device: &str, suffix: &str) -> String {
    format!("{}-{suffix}", device.replace('.', "~"))
}

/// Whether the kernel says that a link's device is gone (`tcx_link_update`,
/// `bpf_xdp_link_update`).
fn device_gone(error: &ProgramError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return io.raw_os_error() == Some(nix::libc::ENOLINK);
        }
        source = e.source();
    }
    false
}

/// Programs that tcx links hold to a device.
pub(super) fn links(device: &str) -> Vec<ProgramInfo> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .filter_map(|direction| SchedClassifier::query_tcx(device, direction).ok())
        .flat_map(|(_, programs)| programs)
        .collect()
}

/// Programs of veer's clsact filters on a device.
pub(super) fn filters(clsact: &mut Socket, device: &str) -> Vec<ProgramInfo> {
    let ids: Vec<u32> = [filter::Parent::Ingress, filter::Parent::Egress]
        .into_iter()
        .filter_map(|parent| filter_program(clsact, device, parent).ok().flatten())
        .collect();
    let all = loaded_programs().filter_map(Result::ok);
    all.filter(|program| ids.contains(&program.id())).collect()
}

/// Id of the program of veer's clsact filter on a device; `None`: there is no
/// such filter, or no such device.
fn filter_program(
    clsact: &mut Socket,
    device: &str,
    parent: filter::Parent,
) -> io::Result<Option<u32>> {
    let Ok(index) = if_nametoindex(device) else {
        return Ok(None);
    };
    let index = IfIndex::from_kernel(index);
    filter::program(clsact, index, parent, PRIORITY, HANDLE.into())
}

impl Datapath {
    /// Attaches a hook's program to a device, or replaces what an earlier agent
    /// attached, or does nothing where this very program runs already.
    pub fn attach(&mut self, device: &str, hook: Hook) -> Result<Attached, Error> {
        let name = hook.program();
        let path = self.links.join(pin_name(device, hook.suffix()));
        let tcx = self.attaches_links();
        let program: &mut SchedClassifier = self
            .object
            .program_mut(name)
            .ok_or(Error::MissingProgram(name))?
            .try_into()
            .map_err(|e| failure(name, device, e))?;
        if tcx {
            attach_tcx(program, device, hook.direction(), &path)
        } else {
            attach_clsact(program, device, hook.direction())
        }
        .map_err(|e| failure(name, device, e))
    }

    /// Attaches the XDP program to an uplink.
    pub fn attach_xdp(&mut self, device: &str, how: XdpAttach) -> Result<Attached, Error> {
        let name = program::UPLINK_XDP;
        let (mode, suffix) = match how {
            XdpAttach::Driver => (XdpMode::Driver, "xdp-driver"),
            XdpAttach::Generic => (XdpMode::Skb, "xdp-generic"),
        };
        let path = self.links.join(pin_name(device, suffix));
        let program: &mut Xdp = self
            .object
            .program_mut(name)
            .ok_or(Error::MissingProgram(name))?
            .try_into()
            .map_err(|e| failure(name, device, e))?;
        attach_xdp(program, device, mode, &path).map_err(|e| failure(name, device, e))
    }

    /// Id of the XDP program; `None`: it is not loaded yet.
    pub fn xdp_id(&self) -> Option<u32> {
        let aya::programs::Program::Xdp(program) = self.object.program(program::UPLINK_XDP)? else {
            return None;
        };
        program.info().ok().map(|info| info.id())
    }

    /// Takes XDP of both modes but `keep` off a device.
    pub fn detach_xdp(&self, device: &str, keep: Option<XdpAttach>) -> io::Result<()> {
        for (how, suffix) in [
            (XdpAttach::Driver, "xdp-driver"),
            (XdpAttach::Generic, "xdp-generic"),
        ] {
            if keep != Some(how) {
                veer_agent_api::file::remove(&self.links.join(pin_name(device, suffix)))?;
            }
        }
        Ok(())
    }

    /// Whether XDP of generic mode is pinned for a device.
    pub fn has_generic_xdp(&self, device: &str) -> bool {
        self.links.join(pin_name(device, "xdp-generic")).exists()
    }

    /// Takes the programs off a device that is about to go.
    pub fn detach(&self, device: &str) -> io::Result<()> {
        for suffix in ["ingress", "egress"] {
            veer_agent_api::file::remove(&self.links.join(pin_name(device, suffix)))?;
        }
        Ok(())
    }

    /// Removes the pins of devices that are not in `devices`.
    pub fn unpin_all_but(&self, devices: &HashSet<String>) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.links)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = devices.iter().any(|device| {
                name.strip_prefix(&device.replace('.', "~"))
                    .is_some_and(|rest| SUFFIXES.contains(&rest))
            });
            if !wanted {
                veer_agent_api::file::remove(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Names of the devices that have pinned links.
    pub fn pinned_devices(&self) -> io::Result<BTreeSet<String>> {
        let mut devices = BTreeSet::new();
        for entry in fs::read_dir(&self.links)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let device = SUFFIXES.iter().find_map(|s| name.strip_suffix(s));
            devices.extend(device.map(|d| d.replace('~', ".")));
        }
        Ok(devices)
    }

    /// Whether the hook's program runs on the device, and whether it runs first,
    /// which a filter of the first priority does.
    pub fn runs(&mut self, device: &str, hook: Hook) -> Option<bool> {
        let program = self.object.program(hook.program())?;
        let aya::programs::Program::SchedClassifier(program) = program else {
            return None;
        };
        let own = program.info().ok()?.id();
        if let Some(clsact) = &mut self.clsact {
            let there = filter_program(clsact, device, hook.parent());
            return there.map_or_else(
                |error| {
                    // An error is no evidence of a fault: do not attach again.
                    tracing::debug!(device, %error, "cannot ask for a filter");
                    Some(true)
                },
                |id| (id == Some(own)).then_some(true),
            );
        }
        let (_, running) = SchedClassifier::query_tcx(device, hook.direction()).ok()?;
        running
            .iter()
            .position(|info| info.id() == own)
            .map(|position| position == 0)
    }
}

/// Whatever aya or the kernel said.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn failure(program: &'static str, device: &str, source: impl Into<Failure>) -> Error {
    Error::Attach {
        program,
        device: device.to_owned(),
        source: source.into(),
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
    path: &Path,
) -> Result<Attached, Failure> {
    let own = program.info()?.id();
    let running = SchedClassifier::query_tcx(device, direction)
        .is_ok_and(|(_, infos)| infos.iter().any(|info| info.id() == own));
    if running && path.exists() {
        return Ok(Attached::Kept);
    }
    // A pin of a device that went and came back under its name is removed here;
    // one that was forced off its hook is seen by who asks what runs.
    if replace(path, |link| {
        let id = program.attach_to_link(link)?;
        program.take_link(id).map(drop)
    })? {
        return Ok(Attached::Replaced);
    }
    let id = program.attach_with_options(
        device,
        direction,
        TcAttachOptions::TcxOrder(LinkOrder::first()),
    )?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    pin(link, path)?;
    Ok(Attached::New)
}

fn attach_clsact(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
) -> Result<Attached, Failure> {
    // Fails when it is there already, which is as good.
    let _ = qdisc_add_clsact(device);
    let existing = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)?;
    let (id, outcome) = match program.attach_to_link(existing) {
        Ok(id) => (id, Attached::Replaced),
        Err(_) => (
            program.attach_with_options(
                device,
                direction,
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    classid: None,
                }),
            )?,
            Attached::New,
        ),
    };
    // Dropping the link would remove the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(outcome)
}

fn attach_xdp(
    program: &mut Xdp,
    device: &str,
    mode: XdpMode,
    path: &Path,
) -> Result<Attached, Failure> {
    if replace(path, |link| {
        let id = program.attach_to_link(link)?;
        program.take_link(id).map(drop)
    })? {
        return Ok(Attached::Replaced);
    }
    let id = program.attach(device, mode)?;
    // On EINVAL aya falls back to an attachment that is no link; that one could
    // not be pinned and so would not outlive the agent.
    let link: FdLink = program.take_link(id)?.try_into()?;
    pin(link, path)?;
    Ok(Attached::New)
}

fn pin(link: FdLink, path: &Path) -> Result<(), Failure> {
    link.pin(path).map(drop)?;
    Ok(())
}

/// Gives a pinned link another program, in one step. Whether there is one: that of a
/// device that is gone is unpinned.
fn replace<L>(
    path: &Path,
    attach: impl FnOnce(L) -> Result<(), ProgramError>,
) -> Result<bool, Failure>
where
    L: TryFrom<FdLink, Error: Into<Failure>>,
{
    if !path.exists() {
        return Ok(false);
    }
    let link = FdLink::from(PinnedLink::from_pin(path)?);
    match attach(link.try_into().map_err(Into::into)?) {
        // The pin holds the link; that the handle is closed detaches nothing.
        Ok(()) => Ok(true),
        Err(e) if device_gone(&e) => {
            veer_agent_api::file::remove(path)?;
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// Takes veer's clsact filters off a device; fine when there are none.
pub fn remove_clsact(device: &str) {
    for (direction, name) in [
        (TcAttachType::Ingress, program::UPLINK_INGRESS),
        (TcAttachType::Egress, program::UPLINK_EGRESS),
    ] {
        let _ = aya::programs::tc::qdisc_detach_program(device, direction, name);
    }
}
