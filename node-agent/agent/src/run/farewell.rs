//! The last thing that the agent of a decommissioned node does: taking its own
//! files along.
//!
//! Until then it needs them, since it may be restarted. The directories stay,
//! empty: they are mounts here. With sandboxes of veer left on the node the
//! conflist and veer-cni stay too, and veer-cni takes the empty state directory as
//! the sign that veer is gone: it lets every DEL succeed, and the last one removes
//! what is left.

use std::{fs, io, path::Path};

use veer_agent_api::file;

use crate::{engine::checkpoint_file::CheckpointFile, runtime::conflist::PLUGIN};

/// Removes the agent's files if the node is decommissioned. `state` and `run` are
/// its directories, `plugins` is the node's directory of CNI plugins, `sandboxes` is
/// how many the node has left. Returns whether anything was to be done.
pub(super) fn leave(
    state: &Path,
    run: &Path,
    plugins: &Path,
    sandboxes: usize,
) -> io::Result<bool> {
    if !CheckpointFile::open(state).get().decommissioned {
        return Ok(false);
    }
    if sandboxes == 0 {
        file::remove(&plugins.join(PLUGIN))?;
    }
    empty(state)?;
    empty(run)?;
    Ok(true)
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            file::remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_agent_core::checkpoint::Checkpoint;

    fn node(decommissioned: bool) -> tempfile::TempDir {
        let node = tempfile::tempdir().unwrap();
        for directory in ["state/endpoints", "run", "bin"] {
            fs::create_dir_all(node.path().join(directory)).unwrap();
        }
        fs::write(node.path().join("state/endpoints/a.json"), "{}").unwrap();
        fs::write(node.path().join("run/agent.sock"), "").unwrap();
        fs::write(node.path().join("bin/veer-cni"), "").unwrap();
        let held = Checkpoint {
            decommissioned,
            epoch: Some(veer_crds::v1alpha1::Epoch::default()),
            ..Checkpoint::default()
        };
        CheckpointFile::open(&node.path().join("state"))
            .set(held)
            .unwrap();
        node
    }

    fn entries(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn decommissioned_node_keeps_two_empty_directories() {
        let node = node(true);
        let (state, run) = (node.path().join("state"), node.path().join("run"));
        let plugins = node.path().join("bin");
        assert!(leave(&state, &run, &plugins, 1).unwrap());
        assert_eq!((entries(&state), entries(&run)), (0, 0));
        assert_eq!(
            entries(&plugins),
            1,
            "a sandbox is left to be deleted by it"
        );
    }

    #[test]
    fn plugin_goes_with_the_last_sandbox_wherever_plugins_are() {
        let node = node(true);
        let (state, run) = (node.path().join("state"), node.path().join("run"));
        let plugins = node.path().join("bin");
        assert!(leave(&state, &run, &plugins, 0).unwrap());
        assert_eq!(entries(&plugins), 0);
    }

    #[test]
    fn agent_that_is_only_restarted_keeps_everything() {
        let node = node(false);
        let (state, run) = (node.path().join("state"), node.path().join("run"));
        let plugins = node.path().join("bin");
        assert!(!leave(&state, &run, &plugins, 0).unwrap());
        assert_eq!(entries(&plugins), 1);
        assert_eq!((entries(&state), entries(&run)), (2, 1));
    }
}
