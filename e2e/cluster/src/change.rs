//! Changing a running cluster: nodes come, go, lose power, stand still, move;
//! single daemons end and start.

use std::{fs, net::Ipv4Addr, time::Duration};

use crate::{
    cgroup,
    cluster::{Cluster, SWITCH, WORLD, remove_dir},
    control,
    error::{Error, IoContext, Result},
    node,
    pki::Pki,
    state::{NodeInfo, Role, check_name},
    underlay,
    wait::await_condition,
};

impl Cluster {
    /// Adds a worker while the cluster runs.
    ///
    /// # Errors
    /// The name is taken or bad, or a step fails.
    pub fn add_node(&mut self, name: &str, role: Role) -> Result<()> {
        check_name(name)?;
        if self.state.nodes.iter().any(|n| n.name == name) || [SWITCH, WORLD].contains(&name) {
            return Err(Error::State(format!(
                "there is a {name} already; take another name"
            )));
        }
        let used: Vec<u8> = self.state.nodes.iter().map(|n| n.number).collect();
        let number = (1..=254).find(|n| !used.contains(n)).unwrap_or(255);
        let address = self.plan().link(number, false)?.address;
        let info = NodeInfo {
            name: name.to_owned(),
            role,
            number,
            address,
        };
        self.state.nodes.push(info.clone());
        self.state.save(&self.paths)?;
        self.join(&info)?;
        self.await_registered()
    }

    /// Removes a node: its object, its machine, its disk.
    ///
    /// # Errors
    /// It is the control plane's, or a step fails.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        self.worker(name)?;
        self.machine(name).stop()?;
        let dir = self.paths.machine(name);
        remove_dir(&dir)?;
        self.state.nodes.retain(|n| n.name != name);
        self.state.save(&self.paths)?;
        self.kubectl()
            .run(&["delete", "node", "--ignore-not-found", name])?;
        Ok(())
    }

    /// Ends all processes and namespaces of a node at once, as a power cut
    /// does, and starts it again from its disk.
    ///
    /// # Errors
    /// A step fails.
    pub fn reboot_node(&self, name: &str) -> Result<()> {
        let info = self.state.node(name)?.clone();
        self.machine(name).stop()?;
        if info.role == Role::ControlPlane {
            self.start_machine(&info)?;
            self.start_control_plane()?;
        }
        self.join(&info)?;
        if info.role == Role::Light {
            Ok(())
        } else {
            self.await_boot(name)
        }
    }

    /// Waits until the API knows of the node's newest start: until then what
    /// it says of the node's readiness is of the time before.
    fn await_boot(&self, name: &str) -> Result<()> {
        let path = self.machine(name).disk().join("boot_id");
        let boot = fs::read_to_string(&path).what(|| format!("read {}", path.display()))?;
        await_condition(
            &format!("{name} reports its start"),
            Duration::from_mins(1),
            || {
                let seen = self
                    .kubectl()
                    .json(&["get", "node", name])
                    .map_err(|e| e.to_string())?;
                let seen = seen["status"]["nodeInfo"]["bootID"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                if seen == boot.trim() {
                    Ok(Some(()))
                } else {
                    Err(format!("bootID {seen}"))
                }
            },
        )
    }

    /// Stops every process of a node, pods' included, where it is.
    ///
    /// # Errors
    /// The cluster has no such node, or the control group refuses.
    pub fn pause_node(&self, name: &str) -> Result<()> {
        self.node(name)?.freeze(true)
    }

    /// Lets a paused node go on.
    ///
    /// # Errors
    /// As [`Cluster::pause_node`].
    pub fn resume_node(&self, name: &str) -> Result<()> {
        self.node(name)?.freeze(false)
    }

    /// Gives a worker another address on its link while it runs, in each family;
    /// the kubelet is restarted with it, as an administrator would. Returns the
    /// IPv4 one.
    ///
    /// # Errors
    /// It is the control plane's node, the cluster has no IPv4, or a step fails.
    pub fn readdress_node(&mut self, name: &str) -> Result<Ipv4Addr> {
        self.address(name)?;
        let mut info = self.worker(name)?;
        let machine = self.machine(name);
        let plan = self.plan();
        let new = underlay::spare_address(plan, &info)?;
        self.stop_process(name, "kubelet")?;
        underlay::readdress(plan, &self.state.config, &machine, &info, new)?;
        info.address = new;
        self.start_kubelet_at(&info)?;
        Ok(new)
    }

    /// Restarts a worker's kubelet with another address that the node has, whatever
    /// link that is on, and with the IPv6 one beside it where the cluster has IPv6.
    ///
    /// # Errors
    /// It is the control plane's node, the cluster has no IPv4, or a step fails.
    pub fn announce_address(&mut self, name: &str, address: Ipv4Addr) -> Result<()> {
        self.address(name)?;
        let mut info = self.worker(name)?;
        self.stop_process(name, "kubelet")?;
        info.address = address;
        self.start_kubelet_at(&info)
    }

    /// Records a node's new address and starts its kubelet with it.
    fn start_kubelet_at(&mut self, info: &NodeInfo) -> Result<()> {
        for node in &mut self.state.nodes {
            if node.name == info.name {
                node.address = info.address;
            }
        }
        self.state.save(&self.paths)?;
        let machine = self.machine(&info.name);
        let pki = Pki::at(self.paths.pki());
        node::write_kubelet_certificate(&pki, &self.state.config, &machine, info)?;
        node::start_kubelet(&machine, info, &self.state.config)
    }

    /// Ends a daemon of a node (kubelet, kube-proxy, containerd, or one of
    /// [`control::COMPONENTS`] on the first) by SIGKILL and waits for it.
    ///
    /// # Errors
    /// It outlives that.
    pub fn stop_process(&self, node: &str, name: &str) -> Result<()> {
        let machine = self.node(node)?;
        await_condition(
            &format!("{name} on {node} has ended"),
            Duration::from_secs(20),
            || {
                let pids = machine.pids_of(name).map_err(|e| e.to_string())?;
                for pid in &pids {
                    cgroup::kill_one(*pid);
                }
                if pids.is_empty() {
                    Ok(Some(()))
                } else {
                    Err(format!("processes {pids:?}"))
                }
            },
        )
    }

    /// Starts a daemon that [`Cluster::stop_process`] ended.
    ///
    /// # Errors
    /// The name is none of a daemon.
    pub fn start_process(&self, node: &str, name: &str) -> Result<()> {
        let info = self.state.node(node)?;
        let machine = self.node(node)?;
        match name {
            "kubelet" => node::start_kubelet(&machine, info, &self.state.config),
            "kube-proxy" => node::start_proxy(&machine, info, &self.state.config),
            "containerd" => node::start_containerd(&machine),
            _ if control::COMPONENTS.contains(&name) => {
                control::start(&machine, name, info.address, self.families())?;
                if name == "kube-apiserver" {
                    control::await_ready(&self.kubectl(), &machine)?;
                }
                Ok(())
            }
            _ => Err(Error::State(format!("{name} is no daemon of a node"))),
        }
    }

    fn worker(&self, name: &str) -> Result<NodeInfo> {
        let info = self.state.node(name)?.clone();
        if info.role == Role::ControlPlane {
            return Err(Error::State(format!(
                "{name} runs the control plane: take a worker for this"
            )));
        }
        Ok(info)
    }
}
