//! Rules on what crosses the underlay, where it enters the bridge or the router:
//! nodes see nothing of them but packets that do not come.

use std::fmt::Write;

use anyhow::{Result, ensure};
use veer_e2e_cluster::{Machine, Output};

use crate::lab::Lab;

/// An nftables table of the underlay's, which goes when this is dropped.
#[derive(Debug)]
pub struct Rules {
    switch: Machine,
    name: &'static str,
}

impl Rules {
    /// A table with rules for what some nodes send, by node. `head` is put before
    /// them (counters, say).
    pub fn put(
        lab: &Lab,
        name: &'static str,
        head: &str,
        chains: &[(&str, String)],
    ) -> Result<Self> {
        let rules = Self {
            switch: lab.cluster.switch(),
            name,
        };
        rules.replace(head, chains)?;
        Ok(rules)
    }

    /// Others in the place of those there are, at once.
    pub fn replace(&self, head: &str, chains: &[(&str, String)]) -> Result<()> {
        let name = self.name;
        let mut text = format!(
            "table netdev {name} {{ }}\ndelete table netdev {name}\n\
             table netdev {name} {{\n{head}\n"
        );
        for (node, rules) in chains {
            // The port of the bridge or router that the node's first uplink is
            // plugged into.
            let _infallible = write!(
                text,
                "chain from_{node} {{\ntype filter hook ingress device \"{node}-0\" priority 0; \
                 policy accept;\n{rules}\n}}\n"
            );
        }
        text.push_str("}\n");
        self.switch
            .exec_with_input(&["nft", "-f", "-"], text.as_bytes())?;
        Ok(())
    }

    /// What nft prints of an object of the table, as JSON.
    pub fn list(&self, kind: &str, object: &str) -> Result<String> {
        let words = ["nft", "-j", "list", kind, "netdev", self.name, object];
        Ok(self.switch.exec(&words)?.stdout)
    }

    /// Takes it away.
    pub fn remove(self) -> Result<()> {
        let out = self.delete()?;
        ensure!(
            out.code == 0,
            "{} stays on the wire: {}",
            self.name,
            out.stderr
        );
        Ok(())
    }

    fn delete(&self) -> Result<Output> {
        Ok(self
            .switch
            .exec_any(&["nft", "delete", "table", "netdev", self.name])?)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        // Removed already, mostly.
        let _gone = self.delete();
    }
}
