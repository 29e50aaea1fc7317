//! Other networks' configurations in the runtime's folder.
//!
//! Of all files there a runtime takes the first, so one that sorts before
//! veer's takes every new pod away. One that leads to veer (Multus, which has
//! veer wire the pod's first interface) takes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use veer_agent_api::CONFLIST;

use crate::runtime::conflist::PLUGIN;

/// Suffix of a file that is moved aside: no runtime reads such a file.
const MOVED: &str = ".veer-moved";
/// Suffixes of the files that runtimes read.
const KINDS: [&str; 3] = ["conf", "conflist", "json"];

/// Names of the files that a runtime takes instead of veer's, in its order.
pub(crate) fn first_ones(folder: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        let read = path
            .extension()
            .is_some_and(|kind| KINDS.iter().any(|k| kind == *k));
        if name.as_str() < CONFLIST && read && !path.is_dir() && !leads_to_veer(&path) {
            found.push(name);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether the file has veer wire pods. One that cannot be read does not.
fn leads_to_veer(path: &Path) -> bool {
    fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .is_some_and(|value| names_veer(&value))
}

fn names_veer(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            let named = match (key.as_str(), value.as_str()) {
                ("type", Some(kind)) => kind == PLUGIN,
                // Multus: a network's name, or the path of its file.
                ("clusterNetwork" | "defaultNetwork", Some(network)) => {
                    network == "veer" || network.ends_with(CONFLIST)
                }
                _ => false,
            };
            named || names_veer(value)
        }),
        Value::Array(items) => items.iter().any(names_veer),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Moves files aside, so that no runtime reads them.
pub(crate) fn move_aside(folder: &Path, names: &[String]) -> io::Result<()> {
    for name in names {
        fs::rename(folder.join(name), folder.join(format!("{name}{MOVED}")))?;
    }
    Ok(())
}

/// Puts back what was moved aside, unless there is a new file of that name.
pub(crate) fn restore(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut restored = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(original) = path.to_str().and_then(|p| p.strip_suffix(MOVED)) else {
            continue;
        };
        let original = PathBuf::from(original);
        if !original.exists() {
            fs::rename(&path, &original)?;
            restored.push(original);
        }
    }
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    const OLD: &str = r#"{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"bridge"}]}"#;

    #[test]
    fn a_leftover_of_another_network_that_sorts_first_is_named() {
        let folder = folder(&[
            ("04-old.conflist", OLD),
            ("00-broken.conf", "{"),
            ("03-note.txt", OLD),
            ("04-old.conflist.bak", OLD),
            (CONFLIST, OLD),
            ("10-other.conflist", OLD),
        ]);
        fs::create_dir(folder.path().join("01-folder.conf")).unwrap();
        let found = first_ones(folder.path()).unwrap();
        assert_eq!(found, ["00-broken.conf", "04-old.conflist"]);
    }

    #[test]
    fn a_file_by_which_veer_wires_pods_is_none() {
        let folder = folder(&[
            (
                "00-multus.conf",
                r#"{"name":"multus","type":"multus","clusterNetwork":"/host/etc/cni/net.d/05-veer.conflist"}"#,
            ),
            (
                "01-multus.conf",
                r#"{"type":"multus","delegates":[{"plugins":[{"type":"veer-cni"}]}]}"#,
            ),
        ]);
        assert!(first_ones(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn files_moved_aside_are_read_by_no_runtime_and_come_back() {
        let folder = folder(&[("04-old.conflist", OLD), ("02-older.json", OLD)]);
        let found = first_ones(folder.path()).unwrap();
        move_aside(folder.path(), &found).unwrap();
        assert!(first_ones(folder.path()).unwrap().is_empty());
        fs::write(folder.path().join("02-older.json"), "{}").unwrap();
        let back = restore(folder.path()).unwrap();
        assert_eq!(back, [folder.path().join("04-old.conflist")]);
        assert_eq!(
            fs::read_to_string(folder.path().join("02-older.json")).unwrap(),
            "{}",
            "a new file is not overwritten"
        );
    }
}
