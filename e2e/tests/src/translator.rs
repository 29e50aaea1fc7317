//! Who translates what pods and nodes send to Services: `spec.services` of the
//! ClusterNetwork, set for a test and put back after it. That it is in force is seen in
//! the maps of every node, since the resource says nothing of it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use veer_e2e_cluster::{Machine, await_condition};

use crate::{lab::Lab, maps, rollout};

/// How long all nodes may take to follow.
const CHANGED: Duration = Duration::from_secs(30);
/// The maps that are empty while kube-proxy translates.
pub const MAPS: [&str; 3] = ["SERVICES", "BACKENDS", "MEMBERS"];
/// Says that a Service is of another proxy than the cluster's.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Who translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translator {
    /// The host's stack, by kube-proxy's rules.
    KubeProxy,
    /// The programs on the pods' devices.
    Pods,
    /// These, and hooks at the sockets of nodes.
    Full,
}

impl Translator {
    /// As the resource spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeProxy => "KubeProxy",
            Self::Pods => "Pods",
            Self::Full => "Full",
        }
    }

    /// By the resource's field; it need not be there.
    fn of(field: &Value) -> Result<Self> {
        match field.as_str() {
            Some("Pods") | None => Ok(Self::Pods),
            Some("KubeProxy") => Ok(Self::KubeProxy),
            Some("Full") => Ok(Self::Full),
            Some(other) => bail!("the ClusterNetwork has {other} for services"),
        }
    }
}

/// `spec.services` in the hands of a test. It is as before when this is dropped,
/// whatever became of the test.
#[derive(Debug)]
pub struct Translators<'a> {
    lab: &'a Lab,
    before: Value,
    /// It was put back.
    done: bool,
}

impl<'a> Translators<'a> {
    /// Notes what the field is now.
    pub fn hold(lab: &'a Lab) -> Result<Self> {
        let before = rollout::network(lab)?["spec"]["services"].clone();
        Translator::of(&before)?;
        let done = false;
        Ok(Self { lab, before, done })
    }

    /// Sets the field and waits until it is in force on every node.
    pub fn set(&self, by: Translator) -> Result<()> {
        set(self.lab, by)
    }

    /// Puts the field back and waits until that is in force.
    pub fn restored(mut self) -> Result<()> {
        self.done = true;
        self.put_back()
    }

    fn put_back(&self) -> Result<()> {
        set_to(self.lab, &self.before)
    }
}

impl Drop for Translators<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The test's own outcome says more than this one.
            let _outcome = self.put_back();
        }
    }
}

/// What `spec.services` says now.
pub fn of(lab: &Lab) -> Result<Translator> {
    Translator::of(&rollout::network(lab)?["spec"]["services"])
}

/// Sets `spec.services` and waits until it is in force on every node.
pub fn set(lab: &Lab, by: Translator) -> Result<()> {
    set_to(lab, &by.name().into())
}

fn set_to(lab: &Lab, value: &Value) -> Result<()> {
    let patch = json!({"spec": {"services": value}});
    lab.patch_network(&patch.to_string())?;
    await_in_force(lab, Translator::of(value)?)
}

fn await_in_force(lab: &Lab, by: Translator) -> Result<()> {
    let what = format!("services are {} on every node", by.name());
    await_condition(&what, CHANGED, || {
        let differences = differences(lab, by).map_err(|e| format!("{e:#}"))?;
        if differences.is_empty() {
            Ok(Some(()))
        } else {
            Err(differences.join("; "))
        }
    })?;
    Ok(())
}

/// What the maps of the nodes have too much or too little.
fn differences(lab: &Lab, by: Translator) -> Result<Vec<String>> {
    let wanted = match by {
        Translator::KubeProxy => Vec::new(),
        Translator::Pods | Translator::Full => cluster_addresses(lab)?,
    };
    let mut all = Vec::new();
    for name in lab.cluster.node_names() {
        let node = lab.node(&name)?;
        let hooks = hooks_translate(&node)?;
        if hooks != (by == Translator::Full) {
            let does = if hooks { "translates" } else { "leaves" };
            all.push(format!("{name} {does} what its own sockets send"));
        }
        match by {
            Translator::KubeProxy => {
                for map in MAPS {
                    let rows = maps::dump(&node, map)?.len();
                    if rows > 0 {
                        all.push(format!("{name} has {rows} rows in {map}"));
                    }
                }
            }
            Translator::Pods | Translator::Full => {
                let rows = frontends(&node)?;
                let lacks = |key: &[u8; 24]| !rows.contains_key(&key[..]);
                let missing = wanted.iter().filter(|(_, key)| lacks(key));
                let missing = missing.map(|(service, _)| format!("{name} lacks {service}"));
                all.extend(missing);
            }
        }
    }
    Ok(all)
}

/// Whether the hooks at a node's own sockets translate new flows: entry 2 of the map
/// `HOST_SOCKETS`.
fn hooks_translate(node: &Machine) -> Result<bool> {
    let rows = maps::dump(node, "HOST_SOCKETS")?;
    let entry = rows.iter().find(|(key, _)| key[..] == 2_u32.to_ne_bytes());
    let (_, value) = entry.context("HOST_SOCKETS has no third entry")?;
    Ok(value.iter().any(|octet| *octet != 0))
}

/// All cluster addresses with their ports that the programs translate: a name for
/// people, and the key.
fn cluster_addresses(lab: &Lab) -> Result<Vec<(String, [u8; 24])>> {
    let list = lab.kubectl().json(&["get", "services", "-A"])?;
    let items = list["items"].as_array().context("a list without items")?;
    let mut all = Vec::new();
    for service in items {
        let metadata = &service["metadata"];
        if !metadata["labels"][OTHER_PROXY].is_null() {
            continue;
        }
        let name = metadata["name"].as_str().unwrap_or_default();
        // A headless one has `None` there.
        let addresses = service["spec"]["clusterIPs"].as_array();
        let addresses = addresses
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str()?.parse::<IpAddr>().ok());
        for address in addresses {
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let number = port["port"].as_u64().and_then(|p| u16::try_from(p).ok());
                let number = number.with_context(|| format!("a port of {name} has no number"))?;
                let to = SocketAddr::from((address, number));
                // SCTP is left to the stack.
                if let Some(protocol) = protocol(port) {
                    all.push((format!("{name} {to}"), key(to, protocol)));
                }
            }
        }
    }
    Ok(all)
}

fn protocol(port: &Value) -> Option<u8> {
    match port["protocol"].as_str() {
        Some("TCP") => Some(TCP),
        Some("UDP") => Some(UDP),
        _ => None,
    }
}

/// A key of the map SERVICES: address, port, protocol, the family's tag, zeros.
fn key(to: SocketAddr, protocol: u8) -> [u8; 24] {
    let tagged = maps::key(to.ip());
    let mut key = [0; 24];
    key[..16].copy_from_slice(&tagged[4..]);
    key[16..18].copy_from_slice(&to.port().to_be_bytes());
    key[18] = protocol;
    key[19] = tagged[0];
    key
}

/// The keys of a node's map SERVICES, each with its number of backends.
pub fn frontends(node: &Machine) -> Result<HashMap<Vec<u8>, u32>> {
    let rows = maps::dump(node, "SERVICES")?.into_iter();
    rows.map(|(key, value)| {
        // Behind the number of the service and its version.
        let backends: Option<[u8; 4]> = value.get(8..12).and_then(|b| b.try_into().ok());
        let backends = backends.context("a service is cut short")?;
        Ok((key, u32::from_ne_bytes(backends)))
    })
    .collect()
}

/// Waits until the programs of a node have so many backends for what is sent to `to` by
/// a protocol.
pub fn await_backends(
    lab: &Lab,
    node: &str,
    (to, protocol): (SocketAddr, u8),
    count: u32,
) -> Result<()> {
    let wanted = key(to, protocol);
    let what = format!("{to} has {count} backends on {node}");
    await_condition(&what, CHANGED, || {
        let rows = lab.node(node).and_then(|node| frontends(&node));
        let rows = rows.map_err(|e| format!("{e:#}"))?;
        let seen = rows.get(&wanted[..]).copied();
        if seen == Some(count) {
            Ok(Some(()))
        } else {
            Err(format!("it has {seen:?}"))
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_frontend_holds_address_port_protocol_and_family() {
        let four = key("10.96.0.10:53".parse().expect("an address"), UDP);
        assert_eq!(four[..4], [10, 96, 0, 10]);
        assert_eq!(four[4..16], [0; 12]);
        assert_eq!(four[16..], [0, 53, 17, 4, 0, 0, 0, 0]);
        let six = key("[fd00::a]:443".parse().expect("an address"), TCP);
        assert_eq!(six[..2], [0xfd, 0]);
        assert_eq!(six[15], 10);
        assert_eq!(six[16..], [1, 187, 6, 6, 0, 0, 0, 0]);
    }

    #[test]
    fn a_network_without_the_field_is_translated_by_the_programs() {
        for by in [Translator::KubeProxy, Translator::Pods, Translator::Full] {
            assert_eq!(Translator::of(&by.name().into()).expect("a value"), by);
        }
        let none = Translator::of(&Value::Null).expect("a value");
        assert_eq!(none, Translator::Pods);
        assert!(Translator::of(&"Nobody".into()).is_err());
    }
}
