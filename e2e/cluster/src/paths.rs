//! Where things are: the cache of built programs and images, and the state of
//! each cluster.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Root of all clusters' state. Not configurable on purpose: what sweeps must
/// look where what was swept wrote.
pub const STATE_ROOT: &str = "/var/lib/veer-e2e";

/// The user's cache folder of the project: `$VEER_CACHE`, else
/// `$HOME/.cache/veer`.
pub fn cache() -> PathBuf {
    env::var_os("VEER_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/veer"),
        PathBuf::from,
    )
}

/// Programs built by `make setup`, kubectl and helm among them.
pub fn programs() -> PathBuf {
    cache().join("bin")
}

/// Image archives built by `e2e/images/build`, and the pause program.
pub fn images() -> PathBuf {
    cache().join("images")
}

/// Where a failed test leaves its captures: `$VEER_E2E_OUT`, else a folder
/// of the machine's temporary ones.
pub fn output() -> PathBuf {
    env::var_os("VEER_E2E_OUT")
        .map_or_else(|| env::temp_dir().join("veer-e2e-output"), PathBuf::from)
}

/// The search path of everything the harness starts.
pub(crate) fn search_path() -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs().display()
    )
}

/// The files of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    cluster: String,
    root: PathBuf,
}

impl Paths {
    pub(crate) fn of(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            root: Path::new(STATE_ROOT).join(cluster),
        }
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    pub(crate) fn machine(&self, name: &str) -> PathBuf {
        self.root.join("machines").join(name)
    }
}
