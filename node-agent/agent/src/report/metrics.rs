//! The agent's metrics. A scrape reads the maps, the nftables table and the agent's
//! state, all of it before the first line is written, so that no lock is held over the
//! encoding. Nothing is counted here but who talks to whom, since the map forgets that.

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use veer_agent_api::CounterRow;
use veer_agent_kernel::lock::Lock;
use veer_bpf_common::tables::Counter;

use super::{
    counters::readable_counters,
    sources::Sources,
    traffic::{Series, Totals, names},
};

/// Reads at each scrape.
pub(crate) struct Scraped {
    sources: Sources,
    traffic: Lock<Totals>,
}

impl Scraped {
    /// What this agent has.
    pub(crate) fn new(sources: Sources) -> Self {
        Self {
            sources,
            traffic: Lock::default(),
        }
    }

    /// Who talks to whom, since the agent started. Where the map cannot be read, what was
    /// counted before stays.
    fn traffic(&self) -> BTreeMap<Series, Counter> {
        // Held over the reading: what another scrape read earlier must not come later, as
        // it would be taken for rows that began anew.
        let mut totals = self.traffic.lock();
        match self.sources.maps.traffic() {
            Ok(rows) => {
                let names = names(&rows, self.sources.index.read().identities.iter());
                totals.take_in(rows, &names);
            }
            Err(error) => tracing::warn!(%error, "cannot read who talks to whom"),
        }
        totals.sums().clone()
    }
}

impl Debug for Scraped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scraped").finish_non_exhaustive()
    }
}

impl Collector for Scraped {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Figures::read(&self.sources, self.traffic()).encode(encoder)
    }
}

/// All values at one time.
#[derive(Debug, Default)]
struct Figures {
    /// Packets and bytes by program and outcome, without those that are zero.
    counters: Vec<CounterRow>,
    /// Packets and bytes by who sends them to whom.
    traffic: BTreeMap<Series, Counter>,
    /// Writes and repairs, by kind.
    changes: BTreeMap<String, u64>,
    /// Whether ADD can be served.
    ready: bool,
    /// Pods wired.
    endpoints: usize,
    /// Identities known.
    identities: usize,
}

impl Figures {
    fn read(sources: &Sources, traffic: BTreeMap<Series, Counter>) -> Self {
        // Each lock is released before the next one is taken.
        let counters = readable_counters(&sources.maps);
        let identities = sources.index.read().identities.len();
        let ready = sources.plan.read().not_ready.is_empty();
        let endpoints = sources.store.read().len();
        Self {
            counters,
            traffic,
            changes: sources.repairs.counts(),
            ready,
            endpoints,
            identities,
        }
    }
}

impl Collector for Figures {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let rows = || {
            self.counters.iter().map(|row| {
                let labels = [("program", &*row.program), ("outcome", &*row.outcome)];
                (labels, row)
            })
        };
        counters(
            &mut to,
            "veer_packets",
            "Packets by program and outcome.",
            rows().map(|(labels, row)| (labels, row.packets)),
        )?;
        counters(
            &mut to,
            "veer_bytes",
            "Bytes by program and outcome.",
            rows().map(|(labels, row)| (labels, row.bytes)),
        )?;
        let traffic = || {
            self.traffic
                .iter()
                .map(|(series, sum)| (series.labels(), sum))
        };
        counters(
            &mut to,
            "veer_traffic_packets",
            "Packets by namespaces and verdict.",
            traffic().map(|(labels, sum)| (labels, sum.packets)),
        )?;
        counters(
            &mut to,
            "veer_traffic_bytes",
            "Bytes by namespaces and verdict.",
            traffic().map(|(labels, sum)| (labels, sum.bytes)),
        )?;
        let changes = self.changes.iter();
        counters(
            &mut to,
            "veer_changes",
            "What was written or put back, by kind.",
            changes.map(|(kind, times)| ([("kind", kind.as_str())], *times)),
        )?;
        for (name, help, value) in [
            (
                "veer_ready",
                "Whether pods can be wired.",
                usize::from(self.ready),
            ),
            ("veer_endpoints", "Pods wired on this node.", self.endpoints),
            ("veer_identities", "Identities known here.", self.identities),
        ] {
            let gauge = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        Ok(())
    }
}

/// A family of counters; its samples get `_total` behind the name.
fn counters<'a, const N: usize>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = ([(&'a str, &'a str); N], u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use prometheus_client::{encoding::text, registry::Registry};
    use veer_agent_kernel::datapath::CpuTalk;
    use veer_bpf_common::{
        outcome::{DropReason, Verdict},
        tables::Talk,
    };

    use super::*;

    /// What releases without prometheus-client wrote, for the same values, in
    /// version 0.0.4 of Prometheus' text format.
    const BEFORE: &str = r#"# HELP veer_packets_total Packets by program and outcome.
# TYPE veer_packets_total counter
veer_packets_total{program="from_pod",outcome="native"} 7
veer_packets_total{program="nftables",outcome="forged source"} 2
# HELP veer_bytes_total Bytes by program and outcome.
# TYPE veer_bytes_total counter
veer_bytes_total{program="from_pod",outcome="native"} 700
veer_bytes_total{program="nftables",outcome="forged source"} 120
# HELP veer_changes_total What was written or put back, by kind.
# TYPE veer_changes_total counter
veer_changes_total{kind="map entries"} 3
# HELP veer_ready Whether pods can be wired.
# TYPE veer_ready gauge
veer_ready 1
# HELP veer_endpoints Pods wired on this node.
# TYPE veer_endpoints gauge
veer_endpoints 4
# HELP veer_identities Identities known here.
# TYPE veer_identities gauge
veer_identities 5
"#;

    fn row(program: &str, outcome: &str, packets: u64, bytes: u64) -> CounterRow {
        CounterRow {
            program: program.into(),
            outcome: outcome.into(),
            drop: false,
            packets,
            bytes,
        }
    }

    fn page(figures: Figures) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(figures));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        page
    }

    /// Per sample, with its labels: type, help and value. Metadata names the
    /// samples of a counter in version 0.0.4, and their family in `OpenMetrics`.
    fn meaning(page: &str, open_metrics: bool) -> BTreeMap<String, [String; 3]> {
        let (mut kinds, mut helps) = (BTreeMap::new(), BTreeMap::new());
        let mut samples = BTreeMap::new();
        for line in page.lines().filter(|line| *line != "# EOF") {
            if let Some(line) = line.strip_prefix("# HELP ") {
                let (name, help) = line.split_once(' ').unwrap();
                assert_eq!(helps.insert(name, help), None, "{name} is described twice");
            } else if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, kind) = line.split_once(' ').unwrap();
                assert_eq!(kinds.insert(name, kind), None, "{name} has two types");
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let name = sample.split('{').next().unwrap();
                let family = if open_metrics {
                    name.strip_suffix("_total").unwrap_or(name)
                } else {
                    name
                };
                let told = [kinds[family], helps[family], value].map(String::from);
                assert_eq!(samples.insert(sample.to_owned(), told), None, "{sample}");
            }
        }
        samples
    }

    #[test]
    fn names_labels_types_helps_and_values_are_those_of_earlier_releases() {
        let page = page(Figures {
            counters: vec![
                row("from_pod", "native", 7, 700),
                row("nftables", "forged source", 2, 120),
            ],
            traffic: BTreeMap::new(),
            changes: BTreeMap::from([("map entries".into(), 3)]),
            ready: true,
            endpoints: 4,
            identities: 5,
        });
        assert_eq!(meaning(&page, true), meaning(BEFORE, false));
        // A parser of the format requires this.
        assert!(page.ends_with("\n# EOF\n"), "{page}");
        let families: Vec<_> = page
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE "))
            .collect();
        assert_eq!(
            families,
            [
                "veer_packets counter",
                "veer_bytes counter",
                "veer_traffic_packets counter",
                "veer_traffic_bytes counter",
                "veer_changes counter",
                "veer_ready gauge",
                "veer_endpoints gauge",
                "veer_identities gauge",
            ]
        );
    }

    #[test]
    fn who_talks_to_whom_is_told_by_namespaces_and_verdict() {
        let row = |outcome: u32, packets, bytes| {
            let talk = Talk {
                source: 40_000,
                destination: 2,
                program: 0,
                outcome: u16::try_from(outcome).unwrap(),
            };
            (CpuTalk { cpu: 0, talk }, Counter { packets, bytes })
        };
        let names = [(40_000, "shop"), (2, "world")].map(|(n, name)| (n, name.to_owned()));
        let rows = vec![
            row(Verdict::ToStack as u32, 3, 300),
            row(DropReason::SpoofedAddress as u32, 1, 60),
        ];
        let mut totals = Totals::default();
        totals.take_in(rows, &HashMap::from(names));
        let page = page(Figures {
            traffic: totals.sums().clone(),
            ..Figures::default()
        });
        let samples: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("veer_traffic_"))
            .collect();
        let ends = r#"source_namespace="shop",destination_namespace="world""#;
        assert_eq!(
            samples,
            [
                format!(r#"packets_total{{{ends},verdict="forward"}} 3"#),
                format!(r#"packets_total{{{ends},verdict="drop"}} 1"#),
                format!(r#"bytes_total{{{ends},verdict="forward"}} 300"#),
                format!(r#"bytes_total{{{ends},verdict="drop"}} 60"#),
            ]
        );
    }

    #[test]
    fn agent_that_has_just_started_describes_all_families_and_counts_nothing() {
        let page = page(Figures::default());
        for family in [
            "packets",
            "bytes",
            "traffic_packets",
            "traffic_bytes",
            "changes",
        ] {
            assert!(
                page.contains(&format!("# TYPE veer_{family} counter\n")),
                "{page}"
            );
        }
        let samples: Vec<_> = page.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            ["veer_ready 0", "veer_endpoints 0", "veer_identities 0"]
        );
    }
}
