//! Errors of the plugin, and their JSON for the runtime.
//!
//! The kubelet puts `msg` into the pod's events, so it is one line that says
//! which pod, what is wrong and what to do.

use std::io;
use std::path::PathBuf;

use serde::Serialize;
use veer_agent_api::{CONF_DIR, CONFLIST, Failure, code};

use crate::{portmap, version};

/// Codes of the CNI specification that only the plugin itself uses.
mod plugin_code {
    /// The configuration's CNI version is not spoken.
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    /// Input or output failed.
    pub(super) const IO: u32 = 5;
}

/// Anything that keeps a verb from succeeding.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A variable that the verb needs is not set.
    #[error(
        "{variable} is not set: veer-cni is started by the container runtime; by hand, set the \
         variables of the CNI specification"
    )]
    MissingVariable {
        /// Its name.
        variable: &'static str,
    },
    /// A variable has a value that cannot be.
    #[error("{variable} is {value:?}: {problem}")]
    InvalidVariable {
        /// Its name.
        variable: &'static str,
        /// What it is.
        value: String,
        /// Why that cannot be, and what it should be.
        problem: &'static str,
    },
    /// The pod's network namespace is not there.
    #[error(
        "{pod}: CNI_NETNS {netns} cannot be opened: the sandbox is gone or the runtime passed a \
         wrong path; the kubelet makes a new sandbox by itself"
    )]
    NoNetns {
        /// `namespace/name` of the pod.
        pod: String,
        /// The path.
        netns: String,
        /// Why.
        source: io::Error,
    },
    /// The pod's network namespace is where the agent does not see it.
    #[error(
        "{pod}: CNI_NETNS {netns} is not below /run/netns: veer wires sandboxes of containerd and \
         CRI-O, which name their namespaces there; a namespace of a process, as cri-dockerd \
         passes it, cannot be wired"
    )]
    UnnamedNetns {
        /// `namespace/name` of the pod.
        pod: String,
        /// The path.
        netns: String,
    },
    /// Standard input cannot be read.
    #[error("the network configuration cannot be read from standard input")]
    ReadConfig(#[source] io::Error),
    /// Standard input goes on and on.
    #[error(
        "the network configuration on standard input is longer than {limit} bytes: check the \
         files in {CONF_DIR}"
    )]
    OversizedConfig {
        /// The most that is read.
        limit: usize,
    },
    /// Standard input is not a network configuration.
    #[error(
        "the network configuration on standard input is not valid JSON of its kind: check \
         {CONF_DIR}/{CONFLIST}, or delete the file, the agent writes it again"
    )]
    DecodeConfig(#[source] serde_json::Error),
    /// The network configuration says something that cannot be.
    #[error("network configuration: {0}")]
    InvalidConfig(&'static str),
    /// A pod's hostPorts are not to be had.
    #[error("{pod}: {problem}")]
    HostPorts {
        /// `namespace/name` of the pod.
        pod: String,
        /// The port, and why it cannot be served.
        problem: String,
    },
    /// The rules of the plugin portmap for a pod cannot be removed.
    #[error(
        "the plugin portmap, which made the hostPorts of sandbox {container}, does not remove \
         them: {problem}"
    )]
    Portmap {
        /// The sandbox.
        container: String,
        /// The cause.
        problem: portmap::Failed,
    },
    /// A CNI version that is not spoken.
    #[error(
        "cniVersion {version:?} is not spoken by veer-cni {}: use one of {}",
        env!("CARGO_PKG_VERSION"),
        version::SUPPORTED.join(", ")
    )]
    IncompatibleVersion {
        /// The configuration's.
        version: String,
    },
    /// A verb that the configuration's CNI version does not have.
    #[error(
        "{verb} came with CNI {since}, but the network configuration says cniVersion {version}"
    )]
    VerbOfLaterVersion {
        /// The verb.
        verb: &'static str,
        /// The version that has it.
        since: &'static str,
        /// The configuration's.
        version: String,
    },
    /// The agent's socket does not answer.
    #[error(
        "{subject}: veer-agent on this node does not answer on {}: kubectl -n kube-system get \
         pods -l app.kubernetes.io/name=veer-agent -o wide", socket.display()
    )]
    AgentAbsent {
        /// The pod, or the verb.
        subject: String,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent answered with something else than an answer.
    #[error(
        "{subject}: the answer of veer-agent is not understood: plugin and agent may differ in \
         version; kubectl -n kube-system rollout restart daemonset veer-agent installs the \
         agent's plugin"
    )]
    DecodeAnswer {
        /// The pod, or the verb.
        subject: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The agent says why not.
    #[error("{}", .0.msg)]
    Refused(Failure),
    /// A DEL could be neither done nor kept for later.
    #[error(
        "veer-agent does not answer and the DEL cannot be kept in {}: make room on the disk or \
         make the directory writable; the kubelet tries again", path.display()
    )]
    Queue {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A value that cannot be written as JSON.
    #[error("the result cannot be written as JSON: please report this as a bug")]
    Encode(#[source] serde_json::Error),
}

impl Error {
    /// The code of the CNI specification.
    fn code(&self) -> u32 {
        match self {
            Self::MissingVariable { .. }
            | Self::InvalidVariable { .. }
            | Self::NoNetns { .. }
            | Self::UnnamedNetns { .. } => code::INVALID_ENVIRONMENT,
            Self::ReadConfig(_) | Self::Queue { .. } => plugin_code::IO,
            Self::DecodeConfig(_) | Self::DecodeAnswer { .. } => code::DECODE,
            Self::OversizedConfig { .. } | Self::InvalidConfig(_) | Self::HostPorts { .. } => {
                code::INVALID_CONFIG
            }
            Self::IncompatibleVersion { .. } | Self::VerbOfLaterVersion { .. } => {
                plugin_code::INCOMPATIBLE_VERSION
            }
            Self::AgentAbsent { .. } => code::TRY_AGAIN,
            Self::Refused(failure) => failure.code,
            Self::Encode(_) | Self::Portmap { .. } => code::INTERNAL,
        }
    }

    /// More than `msg` says: the chain of sources, or what the agent added.
    fn details(&self) -> String {
        if let Self::Refused(failure) = self {
            return failure.details.clone();
        }
        let mut chain = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            chain.push(error.to_string());
            source = error.source();
        }
        chain.join(": ")
    }
}

/// An error as the CNI specification wants it printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorObject<'a> {
    cni_version: &'a str,
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}

impl<'a> ErrorObject<'a> {
    /// Reports `error` in the shape of `cni_version`.
    pub(crate) fn new(error: &Error, cni_version: &'a str) -> Self {
        Self {
            cni_version,
            code: error.code(),
            msg: error.to_string(),
            details: error.details(),
        }
    }

    /// The JSON to print. Strings and a number always encode; the fallback keeps
    /// the code all the same.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|_| format!(r#"{{"code":{},"msg":"veer-cni failed"}}"#, self.code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_line_and_the_cause_is_in_the_details() {
        let error = Error::AgentAbsent {
            subject: "shop/cart-0".to_owned(),
            socket: "/run/veer/agent.sock".into(),
            source: io::Error::from(io::ErrorKind::ConnectionRefused),
        };
        let report = ErrorObject::new(&error, "1.0.0");
        assert_eq!(report.code, code::TRY_AGAIN);
        assert_eq!(
            report.msg,
            "shop/cart-0: veer-agent on this node does not answer on /run/veer/agent.sock: kubectl \
             -n kube-system get pods -l app.kubernetes.io/name=veer-agent -o wide"
        );
        assert_eq!(report.details, "connection refused");
    }

    #[test]
    fn refusal_of_the_agent_is_passed_on_as_it_is() {
        let error = Error::Refused(Failure {
            code: code::TRY_AGAIN,
            msg: "shop/cart-0: no pod CIDR yet".to_owned(),
            details: "NodeNetwork a".to_owned(),
        });
        let json: serde_json::Value =
            serde_json::from_str(&ErrorObject::new(&error, "1.1.0").to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "cniVersion": "1.1.0",
                "code": code::TRY_AGAIN,
                "msg": "shop/cart-0: no pod CIDR yet",
                "details": "NodeNetwork a",
            })
        );
    }
}
