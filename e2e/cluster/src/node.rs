//! What a Kubernetes node runs: containerd, kubelet, kube-proxy, each with
//! the node's own directories, and the kubelet with a client certificate of
//! its own.

use std::{fs, iter, net::Ipv4Addr, path::Path, time::Duration};

use crate::{
    control::server,
    error::{IoContext, Result},
    machine::Machine,
    paths,
    pki::Pki,
    state::{Config, NodeInfo, ProxyMode, Role, State},
    wait::await_condition,
};

/// The sandbox's image, from `e2e/images/build`.
const SANDBOX_IMAGE: &str = "registry.k8s.io/pause:3.10.1";
/// Standard plugins that a node has, as distributions ship them.
const PLUGINS: [&str; 4] = ["loopback", "portmap", "bridge", "host-local"];
/// Where Debian has them.
const PLUGINS_FROM: &str = "/usr/lib/cni";
/// containerd's socket, as the node sees it.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The names every node resolves by its hosts file.
pub(crate) fn write_names(state: &State, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).what(|| format!("make {}", dir.display()))?;
    let families = state.config.families;
    let nodes = state.nodes.iter().flat_map(|node| {
        let addresses = families.planned(node.address).into_iter();
        addresses.map(|address| format!("{address} {}\n", node.name))
    });
    let hosts: String = iter::once("127.0.0.1 localhost\n::1 localhost\n".to_owned())
        .chain(nodes)
        .collect();
    write(&dir.join("hosts"), &hosts)?;
    // The world: nobody answers there unless a test puts a server up, and the
    // refusal is immediate.
    write(
        &dir.join("resolv.conf"),
        &format!("nameserver {}\n", families.primary().outside()),
    )
}

/// Writes everything the node's daemons read to its disk.
pub(crate) fn prepare(
    pki: &Pki,
    config: &Config,
    api: Ipv4Addr,
    node: &Machine,
    info: &NodeInfo,
) -> Result<()> {
    let dir = node.disk().join("kubernetes");
    let plugins = node.disk().join("opt/cni/bin");
    fs::create_dir_all(&plugins).what(|| format!("make {}", plugins.display()))?;
    for plugin in PLUGINS {
        let from = Path::new(PLUGINS_FROM).join(plugin);
        fs::copy(&from, plugins.join(plugin)).what(|| {
            format!(
                "copy {} (package containernetworking-plugins)",
                from.display()
            )
        })?;
    }
    let user = format!("system:node:{}", info.name);
    let server = server(config.families.primary().planned(api));
    pki.kubeconfig(
        &dir.join("kubelet.conf"),
        &server,
        &user,
        Some("system:nodes"),
    )?;
    if info.role == Role::Light {
        return Ok(());
    }
    for sub in ["pki", "manifests"] {
        let sub = dir.join(sub);
        fs::create_dir_all(&sub).what(|| format!("make {}", sub.display()))?;
    }
    write(&dir.join("pki/ca.crt"), &pki.authority()?)?;
    write_kubelet_certificate(pki, config, node, info)?;
    pki.kubeconfig(
        &dir.join("kube-proxy.conf"),
        &server,
        "system:kube-proxy",
        None,
    )?;
    write(&dir.join("containerd.toml"), &containerd_config())?;
    write(&dir.join("kubelet.yaml"), &kubelet_config(config, node))
}

/// The certificate that the kubelet serves with carries its addresses.
pub(crate) fn write_kubelet_certificate(
    pki: &Pki,
    config: &Config,
    node: &Machine,
    info: &NodeInfo,
) -> Result<()> {
    let user = format!("system:node:{}", info.name);
    pki.issue_to(
        &node.disk().join("kubernetes/pki"),
        "kubelet",
        &user,
        Some("system:nodes"),
        &config.families.planned(info.address),
        &[&info.name],
    )
}

/// Starts containerd and waits for its socket.
pub(crate) fn start_containerd(node: &Machine) -> Result<()> {
    node.daemon(
        "containerd",
        &["containerd", "--config", "/etc/kubernetes/containerd.toml"],
    )?;
    let what = format!("containerd of {} answers", node.name());
    await_condition(&what, Duration::from_mins(1), || {
        if !node.has(Path::new(CONTAINERD)) {
            return Err(format!("no socket; log: {}", node.log_tail("containerd")));
        }
        let answer = node.exec(&["ctr", "version"]);
        answer.map(|_| Some(())).map_err(|e| e.to_string())
    })
}

/// Imports an image archive. The archive is read by the harness and handed
/// over, since the node does not see the harness's directories.
pub(crate) fn import_image(node: &Machine, archive: &Path) -> Result<()> {
    let file = fs::File::open(archive).what(|| format!("open {}", archive.display()))?;
    let mut command = node.command("ctr")?;
    command
        .args(["-n", "k8s.io", "image", "import", "-"])
        .stdin(file);
    let out = command.output().what(|| "start ctr".to_owned())?;
    if out.status.success() {
        return Ok(());
    }
    Err(crate::error::Error::Command {
        command: format!("ctr image import {} on {}", archive.display(), node.name()),
        status: out.status,
        output: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}

/// Starts the kubelet.
pub(crate) fn start_kubelet(node: &Machine, info: &NodeInfo, config: &Config) -> Result<()> {
    let program = paths::programs().join("kubelet").display().to_string();
    let name = format!("--hostname-override={}", info.name);
    let address = format!(
        "--node-ip={}",
        config
            .families
            .list(|f| f.planned(info.address).to_string())
    );
    let mut words = vec![
        program.as_str(),
        "--config=/etc/kubernetes/kubelet.yaml",
        "--kubeconfig=/etc/kubernetes/kubelet.conf",
        &name,
        &address,
    ];
    if info.role == Role::ControlPlane {
        words.push("--register-with-taints=node-role.kubernetes.io/control-plane=:NoSchedule");
    }
    let labels = config
        .zone(info.number)
        .map(|zone| format!("--node-labels=topology.kubernetes.io/zone={zone}"));
    words.extend(labels.as_deref());
    node.daemon("kubelet", &words)
}

/// Starts kube-proxy, unless the cluster goes without.
pub(crate) fn start_proxy(node: &Machine, info: &NodeInfo, config: &Config) -> Result<()> {
    let mode = match config.proxy_mode {
        ProxyMode::Nftables => "nftables",
        ProxyMode::Iptables => "iptables",
        ProxyMode::None => return Ok(()),
    };
    let program = paths::programs().join("kube-proxy").display().to_string();
    let (local, which) = match &config.pod_devices {
        None => {
            let pods = config.families.list(|f| f.pod_cidr().to_owned());
            ("ClusterCIDR", format!("--cluster-cidr={pods}"))
        }
        Some(prefix) => (
            "InterfaceNamePrefix",
            format!("--pod-interface-name-prefix={prefix}"),
        ),
    };
    node.daemon(
        "kube-proxy",
        &[
            &program,
            "--kubeconfig=/etc/kubernetes/kube-proxy.conf",
            &format!("--proxy-mode={mode}"),
            &format!("--hostname-override={}", info.name),
            &format!("--detect-local-mode={local}"),
            &which,
            // The limit belongs to the whole machine.
            "--conntrack-max-per-core=0",
        ],
    )
}

fn containerd_config() -> String {
    // restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE (a container
    // or a small VM) may not lower the score, and runc then fails.
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX_IMAGE}"
restrict_oom_score_adj = true
max_concurrent_downloads = 1
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

fn kubelet_config(config: &Config, node: &Machine) -> String {
    let cluster = &config.name;
    let dns = config.families.primary().dns_service();
    let root = node.cgroup().kubelet_root();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\n\
         kind: KubeletConfiguration\n\
         authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, \
         x509: {{clientCAFile: /etc/kubernetes/pki/ca.crt}}}}\n\
         authorization: {{mode: Webhook}}\n\
         tlsCertFile: /etc/kubernetes/pki/kubelet.crt\n\
         tlsPrivateKeyFile: /etc/kubernetes/pki/kubelet.key\n\
         cgroupDriver: cgroupfs\n\
         cgroupRoot: {root}\n\
         enforceNodeAllocatable: []\n\
         failSwapOn: false\n\
         containerRuntimeEndpoint: unix://{CONTAINERD}\n\
         staticPodPath: /etc/kubernetes/manifests\n\
         clusterDNS: [\"{dns}\"]\n\
         clusterDomain: cluster.local\n\
         resolvConf: \"\"\n\
         maxPods: 400\n\
         serializeImagePulls: false\n\
         imageGCHighThresholdPercent: 100\n\
         evictionHard: {{memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, \
         imagefs.available: 0%, imagefs.inodesFree: 0%}}\n\
         kubeAPIQPS: 100\n\
         kubeAPIBurst: 200\n\
         eventRecordQPS: 0\n\
         # Whoever ends a container a hundred times is not kept waiting for minutes.\n\
         featureGates: {{KubeletCrashLoopBackOffMax: true}}\n\
         crashLoopBackOff: {{maxContainerRestartPeriod: 1s}}\n\
         # of cluster {cluster}\n"
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).what(|| format!("write {}", path.display()))
}
