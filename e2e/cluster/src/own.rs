//! Clusters that live no longer than the process that made them: their names say
//! which that was.

use std::{fs, path::Path, process};

use crate::{
    Cluster,
    error::{IoContext, Result},
    paths::Paths,
};

/// File in a cluster's folder: it stays after its process.
const KEPT: &str = "kept";

/// Name of a cluster of this process: the kind, lower-case letters, and the process's
/// number.
pub fn own_name(kind: &str) -> String {
    format!("{kind}{}", process::id())
}

/// Whether a name is that of a cluster of this kind whose process is gone.
fn is_abandoned(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind)
        .and_then(|number| number.parse::<u32>().ok())
        .is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
}

impl Cluster {
    /// Removes the clusters of this kind whose processes were killed, unless they are
    /// to stay.
    ///
    /// # Errors
    /// Something of one could not be removed.
    pub fn remove_abandoned(kind: &str) -> Result<()> {
        for name in Self::all()? {
            if is_abandoned(&name, kind) && !Paths::of(&name).root().join(KEPT).exists() {
                Self::down_by_name(&name)?;
            }
        }
        Ok(())
    }

    /// Lets a cluster stay when this process ends.
    ///
    /// # Errors
    /// Its folder cannot be written.
    pub fn keep(name: &str) -> Result<()> {
        let file = Paths::of(name).root().join(KEPT);
        fs::write(&file, "").what(|| format!("write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cluster_of_its_kind_whose_process_is_gone_is_abandoned() {
        // More than the kernel has.
        let gone = u32::MAX;
        assert!(is_abandoned(&format!("e2e{gone}"), "e2e"));
        assert!(!is_abandoned(&own_name("e2e"), "e2e"));
        for other in [
            format!("conf{gone}"),
            "demo".into(),
            "e2e".into(),
            "e2ex1".into(),
        ] {
            assert!(!is_abandoned(&other, "e2e"), "{other}");
        }
    }
}
