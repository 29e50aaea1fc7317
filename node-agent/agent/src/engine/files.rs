//! The files by which the container runtime finds veer: plugins, configuration,
//! the agent's socket and the folders that they are in.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use veer_agent_api::{CONFLIST, SERVED_NAME, file};

use crate::{
    report::events::Events,
    runtime::{
        conflist::{self, Chain},
        foreign,
        install::Keeper,
    },
    state::options::Options,
};
use veer_agent_core::repair::{Kind, RoundLog};

#[derive(Debug)]
pub(super) struct NodeFiles {
    options: Arc<Options>,
    plugins: Keeper,
    /// veer's part of the conflist.
    chain: Chain,
    events: Events,
    /// The last report on other networks' files.
    told: String,
}

impl NodeFiles {
    pub(super) fn new(options: &Arc<Options>, chain: Chain, events: Events) -> Self {
        Self {
            options: Arc::clone(options),
            plugins: Keeper::new(&options.cni_bin_dir),
            chain,
            events,
            told: String::new(),
        }
    }

    /// Puts back what is missing. With `serving`, pods can be wired, and the
    /// runtime is to call veer; with `begun`, it could already. Returns whether a folder
    /// is gone that only another start of the container brings back.
    pub(super) fn converge(&mut self, done: &mut RoundLog, serving: bool, begun: bool) -> bool {
        if lacks_folders(&self.options) {
            return true;
        }
        match self.plugins.look() {
            Ok(put) => {
                for what in put {
                    done.repaired(Kind::Plugin, what);
                }
            }
            Err(error) => tracing::error!(%error, "cannot put the CNI plugins back"),
        }
        if !serving {
            return false;
        }
        let options = &self.options;
        match conflist::write(&options.cni_conf_dir, &options.state, &self.chain) {
            Ok(Some(what)) if begun => done.repaired(Kind::Conflist, what),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "cannot write the conflist"),
        }
        self.look_for_others(done);
        if let Err(error) = fs::write(served(&self.options), "1\n") {
            tracing::warn!(%error, "cannot record that pods can be wired");
        }
        false
    }

    /// Looks for files of other networks that the runtime takes instead of veer's.
    fn look_for_others(&mut self, done: &mut RoundLog) {
        let folder = &self.options.cni_conf_dir;
        let mut found = foreign::first_ones(folder).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot list the CNI configurations");
            Vec::new()
        });
        if self.options.exclusive && !found.is_empty() {
            match foreign::move_aside(folder, &found) {
                Ok(()) => {
                    for name in found.drain(..) {
                        let what = format!("{name}, which sorts before {CONFLIST}, was there");
                        done.repaired(Kind::Conflist, what);
                    }
                }
                Err(error) => tracing::error!(%error, "cannot move other networks' files aside"),
            }
        }
        let text = sentence(&found);
        if text != self.told {
            if text.is_empty() {
                let note = format!("no file sorts before {CONFLIST} any more");
                self.events.normal("ForeignConflistGone", note);
            } else {
                tracing::error!("{text}");
                self.events.warn("ForeignConflist", text.clone());
            }
            self.told = text;
        }
    }

    /// That the runtime takes another network's configuration; empty: it does not.
    pub(super) fn foreign(&self) -> &str {
        &self.told
    }

    /// The node is being cleaned up: it serves no more, and what was moved aside for
    /// veer comes back.
    pub(super) fn leave(&self) {
        if let Err(error) = file::remove(&served(&self.options)) {
            tracing::warn!(%error, "cannot remove the record that pods can be wired");
        }
        match foreign::restore(&self.options.cni_conf_dir) {
            Ok(restored) if restored.is_empty() => {}
            Ok(restored) => tracing::info!(?restored, "put back"),
            Err(error) => tracing::warn!(%error, "cannot put back what was moved aside"),
        }
    }
}

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
