//! Faults on the node that veer cannot repair but can work with.

use veer_agent_core::{
    family::{Families, Family},
    mtu::Mtu,
    repair::{Kind, RoundLog},
};

use super::converge::Converger;

/// Why pods' IPv6 packets get nowhere, if pods have it: their routes have this MTU.
fn too_small(of_pods: Families, mtu: Mtu) -> Option<String> {
    let (needed, mtu) = (Mtu::IPV6.get(), mtu.get());
    let lacks = needed.checked_sub(mtu).filter(|lacks| *lacks > 0)?;
    of_pods.has(Family::V6).then(|| {
        format!(
            "pods' packets may have {mtu} bytes, fewer than the {needed} that IPv6 needs: raise \
             spec.mtu of the ClusterNetwork, or the MTU of the uplinks, by {lacks}"
        )
    })
}

impl Converger {
    /// Foreign changes on the node that block packets of pods.
    pub(super) fn look_around(
        &mut self,
        done: &mut RoundLog,
        of_pods: Families,
        known: Vec<(&'static str, String)>,
    ) {
        self.concerns = known;
        match self.forward.converge(of_pods.has(Family::V6)) {
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
            (Family::V4, "ipv4/icmp_echo_ignore_all"),
            (Family::V6, "ipv6/icmp/echo_ignore_all"),
        ];
        let is_deaf = |(family, path): &(Family, &str)| {
            let value = std::fs::read_to_string(self.options.proc_sys_net.join(path));
            of_pods.has(*family) && value.is_ok_and(|v| v.trim() == "1")
        };
        for (_, path) in deaf.into_iter().filter(is_deaf) {
            let key = format!("net.{}", path.replace('/', "."));
            let concern = format!(
                "{key} is 1, so other nodes' probes get no answer and no pair with this node can \
                 change its form: set it to 0"
            );
            self.concerns.push(("ProbesIgnored", concern));
        }
        self.concerns
            .extend(too_small(of_pods, self.switch.step.mtu).map(|c| ("MtuTooSmall", c)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_below_that_of_ipv6_is_named_where_pods_have_ipv6() {
        let [v4, v6] = Family::ALL.map(Families::one);
        let mtu = |bytes| Mtu::new(bytes).unwrap();
        assert_eq!(too_small(v4, mtu(1210)), None);
        assert_eq!(too_small(v6, mtu(1280)), None);
        assert!(too_small(v6, mtu(1210)).unwrap().ends_with("by 70"));
    }
}
