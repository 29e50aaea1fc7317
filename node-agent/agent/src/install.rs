//! `veer-agent install`: puts the CNI plugins on the node, each in one step.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Where the image has veer-cni.
const VEER_CNI: &str = "/veer-cni";
/// Where the image has the standard plugins that veer's conflist wants.
const STANDARD: &str = "/cni";

/// Copies veer-cni (if it differs) and the standard plugins (if missing) into a
/// folder. Returns what was copied.
pub(crate) fn install(to: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(to)?;
    let mut copied = Vec::new();
    copied.extend(put(Path::new(VEER_CNI), &to.join("veer-cni"), true)?);
    if let Ok(entries) = fs::read_dir(STANDARD) {
        for entry in entries {
            let entry = entry?;
            copied.extend(put(&entry.path(), &to.join(entry.file_name()), false)?);
        }
    }
    Ok(copied)
}

/// Copies one file beside its target and renames it over.
fn put(from: &Path, to: &Path, replace: bool) -> io::Result<Option<PathBuf>> {
    if to.exists() && (!replace || fs::read(to)? == fs::read(from)?) {
        return Ok(None);
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let temporary = to.with_file_name(format!(".{name}.tmp"));
    fs::copy(from, &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, to)?;
    Ok(Some(to.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_plugin_is_replaced_and_a_foreign_one_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        assert_eq!(put(&from, &to, false).unwrap(), None);
        assert_eq!(fs::read_to_string(&to).unwrap(), "old");
        assert_eq!(put(&from, &to, true).unwrap(), Some(to.clone()));
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(put(&from, &to, true).unwrap(), None);
        let mode = fs::metadata(&to).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
