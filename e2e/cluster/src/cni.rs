//! Light pods: network namespaces on any machine of a cluster, wired by the
//! CNI plugins that are configured there, called as containerd calls them (a
//! list in order at ADD, in reverse at DEL, each with its predecessor's
//! result). For tests that need hundreds of pods; nothing but the namespace
//! and the plugins runs.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    error::{Error, IoContext, Result},
    machine::Machine,
};

/// Where containerd looks for the configuration, on a node.
const CONFIGURATION: &str = "/etc/cni/net.d";
/// Where it looks for plugins.
const PLUGINS: &str = "/opt/cni/bin";

/// A pod, as the plugins get it.
#[derive(Debug, Clone)]
pub struct LightPod {
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name; the network namespace is `/run/netns/<name>` of the machine.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The sandbox's id; a new sandbox of the same pod has another.
    pub container: String,
}

impl LightPod {
    fn netns(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// The environment of the CNI specification, section 2, with the
    /// arguments that containerd adds.
    fn environment(&self, command: &str) -> Vec<String> {
        vec![
            format!("CNI_COMMAND={command}"),
            format!("CNI_CONTAINERID={}", self.container),
            format!("CNI_NETNS={}", self.netns()),
            "CNI_IFNAME=eth0".to_owned(),
            format!("CNI_PATH={PLUGINS}"),
            format!(
                "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};\
                 K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                self.namespace, self.name, self.container, self.uid
            ),
        ]
    }
}

impl Machine {
    /// Makes a light pod's namespace and has it wired. Returns the last
    /// plugin's result.
    ///
    /// # Errors
    /// There is no configuration, or a plugin fails: the text has what it
    /// said. What is half done is left for [`Machine::cni_del`].
    pub fn cni_add(&self, pod: &LightPod) -> Result<Value> {
        self.exec(&["ip", "netns", "add", &pod.name])?;
        let list = self.cni_list()?;
        let mut result = Value::Null;
        for plugin in plugins(&list) {
            let out = self.call(pod, "ADD", plugin, &configuration(&list, plugin, &result))?;
            result = parse(&out, "a plugin's result")?;
        }
        let cache = self.cache(pod);
        if let Some(dir) = cache.parent() {
            fs::create_dir_all(dir).what(|| format!("make {}", dir.display()))?;
        }
        fs::write(&cache, result.to_string()).what(|| format!("write {}", cache.display()))?;
        Ok(result)
    }

    /// Has a light pod unwired and removes its namespace. Like containerd it
    /// may be called again, and for a pod whose ADD failed.
    ///
    /// # Errors
    /// A plugin fails, which a DEL should not.
    pub fn cni_del(&self, pod: &LightPod) -> Result<()> {
        let list = self.cni_list()?;
        let cache = self.cache(pod);
        let result = match fs::read_to_string(&cache) {
            Ok(text) => parse(&text, "a kept result")?,
            Err(_) => Value::Null,
        };
        for plugin in plugins(&list).iter().rev() {
            self.call(pod, "DEL", plugin, &configuration(&list, plugin, &result))?;
        }
        let _gone = fs::remove_file(&cache);
        if self.has(Path::new(&pod.netns())) {
            self.exec(&["ip", "netns", "del", &pod.name])?;
        }
        Ok(())
    }

    /// Runs a command in a light pod's network.
    ///
    /// # Errors
    /// The command fails, or there is no such pod.
    pub fn exec_in_light_pod(&self, pod: &LightPod, words: &[&str]) -> Result<crate::Output> {
        let net = format!("--net={}", pod.netns());
        let mut all = vec!["nsenter", &net, "--"];
        all.extend(words);
        self.exec(&all)
    }

    /// Where ADD's result is kept for DEL, as libcni keeps it.
    fn cache(&self, pod: &LightPod) -> std::path::PathBuf {
        self.disk()
            .join("light-pods")
            .join(format!("{}.json", pod.container))
    }

    /// The first configuration list by name, as containerd takes it.
    fn cni_list(&self) -> Result<Value> {
        let script = format!("cat \"$(ls {CONFIGURATION}/*.conflist | head -n1)\"");
        let out = self.exec(&["sh", "-ec", &script])?;
        parse(&out.stdout, "a CNI configuration list")
    }

    fn call(&self, pod: &LightPod, command: &str, plugin: &Value, conf: &Value) -> Result<String> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let program = format!("{PLUGINS}/{kind}");
        let environment = pod.environment(command);
        let mut words = vec!["env"];
        words.extend(environment.iter().map(String::as_str));
        words.push(&program);
        self.exec_with_input(&words, conf.to_string().as_bytes())
            .map(|out| out.stdout)
            .map_err(|error| {
                Error::State(format!(
                    "{command} of {}/{}: {error}",
                    pod.namespace, pod.name
                ))
            })
    }
}

/// The plugins of a list, in order.
fn plugins(list: &Value) -> &[Value] {
    list["plugins"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A plugin's own configuration (CNI specification, section 3): its entry of
/// the list, with the list's name and version and the result before it.
fn configuration(list: &Value, plugin: &Value, previous: &Value) -> Value {
    let mut conf = plugin.clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    if !previous.is_null() {
        conf["prevResult"] = previous.clone();
    }
    // Capabilities are for the runtime; what it has of them goes here.
    if let Some(conf) = conf.as_object_mut()
        && conf.remove("capabilities").is_some()
    {
        conf.insert("runtimeConfig".to_owned(), json!({}));
    }
    conf
}

fn parse(text: &str, what: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|source| Error::Json {
        what: what.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_lists_name_and_version_and_the_result_before_it() {
        let list = json!({"name": "veer", "cniVersion": "1.0.0", "plugins": [
            {"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}}]});
        let first = configuration(&list, &plugins(&list)[0], &Value::Null);
        assert_eq!(
            first,
            json!({"name": "veer", "cniVersion": "1.0.0", "type": "first"})
        );
        let second = configuration(&list, &plugins(&list)[1], &json!({"ips": []}));
        assert_eq!(second["prevResult"], json!({"ips": []}));
        assert_eq!(second["runtimeConfig"], json!({}));
        assert!(second.get("capabilities").is_none());
    }
}
