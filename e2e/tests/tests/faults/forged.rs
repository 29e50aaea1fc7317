//! A flood of forged packets of every kind, while honest traffic goes on.

use veer_e2e_tests::{
    forged::{self, Entry},
    lab::Mode,
    scene::Scene,
};

use crate::{
    fault::{Fault, Held},
    survive::unharmed,
};

/// Of each kind.
const COUNT: u64 = 10_000;

/// Both modes.
pub(crate) fn faults() -> Vec<Fault> {
    [
        (Mode::Tunnel, "forged::sources_of_every_kind_in_tunnel"),
        (Mode::Native, "forged::sources_of_every_kind_in_native"),
    ]
    .into_iter()
    .map(|(mode, name)| {
        let injected = format!(
            "{COUNT} packets of each kind (remote and own pod, remote and own health address; to \
             pod, node, ClusterIP, NodePort, world; plain and tagged; by uplink, veth, bridge)"
        );
        Fault::new(name, injected, mode, all)
    })
    .collect()
}

fn all(scene: &Scene) -> anyhow::Result<Held> {
    unharmed(
        scene,
        "all traffic; none arrived, each was counted",
        || {
            let entries = [Entry::Uplink, Entry::Veth, Entry::Bridge];
            let refused = entries.map(|entry| forged::refused(scene, entry, COUNT));
            refused.into_iter().collect::<anyhow::Result<Vec<_>>>()
        },
        |all| {
            let packets: u64 = all.iter().map(|r| r.packets).sum();
            let kinds: u32 = all.iter().map(|r| r.kinds).sum();
            format!("{packets} packets of {kinds} kinds refused")
        },
    )
}
