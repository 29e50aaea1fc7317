//! The control plane, run inside the first node: etcd, API server, controller
//! manager and scheduler, configured as kubeadm would as far as it matters to
//! a pod network.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::{
    error::Result,
    family::Families,
    kubectl::Kubectl,
    machine::Machine,
    paths,
    pki::{Pki, write_secret},
    wait::await_condition,
};

/// Pods' addresses. veer divides it; the controller manager does not.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Services' addresses.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The API server's service address, the first of [`SERVICE_CIDR`].
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The DNS service's address.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// Where the control plane's secrets are, as it sees them.
const PKI: &str = "/etc/kubernetes/pki";

/// How long the API server may take to start. Where tests carry load of both families by
/// real-time processes on two CPUs, ninety seconds were not enough.
const START: Duration = Duration::from_mins(4);

/// The components that run beside the kubelet on the first node, in the order
/// in which they start.
pub const COMPONENTS: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

/// The API server's address for everyone.
pub(crate) fn server(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, API_PORT))
}

/// Writes the secrets of the control plane to the first node's disk.
pub(crate) fn prepare(
    pki: &Pki,
    node: &Machine,
    address: Ipv4Addr,
    families: Families,
) -> Result<()> {
    let dir = node.disk().join("kubernetes/pki");
    for file in ["ca.crt", "ca.key", "sa.key", "sa.pub"] {
        let text =
            std::fs::read_to_string(pki.path(file)).map_err(|source| crate::error::Error::Io {
                what: format!("read {file} of the authority"),
                source,
            })?;
        write_secret(&dir.join(file), &text)?;
    }
    let addresses: Vec<IpAddr> = families
        .all()
        .iter()
        .flat_map(|f| [f.planned(address), f.api_service(), f.localhost()])
        .collect();
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    pki.issue_to(
        &dir,
        "apiserver",
        "kube-apiserver",
        None,
        &addresses,
        &names,
    )?;
    pki.issue_to(
        &dir,
        "apiserver-kubelet-client",
        "kube-apiserver-kubelet-client",
        Some("system:masters"),
        &[],
        &[],
    )?;
    for component in ["kube-controller-manager", "kube-scheduler"] {
        let path = node.disk().join(format!("kubernetes/{component}.conf"));
        pki.kubeconfig(
            &path,
            &server(families.primary().planned(address)),
            &format!("system:{component}"),
            None,
        )?;
    }
    Ok(())
}

/// Starts one component.
pub(crate) fn start(
    node: &Machine,
    component: &str,
    address: Ipv4Addr,
    families: Families,
) -> Result<()> {
    let mut words = vec![paths::programs().join(component).display().to_string()];
    words.extend(arguments(component, address, families));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    node.daemon(component, &words)
}

fn arguments(component: &str, address: Ipv4Addr, families: Families) -> Vec<String> {
    let services = format!(
        "--service-cluster-ip-range={}",
        families.list(|f| f.service_cidr().to_owned())
    );
    let conf = format!("/etc/kubernetes/{component}.conf");
    let mut args: Vec<String> = match component {
        // Written without waiting for the disk: a test cluster's store need
        // not outlive a power cut.
        "etcd" => vec![
            "--data-dir=/var/lib/etcd".into(),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
        ],
        "kube-apiserver" => vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!(
                "--advertise-address={}",
                families.primary().planned(address)
            ),
            format!("--secure-port={API_PORT}"),
            services.clone(),
            format!("--client-ca-file={PKI}/ca.crt"),
            format!("--tls-cert-file={PKI}/apiserver.crt"),
            format!("--tls-private-key-file={PKI}/apiserver.key"),
            format!("--kubelet-certificate-authority={PKI}/ca.crt"),
            format!("--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt"),
            format!("--kubelet-client-key={PKI}/apiserver-kubelet-client.key"),
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={PKI}/sa.pub"),
            format!("--service-account-signing-key-file={PKI}/sa.key"),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
            "--profiling=false".into(),
        ],
        "kube-controller-manager" => vec![
            format!("--kubeconfig={conf}"),
            format!("--authentication-kubeconfig={conf}"),
            format!("--authorization-kubeconfig={conf}"),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
            "--use-service-account-credentials=true".into(),
            "--allocate-node-cidrs=false".into(),
            format!("--service-account-private-key-file={PKI}/sa.key"),
            format!("--root-ca-file={PKI}/ca.crt"),
            format!("--cluster-signing-cert-file={PKI}/ca.crt"),
            format!("--cluster-signing-key-file={PKI}/ca.key"),
        ],
        _ => vec![
            format!("--kubeconfig={conf}"),
            format!("--authentication-kubeconfig={conf}"),
            format!("--authorization-kubeconfig={conf}"),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
        ],
    };
    if component == "kube-controller-manager" && !families.is_default() {
        args.push(services);
    }
    args
}

/// Waits until the API server answers and its bootstrap roles exist.
pub(crate) fn await_ready(kubectl: &Kubectl, node: &Machine) -> Result<()> {
    await_condition("the API server is ready", START, || {
        if node
            .pids_of("kube-apiserver")
            .map_err(|e| e.to_string())?
            .is_empty()
        {
            return Err(format!(
                "it does not run; log: {}",
                node.log_tail("kube-apiserver")
            ));
        }
        match kubectl.any(&["get", "--raw", "/readyz", "--request-timeout=5s"]) {
            Ok(out) if out.code == 0 => Ok(Some(())),
            Ok(out) => Err(out.stderr.lines().last().unwrap_or_default().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_knows_the_services_of_each_family_the_primary_ones_first() {
        let address = Ipv4Addr::new(172, 30, 0, 11);
        let has = |component, families, wanted: &str| {
            arguments(component, address, families)
                .iter()
                .any(|a| a == wanted)
        };
        let server = "kube-apiserver";
        assert!(has(
            server,
            Families::V4,
            "--service-cluster-ip-range=10.96.0.0/16"
        ));
        let both = "--service-cluster-ip-range=fd00:10:96::/112,10.96.0.0/16";
        for component in [server, "kube-controller-manager"] {
            assert!(has(component, Families::V6V4, both), "{component}");
        }
        // The server's own service has an address of the primary family, and
        // what it leads to has to be of the same.
        for (families, wanted) in [
            (Families::V4V6, "--advertise-address=172.30.0.11"),
            (Families::V6V4, "--advertise-address=fd76:6565:7200::ac1e:b"),
        ] {
            assert!(has(server, families, wanted), "{families:?}");
        }
        let manager = arguments("kube-controller-manager", address, Families::V4);
        assert!(!manager.iter().any(|a| a.starts_with("--service-cluster")));
    }
}
