//! Counters of netfilter's hooks: how many packets between two addresses
//! pass each hook of a node, by an nftables table of the harness's own. A
//! packet that BPF redirects past the stack passes none.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    family::Family,
    machine::Machine,
};

/// The hooks, in the order a forwarded packet meets them.
pub const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// Tells tables of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A table that counts; removed when dropped.
#[derive(Debug)]
pub struct NetfilterCounters {
    machine: Machine,
    table: String,
}

impl Machine {
    /// Starts to count packets between `a` and `b`, both ways, at every hook.
    /// Before connection tracking and translation, so that the addresses are
    /// those on the wire in `prerouting` and `output`.
    ///
    /// # Errors
    /// nft refuses, or the addresses are of different families.
    pub fn count_netfilter(&self, a: IpAddr, b: IpAddr) -> Result<NetfilterCounters> {
        if Family::of(a) != Family::of(b) {
            return Err(Error::State(format!(
                "{a} and {b} are of different families"
            )));
        }
        let family = Family::of(a).nft();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let table = format!("veer_e2e_{}_{number}", std::process::id());
        let mut text = format!("table inet {table} {{\n");
        for hook in HOOKS {
            // Writing to a String cannot fail.
            let _infallible = write!(
                text,
                "counter {hook} {{ }}\n\
                 chain {hook} {{\n\
                 type filter hook {hook} priority -450;\n\
                 {family} saddr {a} {family} daddr {b} counter name {hook}\n\
                 {family} saddr {b} {family} daddr {a} counter name {hook}\n\
                 }}\n"
            );
        }
        text.push_str("}\n");
        self.exec_with_input(&["nft", "-f", "-"], text.as_bytes())?;
        Ok(NetfilterCounters {
            machine: self.clone(),
            table,
        })
    }
}

impl NetfilterCounters {
    /// Packets counted until now, by hook.
    ///
    /// # Errors
    /// The table is gone, or nft prints what cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, u64>> {
        let out = self.machine.exec(&[
            "nft",
            "-j",
            "list",
            "counters",
            "table",
            "inet",
            &self.table,
        ])?;
        let json: Value = serde_json::from_str(&out.stdout).map_err(|source| Error::Json {
            what: "nft -j list counters".to_owned(),
            source,
        })?;
        let items = json
            .get("nftables")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        Ok(items
            .iter()
            .filter_map(|item| {
                let counter = item.get("counter")?;
                let name = counter.get("name")?.as_str()?.to_owned();
                Some((name, counter.get("packets")?.as_u64()?))
            })
            .collect())
    }

    /// Packets counted at all hooks together.
    ///
    /// # Errors
    /// As [`NetfilterCounters::read`].
    pub fn total(&self) -> Result<u64> {
        Ok(self.read()?.values().sum())
    }
}

impl Drop for NetfilterCounters {
    fn drop(&mut self) {
        // A node that went away took the table with it.
        let _gone = self
            .machine
            .exec_any(&["nft", "delete", "table", "inet", &self.table]);
    }
}
