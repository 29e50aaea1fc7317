//! Where things are, as the command line says it.

use std::{net::IpAddr, path::PathBuf};

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The node's name.
    pub(crate) node: String,
    /// The kubelet's idea of its address.
    pub(crate) node_ip: Option<IpAddr>,
    /// Folder of conflists.
    pub(crate) cni_conf_dir: PathBuf,
    /// Folder of CNI plugins.
    pub(crate) cni_bin_dir: PathBuf,
    /// Move configurations aside that the runtime takes before veer's.
    pub(crate) exclusive: bool,
    /// Folder of the results that the runtime's CNI library keeps.
    pub(crate) cni_results: PathBuf,
    /// Folder of the pods' network namespaces.
    pub(crate) netns: PathBuf,
    /// State folder.
    pub(crate) state: PathBuf,
    /// bpffs.
    pub(crate) bpffs: PathBuf,
    /// The node's cgroups.
    pub(crate) cgroups: PathBuf,
    /// Socket for veer-cni and the command.
    pub(crate) socket: PathBuf,
    /// A writable `/proc/sys/net` of the node.
    pub(crate) proc_sys_net: PathBuf,
}
