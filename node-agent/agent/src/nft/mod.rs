//! veer's own nftables table, `inet veer`: the only netfilter rules veer has,
//! and no rule of anybody else's is ever touched.
//!
//! [`Rules`] says what is wanted, [`rules`] turns that into chains (pure), and
//! [`Table`] writes them as one batch, so the kernel has the old table or the
//! new one and never none. A table's user data holds a digest of what was
//! written, by which a new agent knows whether it has to write at all.

mod batch;
mod expression;
mod rules;
#[cfg(test)]
mod tests;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

pub(crate) use batch::Error;

/// What the table is to do, in the words of DESIGN's section on services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// This node's primary address: the source of what the stack sends into the
    /// tunnel device for others. `None` until it is known; then no rule needs it.
    pub(crate) primary: Option<Ipv4Addr>,
    /// This node's blocks of pod addresses.
    pub(crate) local_cidrs: Vec<Ipv4Net>,
    /// The cluster's blocks of pod addresses: never masqueraded to.
    pub(crate) cluster_cidrs: Vec<Ipv4Net>,
    /// Whether pods are masqueraded to the world at all.
    pub(crate) masquerade: bool,
    /// Destinations that see pod addresses all the same.
    pub(crate) exclude: Vec<Ipv4Net>,
    /// Nodes that see pod addresses: all others in native mode; none in tunnel
    /// mode, where a bare pod address must not appear on the underlay.
    pub(crate) bare_to_nodes: Vec<Ipv4Addr>,
    /// UDP port of the tunnel.
    pub(crate) tunnel_port: u16,
}

impl Rules {
    /// The same for the same rules, in every process of one build.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        // A new set of chains for the same wish is another table.
        rules::chains(self).hash(&mut hasher);
        hasher.finish()
    }
}

/// The table in the kernel, in the network namespace of the calling thread. The
/// calls block for some milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Generation of nftables when the table was last seen to be right: while it
    /// stands, nobody changed any table.
    verified: Option<(u32, u64)>,
}

impl Table {
    /// Makes the table what `rules` say. Returns whether it had to be written.
    ///
    /// # Errors
    ///
    /// The kernel refuses: nf_tables missing, or no `CAP_NET_ADMIN`.
    pub(crate) fn apply(&mut self, rules: &Rules) -> Result<bool, Error> {
        let digest = rules.digest();
        let generation = batch::generation()?;
        if self.verified == Some((generation, digest)) {
            return Ok(false);
        }
        let chains = rules::chains(rules);
        let wanted = batch::Shape {
            digest,
            rules: chains.iter().map(|c| c.rules.len()).sum(),
        };
        if batch::shape()? == Some(wanted) {
            self.verified = Some((generation, digest));
            return Ok(false);
        }
        batch::replace(&chains, &rules.bare_to_nodes, digest)?;
        // A change by somebody else between the write and this is not seen as
        // ours: the generation is then another one at the next look.
        self.verified = None;
        Ok(true)
    }

    /// Removes the table; succeeds where there is none.
    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        self.verified = None;
        batch::remove()
    }
}
