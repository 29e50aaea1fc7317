//! ADD: has the agent wire a sandbox and prints what it did.

use veer_agent_api::{Add, Added, Request};

use crate::agent;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::Error;
use crate::result::AddResult;

/// Wires the sandbox.
pub(super) fn run(environment: &Environment, config: &Config) -> Result<String, Error> {
    let attachment = environment.attachment()?;
    let netns = environment.required_netns()?;
    let pod = environment.required_pod()?;
    if config.prev_result.is_some() {
        return Err(Error::InvalidConfig(
            "veer-cni makes the pod's interface and must be the first plugin of the list",
        ));
    }
    let subject = environment.subject();
    let host_ports = config.host_ports();
    let host_ports = host_ports.map_err(|problem| Error::HostPorts {
        pod: subject.clone(),
        problem: problem.0,
    })?;
    let path = super::resolve_netns(config, netns, environment)?;
    let ifname = attachment.ifname.clone();
    let request = Request::Add(Add {
        attachment,
        netns: path,
        pod_namespace: pod.namespace,
        pod_name: pod.name,
        pod_uid: pod.uid,
        host_ports,
    });
    let added: Added = agent::ask(config, &request, &subject, super::LONG)?;
    // The runtime gets back the path that it gave.
    let result = AddResult::new(&config.cni_version, &ifname, netns, added);
    serde_json::to_string(&result).map_err(Error::Encode)
}
