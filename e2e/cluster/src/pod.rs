//! A pod as seen from below: its node, its network namespace, the host side
//! of its veth.

use std::{net::IpAddr, process::Command};

use serde_json::Value;

use crate::{
    cluster::Cluster,
    decode::Mac,
    error::{Error, Result},
    machine::Machine,
    run::{Output, run},
};

/// A running pod.
#[derive(Debug, Clone)]
pub struct Pod {
    namespace: String,
    name: String,
    uid: String,
    addresses: Vec<IpAddr>,
    machine: Machine,
    /// A process in the pod's network namespace.
    process: u32,
}

/// One end of a veth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// The index of its peer, in the peer's namespace.
    pub peer: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Cluster {
    /// Finds a running pod on its node.
    ///
    /// # Errors
    /// There is none, or it has no address or no process yet.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let pod = self
            .kubectl()
            .json(&["-n", namespace, "get", "pod", name])?;
        let text = |pointer: &str| {
            pod.pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| {
                    Error::State(format!(
                        "pod {namespace}/{name} has no {pointer}: it does not run"
                    ))
                })
        };
        let uid = text("/metadata/uid")?;
        let node = text("/spec/nodeName")?;
        // All of them, the primary family's first.
        let listed = pod.pointer("/status/podIPs").and_then(Value::as_array);
        let addresses: Vec<IpAddr> = listed
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
            .collect();
        if addresses.is_empty() {
            return Err(Error::State(format!(
                "pod {namespace}/{name} has no address: it does not run"
            )));
        }
        let machine = self.node(&node)?;
        let process = machine.process_of_pod(&uid)?;
        Ok(Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid,
            addresses,
            machine,
            process,
        })
    }
}

impl Pod {
    /// Its namespace in Kubernetes.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its addresses, the primary family's first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its node.
    pub fn node(&self) -> &Machine {
        &self.machine
    }

    /// A command of the harness's file system in the pod's network.
    pub fn network_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            &format!("--net=/proc/{}/ns/net", self.process),
            "--",
            program,
        ]);
        command
    }

    /// Runs a command of the harness's in the pod's network: at the cost of
    /// a process, where `kubectl exec` costs a tenth of a second.
    ///
    /// # Errors
    /// The command fails.
    pub fn exec(&self, words: &[&str]) -> Result<Output> {
        let (program, args) = words
            .split_first()
            .ok_or_else(|| Error::State("an empty command".to_owned()))?;
        run(self.network_command(program).args(args))
    }

    /// The pod's own eth0.
    ///
    /// # Errors
    /// It has none.
    pub fn eth0(&self) -> Result<Device> {
        let out = self.exec(&["ip", "-j", "link", "show", "eth0"])?;
        devices(&out.stdout)?
            .pop()
            .ok_or_else(|| Error::State(format!("{} has no eth0", self.name)))
    }

    /// The other end of the pod's eth0, on the node.
    ///
    /// # Errors
    /// There is none.
    pub fn host_device(&self) -> Result<Device> {
        let eth0 = self.eth0()?;
        let out = run(self.machine.network_command("ip")?.args(["-j", "link"]))?;
        devices(&out.stdout)?
            .into_iter()
            .find(|device| device.index == eth0.peer && device.peer == eth0.index)
            .ok_or_else(|| Error::State(format!("no device is the peer of {}'s eth0", self.name)))
    }
}

/// Devices in what `ip -j link` prints.
fn devices(json: &str) -> Result<Vec<Device>> {
    let list: Vec<Value> = serde_json::from_str(json).map_err(|source| Error::Json {
        what: "ip -j link".to_owned(),
        source,
    })?;
    let number = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
    };
    Ok(list
        .iter()
        .filter_map(|value| {
            Some(Device {
                name: value.get("ifname")?.as_str()?.to_owned(),
                index: number(value, "ifindex")?,
                peer: number(value, "link_index").unwrap_or_default(),
                mac: value.get("address")?.as_str()?.parse().ok()?,
                mtu: number(value, "mtu")?,
            })
        })
        .collect())
}
