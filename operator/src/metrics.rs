//! Counters and gauges of the operator.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of a reconciliation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Run {
    controller: &'static str,
    result: &'static str,
}

/// All metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    runs: Family<Run, Counter>,
    leader: Gauge<i64, AtomicI64>,
    claims: Gauge<i64, AtomicI64>,
    identities: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// All at zero, and where they are read.
    pub(crate) fn new() -> (Self, Registry) {
        let mut registry = Registry::with_prefix("veer_operator");
        let (runs, leader) = (Family::default(), Gauge::default());
        let (claims, identities) = (Gauge::default(), Gauge::default());
        registry.register(
            "reconciliations",
            "Reconciliations by controller and result (ok, or a category of error)",
            Family::clone(&runs),
        );
        registry.register("leader", "1 while this replica leads", leader.clone());
        registry.register(
            "pod_cidr_claims",
            "Blocks of pod addresses claimed",
            claims.clone(),
        );
        registry.register("identities", "Security identities", identities.clone());
        let metrics = Self {
            runs,
            leader,
            claims,
            identities,
        };
        (metrics, registry)
    }

    /// Counts a reconciliation.
    pub(crate) fn ran(&self, controller: &'static str, result: &'static str) {
        self.runs.get_or_create(&Run { controller, result }).inc();
    }

    /// Says whether this replica leads.
    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Says how many blocks are claimed.
    pub(crate) fn claims(&self, count: usize) {
        self.claims.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Says how many identities there are.
    pub(crate) fn identities(&self, count: usize) {
        self.identities
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
