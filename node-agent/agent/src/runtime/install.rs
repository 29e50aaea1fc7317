//! `veer-agent install`: puts the CNI plugins on the node, each in one step; and
//! the running agent keeps them there.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use veer_agent_api::file;

use veer_agent_api::file::AGENT;

/// Where the image has veer-cni.
const VEER_CNI: &str = "/veer-cni";
/// Where the image has standard plugins: loopback, which runtimes want, and portmap,
/// whose rules for pods of earlier releases its DEL removes.
const STANDARD: &str = "/cni";

/// Copies veer-cni (if it differs) and the standard plugins (if missing) into a
/// folder. Returns what was copied.
pub(crate) fn install(to: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(to)?;
    let mut copied = Vec::new();
    for plugin in plugins(Path::new(VEER_CNI), Path::new(STANDARD)) {
        copied.extend(plugin.put(to)?);
    }
    Ok(copied)
}

/// A plugin that the image has.
#[derive(Debug)]
struct Plugin {
    from: PathBuf,
    name: OsString,
    /// veer's own: the node's must be this one. Of the others any will do.
    own: bool,
}

fn plugins(own: &Path, standard: &Path) -> Vec<Plugin> {
    let own = own
        .file_name()
        .filter(|_| own.is_file())
        .map(|name| Plugin {
            from: own.to_owned(),
            name: name.to_owned(),
            own: true,
        });
    let standard = fs::read_dir(standard)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| Plugin {
            from: entry.path(),
            name: entry.file_name(),
            own: false,
        });
    own.into_iter().chain(standard).collect()
}

impl Plugin {
    /// Puts it there in one step, if need be.
    fn put(&self, folder: &Path) -> io::Result<Option<PathBuf>> {
        let to = folder.join(&self.name);
        let fine = Stamp::of(&to).is_some_and(|stamp| stamp.runs())
            && (!self.own || fs::read(&to)? == fs::read(&self.from)?);
        if fine {
            return Ok(None);
        }
        file::replace(&to, AGENT, |file| {
            io::copy(&mut File::open(&self.from)?, file)?;
            file.set_permissions(Permissions::from_mode(0o755))?;
            if to.is_dir() {
                fs::remove_dir_all(&to)?;
            }
            Ok(())
        })?;
        Ok(Some(to))
    }
}

/// Shows whether a file was changed or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    mode: u32,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            inode: found.ino(),
            bytes: found.len(),
            mode: found.mode(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether it can be a program: a file with content that root may execute.
    fn runs(&self) -> bool {
        const KIND: u32 = 0o170_000;
        const REGULAR: u32 = 0o100_000;
        self.mode & KIND == REGULAR && self.mode & 0o111 != 0 && self.bytes > 0
    }
}

/// Keeps the plugins where the runtime looks for them: package upgrades and
/// cleaning scripts empty that folder.
#[derive(Debug)]
pub(crate) struct Keeper {
    plugins: Vec<Plugin>,
    folder: PathBuf,
    seen: HashMap<OsString, Stamp>,
}

impl Keeper {
    /// For the plugins of the image.
    pub(crate) fn new(folder: &Path) -> Self {
        Self::of(plugins(Path::new(VEER_CNI), Path::new(STANDARD)), folder)
    }

    fn of(plugins: Vec<Plugin>, folder: &Path) -> Self {
        Self {
            plugins,
            folder: folder.to_owned(),
            seen: HashMap::new(),
        }
    }

    /// Puts back what is missing or damaged and names it. Files that did not
    /// change since the last look are not read.
    pub(crate) fn look(&mut self) -> io::Result<Vec<String>> {
        let mut put = Vec::new();
        for plugin in &self.plugins {
            let to = self.folder.join(&plugin.name);
            let seen = self.seen.get(&plugin.name);
            let found = Stamp::of(&to);
            if found.is_some() && found.as_ref() == seen {
                continue;
            }
            let known = seen.is_some();
            if plugin.put(&self.folder)?.is_some() && known {
                let how = if found.is_none() {
                    "removed"
                } else {
                    "changed"
                };
                put.push(format!("plugin {} was {how}", plugin.name.display()));
            }
            if let Some(stamp) = Stamp::of(&to) {
                self.seen.insert(plugin.name.clone(), stamp);
            }
        }
        Ok(put)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image(tempfile::TempDir);

    impl Image {
        fn new() -> Self {
            let image = Self(tempfile::tempdir().unwrap());
            for name in ["veer-cni", "cni/portmap", "bin/veer-cni", "bin/portmap"] {
                let path = image.path(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                image.program(name, name);
            }
            image
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn program(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }

        fn keeper(&self) -> Keeper {
            let plugins = plugins(&self.path("veer-cni"), &self.path("cni"));
            Keeper::of(plugins, &self.path("bin"))
        }
    }

    #[test]
    fn an_older_plugin_is_replaced_and_a_foreign_one_left_alone() {
        let image = Image::new();
        let mut keeper = image.keeper();
        assert!(keeper.look().unwrap().is_empty(), "a start repairs nothing");
        assert_eq!(image.read("bin/veer-cni"), "veer-cni");
        assert_eq!(image.read("bin/portmap"), "bin/portmap");
        let mode = fs::metadata(image.path("bin/veer-cni"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
        assert!(keeper.look().unwrap().is_empty());
    }

    #[test]
    fn plugins_that_a_package_upgrade_removed_come_back_and_are_named() {
        let image = Image::new();
        let mut keeper = image.keeper();
        keeper.look().unwrap();
        for name in ["bin/veer-cni", "bin/portmap"] {
            fs::remove_file(image.path(name)).unwrap();
        }
        assert_eq!(
            keeper.look().unwrap(),
            ["plugin veer-cni was removed", "plugin portmap was removed"]
        );
        assert_eq!(image.read("bin/portmap"), "cni/portmap");
        assert!(keeper.look().unwrap().is_empty());
    }

    #[test]
    fn a_plugin_that_cannot_run_is_made_anew() {
        let image = Image::new();
        let mut keeper = image.keeper();
        keeper.look().unwrap();
        fs::set_permissions(image.path("bin/portmap"), fs::Permissions::from_mode(0o644)).unwrap();
        image.program("bin/veer-cni", "overwritten");
        assert_eq!(
            keeper.look().unwrap(),
            ["plugin veer-cni was changed", "plugin portmap was changed"]
        );
        assert_eq!(image.read("bin/veer-cni"), "veer-cni");
        fs::write(image.path("bin/portmap"), "").unwrap();
        assert_eq!(keeper.look().unwrap(), ["plugin portmap was changed"]);
    }
}
