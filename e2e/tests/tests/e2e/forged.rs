//! Forged sources on the wire, of every kind and to every destination, some of each.
//! The fault `forged` sends thousands.

use anyhow::{Result, ensure};
use veer_e2e_tests::forged::{self, Entry};

use crate::scene::{Scene, Test};

/// All tests, for either mode.
pub(crate) const TESTS: [(&str, Test); 3] = [
    (
        "packets_by_the_uplink_that_claim_a_pod_reach_nobody_and_are_counted",
        Test::Each(by_uplink),
    ),
    (
        "packets_by_another_device_that_claim_a_pod_reach_nobody_and_are_counted",
        Test::Each(by_veth),
    ),
    (
        "packets_by_a_bridge_that_claim_a_pod_reach_nobody_and_are_counted",
        Test::Each(by_bridge),
    ),
];

/// Of each kind.
const COUNT: u64 = 200;

fn by(scene: &Scene, entry: Entry) -> Result<()> {
    let refused = forged::refused(scene, entry, COUNT)?;
    ensure!(
        refused.packets == COUNT * u64::from(refused.kinds),
        "{refused:?}"
    );
    Ok(())
}

fn by_uplink(scene: &Scene) -> Result<()> {
    by(scene, Entry::Uplink)
}

fn by_veth(scene: &Scene) -> Result<()> {
    by(scene, Entry::Veth)
}

fn by_bridge(scene: &Scene) -> Result<()> {
    by(scene, Entry::Bridge)
}
