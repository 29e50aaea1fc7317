//! The CNI configuration that tells the container runtime to call veer-cni.
//!
//! veer owns the file's place in the folder, the network's name and versions,
//! its own entry and those that the chart asks for. Entries that others chain
//! behind veer (a mesh, `tuning`, `bandwidth`) stay, in their order: the agent
//! restores only veer's part. hostPorts are veer's own; the entry of the plugin
//! portmap that earlier releases wrote for them is taken out, and what it made for
//! running pods is adopted (`portmap`).

use std::{fs, io, path::Path};

use serde_json::{Map, Value, json};
use veer_agent_api::{CONF_DIR, CONFLIST, file};

/// `type` of veer's own plugin.
pub(crate) const PLUGIN: &str = "veer-cni";
/// File in the state folder with the chart's entries that are in the conflist. It
/// distinguishes an entry that the chart no longer names from a foreign one.
const CHAINED: &str = "cni-plugins.json";

/// veer's part of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chain {
    /// Entries that the chart adds behind veer's own.
    extra: Vec<Value>,
    /// The folder's path on the node, where veer-cni could not guess it.
    conf_dir: Option<String>,
}

/// Why a chain cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// Not JSON.
    #[error("cni.plugins is not a JSON list of objects")]
    Decode(#[from] serde_json::Error),
    /// An entry that no runtime takes.
    #[error("cni.plugins: every entry needs a type, and {PLUGIN} is veer's own")]
    Entry,
}

impl Chain {
    /// From the chart's JSON list (empty: none) and the folder's path on the node.
    pub(crate) fn parse(plugins: &str, conf_dir: &str) -> Result<Self, ChainError> {
        let extra: Vec<Value> = if plugins.trim().is_empty() {
            Vec::new()
        } else {
            serde_json::from_str(plugins)?
        };
        if extra
            .iter()
            .any(|e| kind(e).is_none_or(|kind| kind == PLUGIN))
        {
            return Err(ChainError::Entry);
        }
        let default = matches!(conf_dir, "" | CONF_DIR);
        Ok(Self {
            extra,
            conf_dir: (!default).then(|| conf_dir.to_owned()),
        })
    }

    fn own(&self) -> Value {
        let mut entry = json!({ "type": PLUGIN, "capabilities": { "portMappings": true } });
        if let Some(folder) = &self.conf_dir {
            entry["confDir"] = json!(folder);
        }
        entry
    }
}

/// The portmap entry of releases that left hostPorts to portmap.
fn former_portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true })
}

/// The `type` of an entry that a runtime would take.
fn kind(entry: &Value) -> Option<&str> {
    entry.get("type")?.as_str().filter(|kind| !kind.is_empty())
}

/// The wanted content of a file that holds `found`, and the faults of `found` in
/// words. `before` are entries that the chart asked for earlier.
fn merge(found: Option<&Value>, chain: &Chain, before: &[Value]) -> (Value, Vec<String>) {
    let mut wrong = Vec::new();
    let mut list = found
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_else(Map::new);
    for (key, value) in [
        ("cniVersion", json!("1.0.0")),
        // Runtimes that know it choose the newest; containerd 1.x takes the other.
        ("cniVersions", json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])),
        ("name", json!("veer")),
    ] {
        if list.get(key) != Some(&value) {
            wrong.push(format!("{key} was changed"));
            list.insert(key.to_owned(), value);
        }
    }
    let there = list.get("plugins").and_then(Value::as_array).cloned();
    let (own, former) = (chain.own(), former_portmap());
    let first = there.as_ref().and_then(|p| p.first());
    // As those releases wrote it, veer's entry was without capabilities.
    let mut earlier = own.clone();
    earlier.as_object_mut().map(|e| e.remove("capabilities"));
    let upgraded = first == Some(&earlier) && there.iter().flatten().any(|e| *e == former);
    if first != Some(&own) && !upgraded {
        wrong.push(format!("the entry {PLUGIN} was changed, moved or removed"));
    }
    // In veer's place and veer's but for its type: an entry of no program.
    let damaged = first.filter(|f| {
        let mut retyped = (*f).clone();
        let fields = retyped.as_object_mut();
        fields.map(|e| e.insert("type".to_owned(), json!(PLUGIN)));
        retyped == own && !chain.extra.contains(f)
    });
    let damaged = damaged.cloned();
    let mut plugins = vec![own];
    for entry in there.unwrap_or_default() {
        match kind(&entry) {
            Some(PLUGIN) => {}
            Some(_) if damaged.as_ref() == Some(&entry) => {}
            Some(_) if chain.extra.contains(&entry) => {
                if !plugins.contains(&entry) {
                    plugins.push(entry);
                }
            }
            Some(_) if before.contains(&entry) || entry == former => {}
            Some(_) => plugins.push(entry),
            None => wrong.push("an entry without a type was there".to_owned()),
        }
    }
    for entry in &chain.extra {
        if !plugins.contains(entry) {
            if before.contains(entry) {
                let kind = kind(entry).unwrap_or_default();
                wrong.push(format!("the entry {kind} was removed"));
            }
            plugins.push(entry.clone());
        }
    }
    list.insert("plugins".to_owned(), Value::Array(plugins));
    (Value::Object(list), wrong)
}

/// Brings what is veer's into the file, atomically and only where something
/// differs. Returns what somebody else had done to it: nothing when the chart is
/// what changed.
pub(crate) fn write(folder: &Path, state: &Path, chain: &Chain) -> io::Result<Option<String>> {
    let path = folder.join(CONFLIST);
    let noted = state.join(CHAINED);
    let before: Vec<Value> = fs::read(&noted)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let bytes = fs::read(&path);
    let found: Option<Value> = bytes
        .as_ref()
        .ok()
        .and_then(|bytes| serde_json::from_slice(bytes).ok())
        .filter(Value::is_object);
    let (wanted, wrong) = merge(found.as_ref(), chain, &before);
    if found.as_ref() != Some(&wanted) {
        let mut text = serde_json::to_vec_pretty(&wanted)?;
        text.push(b'\n');
        file::write(&path, &text)?;
    }
    if before != chain.extra {
        file::write(&noted, &serde_json::to_vec(&chain.extra)?)?;
    }
    Ok(match (bytes, found) {
        (Err(_), _) => Some(format!("{CONFLIST} was removed")),
        (Ok(_), None) => Some(format!("{CONFLIST} was no configuration of CNI")),
        (Ok(_), Some(_)) if wrong.is_empty() => None,
        (Ok(_), Some(_)) => Some(format!("{CONFLIST}: {}", wrong.join(", "))),
    })
}

/// Whether a plugin is in the chain as the file says it.
pub(crate) fn chains(folder: &Path, plugin: &str) -> bool {
    let list: Option<Value> = fs::read(folder.join(CONFLIST))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    list.as_ref()
        .and_then(|l| l.get("plugins")?.as_array())
        .is_some_and(|plugins| plugins.iter().any(|e| kind(e) == Some(plugin)))
}

/// Removes it from its folder, and veer-cni from the folder of plugins.
pub(crate) fn remove(folder: &Path, plugins: &Path) {
    for path in [folder.join(CONFLIST), plugins.join(PLUGIN)] {
        if let Err(error) = file::remove(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, plugins: &str) -> Option<String> {
            let chain = Chain::parse(plugins, "").unwrap();
            write(self.0.path(), self.0.path(), &chain).unwrap()
        }

        fn list(&self) -> Value {
            serde_json::from_slice(&fs::read(self.0.path().join(CONFLIST)).unwrap()).unwrap()
        }

        fn put(&self, list: &Value) {
            // As other programs write it: in one line.
            fs::write(self.0.path().join(CONFLIST), list.to_string()).unwrap();
        }

        fn kinds(&self) -> Vec<String> {
            let list = self.list();
            let plugins = list["plugins"].as_array().unwrap();
            plugins
                .iter()
                .map(|p| p["type"].as_str().unwrap().to_owned())
                .collect()
        }
    }

    #[test]
    fn the_file_is_written_once_and_put_back_when_removed_or_garbled() {
        let node = Node::new();
        assert!(node.write("").is_some());
        let path = node.0.path().join(CONFLIST);
        let first = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(node.write(""), None);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), first);
        for damage in ["{", "[]", ""] {
            fs::write(&path, damage).unwrap();
            assert!(node.write("").unwrap().contains("no configuration"));
            let found = node.list();
            assert_eq!(found["cniVersion"], "1.0.0");
            assert_eq!(found["plugins"][0]["type"], "veer-cni");
            assert_eq!(found["plugins"][0]["capabilities"]["portMappings"], true);
        }
        fs::remove_file(&path).unwrap();
        assert!(node.write("").unwrap().contains("removed"));
    }

    #[test]
    fn plugins_that_others_chain_stay_in_their_order() {
        let node = Node::new();
        node.write("");
        let mut list = node.list();
        let plugins = list["plugins"].as_array_mut().unwrap();
        plugins.insert(1, json!({"type": "tuning", "sysctl": {}}));
        plugins.push(json!({"type": "istio-cni", "log_level": "info"}));
        list["disableCheck"] = json!(true);
        node.put(&list);
        assert_eq!(node.write(""), None);
        assert_eq!(node.list(), list);
    }

    #[test]
    fn a_damaged_entry_of_veer_is_repaired_alone() {
        let node = Node::new();
        node.write("");
        let good = node.list();
        let mut list = good.clone();
        let plugins = list["plugins"].as_array_mut().unwrap();
        plugins[0] = json!({"type": "veer-cni", "root": "/elsewhere"});
        plugins.push(json!({"type": "linkerd-cni"}));
        plugins.push(json!({"name": "nothing"}));
        list["name"] = json!("other");
        node.put(&list);
        let what = node.write("").unwrap();
        for word in ["veer-cni", "name", "without a type"] {
            assert!(what.contains(word), "{what}");
        }
        assert_eq!(node.kinds(), ["veer-cni", "linkerd-cni"]);
        assert_eq!(node.list()["plugins"][0], good["plugins"][0]);
        assert_eq!(node.list()["name"], "veer");
    }

    #[test]
    fn an_entry_in_veers_place_that_is_veers_but_for_its_type_is_veers() {
        let node = Node::new();
        node.write("");
        let good = node.list();
        let mut list = good.clone();
        list["plugins"][0]["type"] = json!("veer-cnx");
        node.put(&list);
        assert!(node.write("").unwrap().contains("veer-cni"));
        assert_eq!(node.list(), good);
        list["plugins"][0] = json!("no object");
        node.put(&list);
        assert!(node.write("").is_some());
        assert_eq!(node.list(), good);
    }

    #[test]
    fn an_entry_put_before_veers_comes_after_it() {
        let node = Node::new();
        node.put(&json!({"plugins": [{"type": "tuning"}, {"type": "veer-cni"}]}));
        node.write("");
        assert_eq!(node.kinds(), ["veer-cni", "tuning"]);
    }

    #[test]
    fn the_charts_plugins_come_change_and_go_and_foreign_ones_stay() {
        let node = Node::new();
        node.write("");
        let mut list = node.list();
        let plugins = list["plugins"].as_array_mut().unwrap();
        plugins.push(json!({"type": "istio-cni"}));
        node.put(&list);
        assert_eq!(node.write(r#"[{"type":"bandwidth","x":1}]"#), None);
        assert_eq!(node.kinds(), ["veer-cni", "istio-cni", "bandwidth"]);
        assert_eq!(node.write(r#"[{"type":"bandwidth","x":2}]"#), None);
        assert_eq!(node.list()["plugins"][2]["x"], 2);
        assert_eq!(node.kinds().len(), 3);
        assert!(chains(node.0.path(), "bandwidth"));
        let mut list = node.list();
        list["plugins"].as_array_mut().unwrap().pop();
        node.put(&list);
        let what = node.write(r#"[{"type":"bandwidth","x":2}]"#).unwrap();
        assert!(what.contains("bandwidth was removed"), "{what}");
        assert_eq!(node.write(""), None);
        assert_eq!(node.kinds(), ["veer-cni", "istio-cni"]);
    }

    #[test]
    fn a_file_of_a_release_with_portmap_is_upgraded_and_no_word_is_lost_of_it() {
        let node = Node::new();
        node.put(&json!({
            "cniVersion": "1.0.0", "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
            "name": "veer", "plugins": [
                {"type": "veer-cni"},
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
                {"type": "istio-cni"}],
        }));
        assert_eq!(node.write(""), None);
        assert_eq!(node.kinds(), ["veer-cni", "istio-cni"]);
        let own = node.list()["plugins"][0].clone();
        assert_eq!(own["capabilities"]["portMappings"], true);
        // A later removal of the capability is reported.
        let mut list = node.list();
        list["plugins"][0] = json!({"type": "veer-cni"});
        node.put(&list);
        assert!(node.write("").unwrap().contains("veer-cni"));
    }

    #[test]
    fn a_portmap_that_the_chart_or_another_adds_stays() {
        let node = Node::new();
        node.write(r#"[{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]"#);
        assert_eq!(node.kinds(), ["veer-cni", "portmap"]);
        let mut list = node.list();
        list["plugins"][1]["snat"] = json!(false);
        node.put(&list);
        node.write("");
        assert_eq!(node.kinds(), ["veer-cni", "portmap"]);
    }

    #[test]
    fn an_entry_without_a_type_or_a_second_veer_is_refused() {
        for bad in [r#"[{"x":1}]"#, r#"[{"type":"veer-cni"}]"#, "{}", "[1]"] {
            assert!(Chain::parse(bad, "").is_err(), "{bad}");
        }
        let chain = Chain::parse(
            r#"[{"type":"bandwidth"}]"#,
            "/var/lib/rancher/k3s/agent/etc/cni/net.d",
        )
        .unwrap();
        assert_eq!(
            chain.own()["confDir"],
            "/var/lib/rancher/k3s/agent/etc/cni/net.d"
        );
    }
}
