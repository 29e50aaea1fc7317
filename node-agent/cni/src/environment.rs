//! The CNI environment variables, checked.
//!
//! Input: a look-up of variables (the process's own, or a test's). Container ids
//! and interface names are checked here because they become file and device
//! names.

use veer_agent_api::Attachment;

use crate::error::Error;

/// Longest name of a network device, in bytes (`IFNAMSIZ` less the final zero).
const MAX_IFNAME: usize = 15;
/// Longest container id taken, in bytes: it becomes part of a file name.
const MAX_CONTAINER_ID: usize = 200;

/// The command of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Wire a sandbox.
    Add,
    /// Unwire it.
    Del,
    /// Look whether it is wired.
    Check,
    /// Unwire all but the named.
    Gc,
    /// Say whether ADD can be served.
    Status,
    /// Say which CNI versions are spoken.
    Version,
}

impl Verb {
    fn parse(value: &str) -> Result<Self, Error> {
        match value {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            _ => Err(Error::InvalidVariable {
                variable: "CNI_COMMAND",
                value: value.to_owned(),
                problem: "it must be ADD, DEL, CHECK, GC, STATUS or VERSION",
            }),
        }
    }
}

/// The pod that the runtime names in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub(crate) namespace: String,
    /// `K8S_POD_NAME`.
    pub(crate) name: String,
    /// `K8S_POD_UID`; older runtimes do not pass it.
    pub(crate) uid: String,
}

/// The variables, of which each verb takes what it needs.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// `CNI_COMMAND`.
    pub(crate) verb: Verb,
    container_id: Option<String>,
    ifname: Option<String>,
    netns: Option<String>,
    args: String,
}

impl Environment {
    /// The process's own variables.
    pub(crate) fn from_process() -> Result<Self, Error> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let set = |name| lookup(name).filter(|value| !value.is_empty());
        Ok(Self {
            verb: Verb::parse(&set("CNI_COMMAND").ok_or(missing("CNI_COMMAND"))?)?,
            container_id: set("CNI_CONTAINERID"),
            ifname: set("CNI_IFNAME"),
            netns: set("CNI_NETNS"),
            args: set("CNI_ARGS").unwrap_or_default(),
        })
    }

    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub(crate) fn attachment(&self) -> Result<Attachment, Error> {
        let container_id = self
            .container_id
            .clone()
            .ok_or(missing("CNI_CONTAINERID"))?;
        let ifname = self.ifname.clone().ok_or(missing("CNI_IFNAME"))?;
        check_container_id(&container_id)?;
        check_ifname(&ifname)?;
        Ok(Attachment {
            container_id,
            ifname,
        })
    }

    /// `CNI_NETNS`, where it is set.
    pub(crate) fn netns(&self) -> Option<&str> {
        self.netns.as_deref()
    }

    /// `CNI_NETNS`, which must be set.
    pub(crate) fn required_netns(&self) -> Result<&str, Error> {
        self.netns().ok_or(missing("CNI_NETNS"))
    }

    /// The pod of `CNI_ARGS`, as far as it is named there.
    pub(crate) fn pod(&self) -> Pod {
        let mut pod = Pod::default();
        for (key, value) in self.args.split(';').filter_map(|pair| pair.split_once('=')) {
            match key {
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                _ => {}
            }
        }
        pod
    }

    /// The pod of `CNI_ARGS`, whose namespace and name must be there.
    pub(crate) fn required_pod(&self) -> Result<Pod, Error> {
        let pod = self.pod();
        if pod.namespace.is_empty() || pod.name.is_empty() {
            return Err(Error::InvalidVariable {
                variable: "CNI_ARGS",
                value: self.args.clone(),
                problem: "veer wires Kubernetes pods and needs K8S_POD_NAMESPACE and K8S_POD_NAME",
            });
        }
        Ok(pod)
    }

    /// How an error names what it is about: the pod, or else the sandbox.
    pub(crate) fn subject(&self) -> String {
        let pod = self.pod();
        if !pod.name.is_empty() {
            return format!("{}/{}", pod.namespace, pod.name);
        }
        match &self.container_id {
            Some(id) => format!("sandbox {id}"),
            None => format!("{:?}", self.verb).to_uppercase(),
        }
    }
}

fn missing(variable: &'static str) -> Error {
    Error::MissingVariable { variable }
}

fn check_container_id(value: &str) -> Result<(), Error> {
    let valid = value.len() <= MAX_CONTAINER_ID
        && value.starts_with(|first: char| first.is_ascii_alphanumeric())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::InvalidVariable {
        variable: "CNI_CONTAINERID",
        value: value.chars().take(MAX_CONTAINER_ID).collect(),
        problem: "it must be at most 200 letters, digits, '_', '.' and '-' and begin with a letter \
                  or digit",
    })
}

fn check_ifname(value: &str) -> Result<(), Error> {
    let valid = value.len() <= MAX_IFNAME
        && value != "."
        && value != ".."
        && value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if valid {
        return Ok(());
    }
    Err(Error::InvalidVariable {
        variable: "CNI_IFNAME",
        value: value.chars().take(MAX_CONTAINER_ID).collect(),
        problem: "it must be at most 15 printable characters without '/', ':' and spaces",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::from_lookup(|wanted| {
            let found = variables.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn args_of_the_kubelet_name_the_pod() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;\
                    K8S_POD_INFRA_CONTAINER_ID=ab12;K8S_POD_UID=u-1";
        let environment = environment(&[("CNI_COMMAND", "ADD"), ("CNI_ARGS", args)]).unwrap();
        assert_eq!(
            environment.required_pod().unwrap(),
            Pod {
                namespace: "shop".into(),
                name: "cart-0".into(),
                uid: "u-1".into()
            }
        );
        assert_eq!(environment.subject(), "shop/cart-0");
    }

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for (id, ifname) in [
            ("../../etc/passwd", "eth0"),
            ("-rf", "eth0"),
            ("", "eth0"),
            ("ab12", ".."),
            ("ab12", "a/b"),
            ("ab12", "sixteen-letters-"),
            ("ab12", "eth 0"),
        ] {
            let environment = environment(&[
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", id),
                ("CNI_IFNAME", ifname),
            ])
            .unwrap();
            assert!(environment.attachment().is_err(), "{id} {ifname}");
        }
    }

    #[test]
    fn without_args_the_sandbox_or_the_verb_is_named() {
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "ab12")];
        assert_eq!(environment(&del).unwrap().subject(), "sandbox ab12");
        assert_eq!(environment(&del[..1]).unwrap().subject(), "DEL");
    }
}
