//! The CNI configuration that tells the container runtime to call veer-cni.

use std::{fs, io, path::Path, sync::Arc};

use serde_json::json;

use crate::{files, shared::Shared};

/// Its file name: early in the alphabet, since the first file counts.
pub(crate) const NAME: &str = "05-veer.conflist";

/// The file's content. Runtimes that know `cniVersions` choose the newest;
/// containerd 1.x takes `cniVersion`.
fn content() -> Vec<u8> {
    let value = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "veer",
        "plugins": [
            { "type": "veer-cni" },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    });
    let mut bytes = serde_json::to_vec_pretty(&value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Writes it atomically, unless it is there already. Returns whether it was not.
pub(crate) fn write(folder: &Path) -> io::Result<bool> {
    let path = folder.join(NAME);
    let wanted = content();
    if fs::read(&path).is_ok_and(|found| found == wanted) {
        return Ok(false);
    }
    files::write_atomically(&path, &wanted)?;
    Ok(true)
}

/// Removes it, and veer-cni, once no pod of veer is left on a node that is
/// cleaned up: until then the runtime needs both for DEL.
pub(crate) fn remove_with_the_last(shared: &Arc<Shared>) {
    super::gc::collect(shared);
    if shared.store().len() > 0 {
        return;
    }
    for path in [
        shared.options.cni_conf_dir.join(NAME),
        shared.options.cni_bin_dir.join("veer-cni"),
    ] {
        if let Err(error) = files::remove(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_once_and_put_back_when_changed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let path = dir.path().join(NAME);
        let first = fs::metadata(&path).unwrap().modified().unwrap();
        write(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), first);
        fs::write(&path, "{}").unwrap();
        write(dir.path()).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(found["cniVersion"], "1.0.0");
        assert_eq!(found["plugins"][0]["type"], "veer-cni");
        assert_eq!(found["plugins"][1]["capabilities"]["portMappings"], true);
    }
}
