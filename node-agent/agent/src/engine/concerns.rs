//! Faults on the node that veer cannot repair but can work with.

use std::path::Path;

use veer_agent_core::{
    family::Families,
    repair::{Kind, RoundLog},
};

use super::converge::Converger;

impl Converger {
    /// Foreign changes on the node that block packets of pods.
    pub(super) fn look_around(
        &mut self,
        done: &mut RoundLog,
        proc_sys_net: &Path,
        of_pods: Families,
        known: Vec<(&'static str, String)>,
    ) {
        self.concerns = known;
        match self.forward.converge(of_pods.has(false)) {
            Ok(changes) => {
                for chain in changes.opened {
                    let note = format!(
                        "{chain} drops what it does not know; it has a rule of veer's now that \
                         accepts what comes from and goes to pods"
                    );
                    done.inform("ForwardOpened", note);
                }
                for chain in changes.again {
                    let what = format!("veer's rules in {chain} were removed");
                    done.repaired(Kind::Nftables, what);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the chains of other programs"),
        }
        let blocked = self.forward.concerns();
        self.concerns.extend(blocked.map(|c| ("ForwardBlocked", c)));
        let deaf = [
            (true, "ipv4/icmp_echo_ignore_all"),
            (false, "ipv6/icmp/echo_ignore_all"),
        ];
        let is_deaf = |(is_ipv4, path): &(bool, &str)| {
            let value = std::fs::read_to_string(proc_sys_net.join(path));
            of_pods.has(*is_ipv4) && value.is_ok_and(|v| v.trim() == "1")
        };
        for (_, path) in deaf.into_iter().filter(is_deaf) {
            let key = format!("net.{}", path.replace('/', "."));
            let concern = format!(
                "{key} is 1, so other nodes' probes get no answer and no pair with this node can \
                 change its form: set it to 0"
            );
            self.concerns.push(("ProbesIgnored", concern));
        }
        for (address, device) in &self.facts.misplaced {
            let concern = format!(
                "{device} has {address}, which lies in a block of pods: a pod or another node has \
                 it. Remove it (ip addr del {address} dev {device}), or the whole device if \
                 another network left it"
            );
            self.concerns.push(("AddressOfPods", concern));
        }
    }
}
