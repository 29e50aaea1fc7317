//! Takes over the maps of another layout when an agent of another version starts.
//! Upgrades and downgrades work alike.
//!
//! The new maps are filled from the old ones before the first program is replaced, so
//! known pairs, pods and nodes stay known while the API server is down. Maps that
//! traffic fills (flow entries, ports of fragments, clients with affinity, what
//! sockets asked for) are shared by both versions if both
//! describe them alike. The old pins are removed with the last old program.
//!
//! A new layout may only append fields to a value. A map that changes otherwise gets a
//! new name, and programs are then replaced only when the API server's lists are
//! complete.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapError, MapInfo},
    pin::PinError,
};
use veer_bpf_common::tables::{
    self, Affinities, Backends, Configuration, Endpoints, Flows, FlowsBefore, Fragments,
    Interfaces, Ipcache, MapSpec, Members, Nodes, Places, Remotes, Services, Sockets, Streams,
    Table,
};

use super::{Error, attach, before, raw, same_layout};
use crate::netlink::{VXLAN, message::Socket};

/// Maps that the programs fill.
const LEARNED: [&str; 6] = [
    Flows::NAME,
    Places::NAME,
    Fragments::NAME,
    Affinities::NAME,
    Sockets::NAME,
    Streams::NAME,
];
/// Maps that the agent fills, and from which programs decide.
const FILLED: [&str; 6] = [
    Configuration::NAME,
    Nodes::NAME,
    Remotes::NAME,
    Interfaces::NAME,
    Endpoints::NAME,
    Ipcache::NAME,
];
/// The same of Services, which layout 4 had none of.
const FILLED_SINCE_5: [&str; 3] = [Backends::NAME, Members::NAME, Services::NAME];

/// Why a map of another layout could not be taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeoverError {
    /// It cannot be opened.
    #[error("cannot open it")]
    Map(#[from] MapError),
    /// It cannot be pinned.
    #[error("cannot pin it")]
    Pin(#[from] PinError),
    /// An entry cannot be read or written.
    #[error("cannot copy its entries")]
    Entries(#[from] io::Error),
    /// Kind, sizes or capacity differ.
    #[error("the other layout describes it otherwise")]
    Described,
    /// Its kind or the size of its keys differs.
    #[error("it has other keys")]
    Keys,
    /// There is no map of that name here.
    #[error("this layout has no such map")]
    Missing,
    /// Somebody else removed keys all the while.
    #[error("it changed during all of the walk")]
    Changing,
}

/// A takeover from another layout under way.
#[derive(Debug)]
pub(super) struct Handover {
    /// Folders of other layouts' pins.
    others: Vec<PathBuf>,
    /// This layout's maps hold all that the others did.
    filled: bool,
    /// Flows of layout 4 are to be copied.
    copies_flows: bool,
}

fn bpffs(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Bpffs {
        path: path.clone(),
        source,
    }
}

/// Folders of other layouts than `own`.
fn others(root: &Path, own: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let is_layout = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("maps-v"));
        if is_layout && path != own {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Ids of the maps that programs on the VXLAN device use.
fn maps_in_use(clsact: Option<&mut Socket>) -> HashSet<u32> {
    let programs = match clsact {
        Some(socket) => attach::filters(socket, VXLAN),
        None => attach::links(VXLAN),
    };
    let maps = programs.iter().filter_map(|p| p.map_ids().ok().flatten());
    maps.flatten().collect()
}

fn uses(folder: &Path, in_use: &HashSet<u32>) -> bool {
    MapInfo::from_pin(folder.join(Remotes::NAME)).is_ok_and(|info| in_use.contains(&info.id()))
}

/// Before the object is loaded: makes room for new maps where another layout's
/// are in force, and takes over what was learned. Returns the folder to fill
/// from, and all other layouts' folders.
pub(super) fn prepare(
    root: &Path,
    own: &Path,
    clsact: Option<&mut Socket>,
) -> Result<(Option<PathBuf>, Vec<PathBuf>), Error> {
    let others = others(root, own).map_err(bpffs(root))?;
    if others.is_empty() {
        return Ok((None, others));
    }
    let in_use = maps_in_use(clsact);
    // Programs were replaced in part only after the own maps were full.
    if uses(own, &in_use) {
        return Ok((None, others));
    }
    // Without a program, or without information on it, take the latest layout.
    let from = others.iter().rev().find(|o| uses(o, &in_use));
    let Some(from) = from.or(others.last()).cloned() else {
        return Ok((None, others));
    };
    tracing::info!(from = %from.display(), "taking over from maps of another layout");
    // Pins of this layout's own are of an earlier takeover, and stale.
    fs::remove_dir_all(own).map_err(bpffs(own))?;
    fs::create_dir_all(own).map_err(bpffs(own))?;
    let learned = tables::ALL.iter().filter(|s| LEARNED.contains(&s.name));
    let before = FlowsBefore::SPEC;
    for spec in learned.chain([&before]) {
        // A layout before 5 has fewer; one after it hardly ever the map before.
        if !from.join(spec.name).exists() {
            continue;
        }
        if let Err(error) = share(&from, own, spec) {
            tracing::warn!(map = spec.name, error = %veer_crds::condition::explain(&error), "what traffic taught is not taken over");
        }
    }
    Ok((Some(from), others))
}

/// Pins a map of another layout as this one's too.
fn share(from: &Path, own: &Path, spec: &MapSpec) -> Result<(), TakeoverError> {
    let path = from.join(spec.name);
    let info = MapInfo::from_pin(&path)?;
    if !same_layout(&info, spec) {
        return Err(TakeoverError::Described);
    }
    let map = MapData::from_pin(&path)?;
    Ok(map.pin(own.join(spec.name))?)
}

impl Handover {
    /// Fills the new maps. `None` where no other layout left anything.
    pub(super) fn begin(
        from: Option<&Path>,
        others: Vec<PathBuf>,
        own: &[(PathBuf, MapData)],
    ) -> Option<Self> {
        if others.is_empty() {
            return None;
        }
        let filled = from.is_none_or(|from| {
            let filled = FILLED.iter().fold(true, |all, name| {
                let result = fill_as_told(from, name, own);
                all && result
            });
            // Datagrams of a flow would leave a backend of a Service that is known in part,
            // and programs that do not share the flows would not know those begun here.
            if shares_flows(from, own) {
                FILLED_SINCE_5
                    .iter()
                    .all(|name| fill_as_told(from, name, own));
            }
            filled
        });
        // Where a copy exists, so do programs that use the table.
        let copies_flows = from.is_some_and(|from| !from.join(Flows::NAME).exists());
        Some(Self {
            others,
            filled,
            copies_flows,
        })
    }

    /// See [`super::Datapath::may_attach`]. `own`: this layout's folder.
    pub(super) fn may_attach(&mut self, own: &Path, complete: bool) -> bool {
        self.filled |= complete;
        if self.filled && self.copies_flows {
            self.copies_flows = false;
            match before::copy(own) {
                Ok((copied, left_out)) => {
                    tracing::info!(
                        copied,
                        left_out,
                        "flows of the layout before are taken over"
                    );
                }
                Err(error) => tracing::warn!(
                    error = %veer_crds::condition::explain(&error),
                    "flows of the layout before are not taken over: connections through \
                     Services may break"
                ),
            }
        }
        self.filled
    }

    /// Removes the other layouts' pins, once no program uses them.
    pub(super) fn finish(self) {
        for folder in self.others {
            match fs::remove_dir_all(&folder) {
                Ok(()) => {
                    tracing::info!(folder = %folder.display(), "the other layout's pins are gone");
                }
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "pins of another layout stay");
                }
            }
        }
    }
}

/// Whether the flow table and its places are those of the other layout.
fn shares_flows(from: &Path, own: &[(PathBuf, MapData)]) -> bool {
    [Flows::NAME, Places::NAME].into_iter().all(|name| {
        let own = own.iter().find(|(path, _)| path.ends_with(name));
        let own = own.and_then(|(_, map)| map.info().ok());
        let theirs = MapInfo::from_pin(from.join(name)).ok();
        own.zip(theirs).is_some_and(|(a, b)| a.id() == b.id())
    })
}

/// Fills a map, and says what came of it.
fn fill_as_told(from: &Path, name: &str, own: &[(PathBuf, MapData)]) -> bool {
    let result = fill(&from.join(name), own);
    match &result {
        Ok(entries) => tracing::info!(map = name, entries, "taken over"),
        Err(error) => tracing::warn!(
            map = name,
            error = %veer_crds::condition::explain(error),
            "not taken over; waiting for the API server's lists"
        ),
    }
    result.is_ok()
}

fn fill(from: &Path, own: &[(PathBuf, MapData)]) -> Result<usize, TakeoverError> {
    let map = MapData::from_pin(from)?;
    let (_, to) = own
        .iter()
        .find(|(path, _)| path.file_name() == from.file_name())
        .ok_or(TakeoverError::Missing)?;
    let (old, new) = (map.info()?, to.info()?);
    let kind = |info: &MapInfo| info.map_type().map_or(0, |kind| kind as u32);
    if kind(&old) != kind(&new) || old.key_size() != new.key_size() {
        return Err(TakeoverError::Keys);
    }
    raw::copy(&map, to)
}
