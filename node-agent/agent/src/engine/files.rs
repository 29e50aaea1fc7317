//! The files by which the container runtime finds veer: plugins, configuration,
//! the agent's socket and the folders that they are in.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use veer_agent_api::{CONFLIST, SERVED_NAME, file};

use super::Engine;
use crate::{
    runtime::{
        conflist::{self, Chain},
        foreign,
        install::Keeper,
    },
    shared::Shared,
    state::options::Options,
};
use veer_agent_core::repair::Kind;

#[derive(Debug)]
pub(super) struct NodeFiles {
    plugins: Keeper,
    /// veer's part of the conflist.
    chain: Chain,
    /// The last report on other networks' files.
    told: String,
}

impl NodeFiles {
    pub(super) fn new(options: &Options, chain: Chain) -> Self {
        Self {
            plugins: Keeper::new(&options.cni_bin_dir),
            chain,
            told: String::new(),
        }
    }

    /// Puts back what is missing. With `serving`, pods can be wired, and the
    /// runtime is to call veer; with `begun`, it could already. Returns whether a folder
    /// is gone that only another start of the container brings back.
    pub(super) fn converge(&mut self, shared: &Shared, serving: bool, begun: bool) -> bool {
        let options = &shared.options;
        if lacks_folders(options) {
            return true;
        }
        match self.plugins.look() {
            Ok(put) => {
                for what in put {
                    shared.repaired(Kind::Plugin, what);
                }
            }
            Err(error) => tracing::error!(%error, "cannot put the CNI plugins back"),
        }
        if !serving {
            return false;
        }
        match conflist::write(&options.cni_conf_dir, &options.state, &self.chain) {
            Ok(Some(what)) if begun => shared.repaired(Kind::Conflist, what),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "cannot write the conflist"),
        }
        self.foreign(shared);
        if let Err(error) = fs::write(served(options), "1\n") {
            tracing::warn!(%error, "cannot record that pods can be wired");
        }
        false
    }

    /// Looks for files of other networks that the runtime takes instead of veer's.
    fn foreign(&mut self, shared: &Shared) {
        let folder = &shared.options.cni_conf_dir;
        let mut found = foreign::first_ones(folder).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot list the CNI configurations");
            Vec::new()
        });
        if shared.options.exclusive && !found.is_empty() {
            match foreign::move_aside(folder, &found) {
                Ok(()) => {
                    for name in found.drain(..) {
                        let what = format!("{name}, which sorts before {CONFLIST}, was there");
                        shared.repaired(Kind::Conflist, what);
                    }
                }
                Err(error) => tracing::error!(%error, "cannot move other networks' files aside"),
            }
        }
        let text = sentence(&found);
        if text != self.told {
            if text.is_empty() {
                let note = format!("no file sorts before {CONFLIST} any more");
                shared.events.normal("ForeignConflistGone", note);
            } else {
                tracing::error!("{text}");
                shared.events.warn("ForeignConflist", text.clone());
            }
            self.told.clone_from(&text);
        }
        shared.plan_mut().foreign_conflist = text;
    }
}

impl Engine {
    /// Whether the agent has to be told first what its node is: what it knew of it
    /// is lost, and the maps hold more than an agent that knows nothing would leave
    /// in them.
    pub(super) fn has_forgotten(&self) -> bool {
        if self.held.is_known() {
            return false;
        }
        let told = {
            let index = self.shared.index();
            let complete = index.complete;
            index.cluster.is_some()
                && index.nodes.get(index.own()).is_some()
                && complete.pods
                && complete.endpoints_listed
        };
        let config = self.shared.datapath().maps.tables.config.get(&0);
        let wired = config.is_ok_and(|c| c.is_some_and(|c| c.gateway_v4 != [0; 4]));
        let forgotten = !told && wired;
        if forgotten {
            let mut plan = self.shared.plan_mut();
            if plan.not_ready != FORGOTTEN {
                tracing::warn!("{FORGOTTEN}; the agent changes nothing");
                FORGOTTEN.clone_into(&mut plan.not_ready);
            }
        }
        forgotten
    }
}

/// Why an agent without its state waits.
const FORGOTTEN: &str = "the agent's state of the node is lost, and the API server has not \
                         sent it yet";

fn sentence(found: &[String]) -> String {
    if found.is_empty() {
        return String::new();
    }
    format!(
        "the container runtime takes {} instead of {CONFLIST}, so new pods get another network: remove \
         it from the node, or set cni.exclusive in the chart",
        found.join(", ")
    )
}

/// The file whose time says when pods could last be wired: veer-cni answers
/// STATUS by it while no agent does.
fn served(options: &Options) -> std::path::PathBuf {
    options.socket.with_file_name(SERVED_NAME)
}

/// The node is being cleaned up: it serves no more, and what was moved aside for
/// veer comes back.
pub(super) fn leave(options: &Options) {
    if let Err(error) = file::remove(&served(options)) {
        tracing::warn!(%error, "cannot remove the record that pods can be wired");
    }
    match foreign::restore(&options.cni_conf_dir) {
        Ok(restored) if restored.is_empty() => {}
        Ok(restored) => tracing::info!(?restored, "put back"),
        Err(error) => tracing::warn!(%error, "cannot put back what was moved aside"),
    }
}

/// A folder that was removed from the node stays mounted here, and nothing can be
/// put into it any more. The container runtime makes the folder again when it
/// restarts the container.
fn lacks_folders(options: &Options) -> bool {
    let run = options.socket.parent().unwrap_or(Path::new("/run/veer"));
    let mut folders = [
        run,
        &options.state,
        &options.cni_bin_dir,
        &options.cni_conf_dir,
    ]
    .into_iter();
    let Some(folder) = folders.find(|folder| is_removed(folder)) else {
        return false;
    };
    tracing::error!(
        folder = %folder.display(),
        "the folder was removed from the node: ending, so that the kubelet starts the agent \
         again with a new one"
    );
    true
}

/// Whether a folder that is still open or mounted has no name any more.
fn is_removed(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|found| found.nlink() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_removed_under_its_user_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("run");
        fs::create_dir(&folder).unwrap();
        let open = fs::File::open(&folder).unwrap();
        let seen = std::path::PathBuf::from(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&open)
        ));
        assert!(!is_removed(&seen));
        fs::remove_dir(&folder).unwrap();
        assert!(is_removed(&seen));
        assert!(!is_removed(&folder), "one that is just not there is made");
    }

    #[test]
    fn the_message_names_every_file_and_what_to_do() {
        let text = sentence(&["00-a.conf".into(), "04-old.conflist".into()]);
        assert!(text.contains("00-a.conf, 04-old.conflist"));
        assert!(text.contains("cni.exclusive"));
        assert!(sentence(&[]).is_empty());
    }
}
