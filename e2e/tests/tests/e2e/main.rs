//! The product on the real cluster. One cluster serves all tests of a run, in
//! the order below: those of the tunnel, those of native routing, and at last
//! the removal. Each test puts the cluster into the mode it needs.
//!
//! Environment: `VEER_E2E_CLUSTER` names a running cluster to use and to leave
//! up (veer is installed there if it is not); `VEER_E2E_KEEP=1` leaves this
//! run's own up; `VEER_E2E_PROXY=iptables` and `VEER_E2E_UNDERLAY=router`
//! choose the cluster, as do `VEER_E2E_FAMILY` (`v4`, `v6` or `dual`, the default) and
//! `VEER_E2E_PRIMARY` (`v4` or `v6`); `VEER_E2E_CLSACT=1` has agents attach programs
//! as before kernel 6.6; `VEER_E2E_PATIENCE=10` makes every deadline ten times as long;
//! `VEER_E2E_PODS` is the number of pods that come and go in the lifecycle's loop
//! (default 120) and on light nodes (default 360).
//! `VEER_E2E_CONTROL=1` puts the bridge plugin in veer's place, to try the tests
//! of services themselves.

mod cases;
mod forged;
mod gitops;
mod host_services;
mod judge;
mod lifecycle;
mod light;
mod monitor;
mod neighbours;
mod paths;
mod removal;
mod security;
mod service_translation;
mod services;
mod traffic;
mod wiring;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use scene::{Needs, Test};
use veer_e2e_tests::{behind, lab::Mode, scene};

/// All tests, in the order in which they run.
fn tests() -> Vec<(String, Needs, Test)> {
    let mut all = Vec::new();
    let mut group = |prefix: &str, needs: Needs, tests: &[(&str, Test)]| {
        for (name, test) in tests {
            all.push((format!("{prefix}::{name}"), needs, *test));
        }
    };
    let tunnel = Needs::mode(Mode::Tunnel);
    let native = Needs::mode(Mode::Native);
    group("tunnel::wiring", tunnel, &wiring::TESTS);
    group("tunnel::paths", tunnel, &paths::IN_TUNNEL);
    group("tunnel::monitor", tunnel, &monitor::IN_TUNNEL);
    group("tunnel::traffic", tunnel, &traffic::TESTS);
    group("tunnel::services", tunnel, &services::TESTS);
    group(
        "tunnel::services_by_kube_proxy",
        tunnel.by_kube_proxy(),
        &services::TESTS,
    );
    group(
        "tunnel::services_strict_rp_filter",
        tunnel.strict(),
        &services::REACH,
    );
    group(
        "tunnel::service_translation",
        tunnel,
        &service_translation::IN_TUNNEL,
    );
    group("tunnel::host_services", tunnel, &host_services::IN_TUNNEL);
    group("tunnel::security", tunnel, &security::TUNNEL);
    group("tunnel::neighbours", tunnel, &neighbours::TESTS);
    group("tunnel::forged", tunnel, &forged::TESTS);
    group("tunnel::cases", tunnel, &cases::TESTS);
    group("tunnel::lifecycle", tunnel, &lifecycle::TESTS);
    group("tunnel::gitops", tunnel, &gitops::TESTS);
    group("tunnel::light", tunnel, &light::TESTS);
    group("tunnel::judge", tunnel, &judge::TESTS);
    group("native::wiring", native, &wiring::EITHER);
    group("native::paths", native, &paths::IN_NATIVE);
    group("native::monitor", native, &monitor::IN_NATIVE);
    group("native::traffic", native, &traffic::TESTS);
    group("native::services", native, &services::TESTS);
    group(
        "native::services_by_kube_proxy_strict_rp_filter",
        native.by_kube_proxy().strict(),
        &services::REACH,
    );
    group(
        "native::service_translation",
        native,
        &service_translation::IN_NATIVE,
    );
    group("native::host_services", native, &host_services::IN_NATIVE);
    group("native::security", native, &security::NATIVE);
    group("native::neighbours", native, &neighbours::TESTS);
    group("native::forged", native, &forged::TESTS);
    group("native::judge", native, &judge::TESTS);
    group("switch", native, &paths::SWITCH);
    group("removal", tunnel, &removal::TESTS);
    all
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let cluster = match scene::families() {
        Ok(families) => families,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    // They share a cluster, its mode and its packet counters.
    arguments.test_threads = Some(1);
    let trials = tests()
        .into_iter()
        .filter_map(|(name, needs, test)| {
            let families = test.families(needs, cluster);
            if families.is_empty() {
                return None;
            }
            Some(Trial::test(name, move || {
                test.run(needs, &families)
                    .map_err(|e| format!("{e:#}").into())
            }))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let ended = scene::end();
    if let Err(error) = &ended {
        eprintln!("the cluster could not be removed: {error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
