//! A few specs of each kind of Kubernetes' own network suite, in the mode in
//! force. All of them: `make test-conformance`.

use anyhow::{Result, ensure};
use veer_e2e_cluster::paths;
use veer_e2e_tests::conformance::{self, Plan, Scope};

use crate::scene::{Scene, Test};

/// All tests.
pub(crate) const TESTS: [(&str, Test); 1] = [(
    "kubernetes_own_quick_conformance_specs_pass",
    Test::Once(quick),
)];

fn quick(scene: &Scene) -> Result<()> {
    let folder = paths::output().join("judge").join(scene.mode.name());
    let specs = conformance::run(&scene.lab, &Plan::of(Scope::Quick), &folder)?;
    let failed: Vec<String> = specs
        .iter()
        .filter(|s| !s.passed())
        .map(|s| format!("{} {}: {}", s.state, s.name, s.message))
        .collect();
    ensure!(
        failed.is_empty(),
        "logs are in {}:\n{}",
        folder.display(),
        failed.join("\n")
    );
    Ok(())
}
