//! The BPF side: loads the object, pins its maps and links, writes the maps.
//! The only user of aya.
//!
//! Invariants: nothing is detached when the agent ends; a program is replaced
//! on its pinned link in one step; a pinned map is used only if it is what this
//! version expects (aya itself would take any).

mod attach;
mod before;
mod handover;
mod maps;
mod raw;
mod ring;
mod rows;
mod sockets;
mod talks;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapInfo},
    programs::{CgroupSockAddr, ProgramError, SchedClassifier, Xdp},
};
use handover::Handover;
use veer_agent_api::file;
use veer_bpf_common::{
    LAYOUT_VERSION, program,
    tables::{self, FlowEntry, FlowKey, Flows, FlowsBefore, MapSpec, Table},
};

use crate::netlink::message::Socket;

pub use attach::{Hook, XdpAttach, remove_clsact};
pub use maps::Maps;
pub use ring::{Reader, Ring};
pub use sockets::SocketsError;
pub use talks::{CpuTalk, Talks};

/// What can go wrong with programs and maps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// bpffs is missing or read-only.
    #[error("cannot use {path}: mount bpffs on the node (mount -t bpf bpf /sys/fs/bpf)")]
    Bpffs {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No socket to ask the kernel with.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// The object was refused.
    #[error("the kernel refuses veer's BPF object (needs 5.10 or later with BTF)")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error("the kernel refuses the program {name}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object lacks a map.
    #[error("the object has no map {0}: agent and object are of different versions")]
    MissingMap(&'static str),
    /// The object lacks a program.
    #[error("the object has no program {0}: agent and object are of different versions")]
    MissingProgram(&'static str),
    /// A map operation failed.
    #[error("map {name}")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// A map cannot be pinned again.
    #[error("cannot pin {path} again")]
    Repin {
        /// Where.
        path: PathBuf,
        /// Why not: of the map, of the pin or of the folder.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map that the agent fills could not be read or written.
    #[error(transparent)]
    Table(#[from] veer_agent_core::tables::Error),
    /// A program could not be attached.
    #[error("cannot attach {program} to {device}")]
    Attach {
        /// Which program.
        program: &'static str,
        /// To which device.
        device: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The loaded object with its maps.
pub struct Datapath {
    object: Ebpf,
    /// The maps.
    pub maps: Maps,
    /// All maps once more, to pin them again.
    pinned: Vec<(PathBuf, MapData)>,
    /// Until the last program of another layout is replaced.
    handover: Option<Handover>,
    pins: PathBuf,
    links: PathBuf,
    root: PathBuf,
    sockets: sockets::Sockets,
    /// To ask for clsact's filters; `None`: programs are attached by tcx links.
    clsact: Option<Socket>,
}

impl Datapath {
    /// Loads the object below a bpffs, using the maps pinned there.
    pub fn load(bpffs: &Path) -> Result<Self, Error> {
        let root = bpffs.join("veer");
        let pins = root.join(format!("maps-v{LAYOUT_VERSION}"));
        let links = root.join("links");
        for folder in [&pins, &links] {
            fs::create_dir_all(folder).map_err(|source| Error::Bpffs {
                path: folder.clone(),
                source,
            })?;
        }
        let mut clsact = if attach::tcx_supported() {
            None
        } else {
            Some(Socket::route().map_err(Error::Netlink)?)
        };
        let (from, others) = handover::prepare(&root, &pins, clsact.as_mut())?;
        for spec in &tables::ALL {
            drop_foreign_pin(&pins.join(spec.name), spec)?;
        }
        let flows_before = before::until(&pins, !others.is_empty())?;
        let mut loader = EbpfLoader::new();
        // Only UAPI structures are read, so there is nothing to relocate and
        // no need to keep the kernel's BTF in memory.
        loader.btf(None);
        for spec in &tables::ALL {
            loader.map_pin_path(spec.name, pins.join(spec.name));
        }
        // The verifier removes what never looks there.
        loader.override_global(FlowsBefore::UNTIL, &flows_before, true);
        if flows_before == 0 {
            loader.map_max_entries(FlowsBefore::NAME, 1);
        } else {
            loader.map_pin_path(FlowsBefore::NAME, pins.join(FlowsBefore::NAME));
        }
        let mut object = loader
            .load(veer_bpf_object::OBJECT)
            .map_err(|e| Error::Load(Box::new(e)))?;
        for name in program::ALL {
            load_program(&mut object, name)?;
        }
        let maps = Maps::take(&mut object)?;
        let pinned = tables::ALL
            .iter()
            .map(|spec| {
                let path = pins.join(spec.name);
                let map = MapData::from_pin(&path).map_err(|source| Error::Map {
                    name: spec.name,
                    source,
                })?;
                Ok((path, map))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let handover = Handover::begin(from.as_deref(), others, &pinned);
        Ok(Self {
            object,
            maps,
            pinned,
            handover,
            pins,
            links,
            root,
            sockets: sockets::Sockets::default(),
            clsact,
        })
    }

    /// The ring of events.
    pub fn ring(&self) -> Result<Ring, Error> {
        Ring::open(&self.pins)
    }

    /// Who sends to whom.
    pub fn talks(&self) -> Result<Talks, Error> {
        Talks::open(&self.pins)
    }

    /// All flow entries, in one call.
    pub fn flows(&self) -> Result<Vec<(FlowKey, FlowEntry)>, Error> {
        let name = Flows::NAME;
        let is_table = |path: &Path| path.file_name().is_some_and(|file| file == name);
        let pinned = self.pinned.iter().find(|(path, _)| is_table(path));
        let (_, map) = pinned.ok_or(Error::MissingMap(name))?;
        raw::all(map).map_err(|source| {
            let source = Box::new(source);
            veer_agent_core::tables::Error { name, source }.into()
        })
    }

    /// Whether programs are attached by links that can be pinned.
    pub fn attaches_links(&self) -> bool {
        self.clsact.is_none()
    }

    /// `tcx` or `clsact`.
    pub fn attach_kind(&self) -> &'static str {
        if self.attaches_links() {
            "tcx"
        } else {
            "clsact"
        }
    }

    /// Whether programs may be replaced by this version's: not while its maps
    /// hold less than those of another layout. `complete`: they hold all that the
    /// API server knows.
    pub fn may_attach(&mut self, complete: bool) -> bool {
        let pins = &self.pins;
        self.handover
            .as_mut()
            .is_none_or(|handover| handover.may_attach(pins, complete))
    }

    /// Whether programs of another layout may still run.
    pub fn takes_over(&self) -> bool {
        self.handover.is_some()
    }

    /// Every program is this version's.
    pub fn all_attached(&mut self) {
        if let Some(handover) = self.handover.take() {
            handover.finish();
        }
    }

    /// Pins maps again whose pins are gone or are of other maps. Returns the
    /// paths of those.
    pub fn repin(&self) -> Result<Vec<&Path>, Error> {
        let mut lost = Vec::new();
        for (path, map) in &self.pinned {
            let pin = |source| Error::Repin {
                path: path.clone(),
                source,
            };
            let own = map.info().map_err(|e| pin(e.into()))?.id();
            if MapInfo::from_pin(path).is_ok_and(|info| info.id() == own) {
                continue;
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|e| pin(e.into()))?;
            }
            file::remove(path).map_err(|e| pin(e.into()))?;
            map.pin(path).map_err(|e| pin(e.into()))?;
            lost.push(path.as_path());
        }
        fs::create_dir_all(&self.links).map_err(|source| Error::Bpffs {
            path: self.links.clone(),
            source,
        })?;
        Ok(lost)
    }

    /// Removes every pin of every version. The programs go with their links.
    pub fn remove_pins(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let program = object
        .program_mut(name)
        .ok_or(Error::MissingProgram(name))?;
    let mut load = || {
        if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut CgroupSockAddr>::try_from(&mut *program) {
            program.load()
        } else {
            <&mut SchedClassifier>::try_from(&mut *program).and_then(SchedClassifier::load)
        }
    };
    let mut outcome = load();
    for _ in 1..LOAD_ATTEMPTS {
        if !outcome.as_ref().is_err_and(was_interrupted) {
            break;
        }
        outcome = load();
    }
    outcome.map_err(|source| Error::Program {
        name,
        source: Box::new(source),
    })
}

/// How often the kernel is asked to take a program: as libbpf does.
const LOAD_ATTEMPTS: u32 = 5;

/// Whether the verifier only made way for something that waited for the thread (`EAGAIN`,
/// `do_check` in `kernel/bpf/verifier.c`).
fn was_interrupted(error: &ProgramError) -> bool {
    if let ProgramError::LoadError { io_error, .. } = error {
        return io_error.raw_os_error() == Some(nix::libc::EAGAIN);
    }
    false
}

/// Whether a map is what this version expects.
fn same_layout(info: &MapInfo, spec: &MapSpec) -> bool {
    let kind = info.map_type().map_or(0, |kind| kind as u32);
    kind == spec.kind as u32
        && info.key_size() == spec.key_size
        && info.value_size() == spec.value_size
        && info.max_entries() == spec.max_entries
        && info.map_flags() == spec.flags
}

/// Removes a pin that is not the map this version expects under its name.
fn drop_foreign_pin(path: &Path, spec: &MapSpec) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(path).map_err(|source| Error::Map {
        name: spec.name,
        source,
    })?;
    if same_layout(&info, spec) {
        return Ok(());
    }
    tracing::warn!(
        map = spec.name,
        "the pinned map has another layout than this version's; starting with an empty one"
    );
    fs::remove_file(path).map_err(|source| Error::Bpffs {
        path: path.to_owned(),
        source,
    })
}
