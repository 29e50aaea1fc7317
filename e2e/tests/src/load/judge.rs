//! What became of a load, and whether that is harm.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::Family;
use veer_e2e_load::report::{End, MOMENT_MS, Moment, PlaceReport, Side, Span};

use super::plan::{Path, Planned};

/// A gap that is always usual.
const HARMLESS: Duration = Duration::from_millis(50);

/// How long gaps are on this machine. Used in reports only: a longer gap is reported
/// but is no failure, since a busy machine causes it as well as a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The longest gap on the undisturbed cluster, without what its ends were
    /// not running: the generator's own.
    pub own: Duration,
    /// Three times that, or 50 ms when that is more.
    pub usual: Duration,
}

impl Limit {
    /// Before anything is known.
    pub(super) const NONE: Self = Self {
        own: Duration::MAX,
        usual: Duration::MAX,
    };

    /// By a report of the undisturbed cluster.
    pub(super) fn of(report: &Report) -> Self {
        let own = report.longest_gap_of_network();
        Self {
            own,
            usual: HARMLESS.max(own * 3),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "own longest gap {}, usual up to {}",
            millis(self.own),
            millis(self.usual)
        )
    }
}

/// A time in milliseconds, for people.
pub(super) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// A time between two arrivals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// How long.
    pub length: Duration,
    /// When it ended, from the beginning of the load.
    pub ended: Duration,
    /// The part of it in which an end of the flow was not running: what a
    /// machine that had no time for the generator adds to a gap says nothing
    /// of the network.
    pub paused: Duration,
}

impl Gap {
    fn new(gap: Span, began: u64, pauses: &[&[Span]]) -> Self {
        Self {
            length: Duration::from_nanos(gap.length()),
            ended: Duration::from_nanos(gap.to.saturating_sub(began)),
            paused: Duration::from_nanos(within(gap, pauses)),
        }
    }

    fn of_network(self) -> Duration {
        self.length.saturating_sub(self.paused)
    }
}

/// How much of a stretch some others cover together, nanoseconds.
fn within(stretch: Span, others: &[&[Span]]) -> u64 {
    let mut spans: Vec<Span> = others
        .iter()
        .flat_map(|o| o.iter().copied())
        .filter(|o| o.to > stretch.from && o.from < stretch.to)
        .collect();
    spans.sort_by_key(|s| s.from);
    let (mut covered, mut reached) = (0, stretch.from);
    for span in spans {
        let to = span.to.min(stretch.to);
        covered += to.saturating_sub(span.from.max(reached));
        reached = reached.max(to);
    }
    covered
}

/// One direction of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Datagrams, messages or octets sent.
    pub sent: u64,
    /// The same, arrived, each once.
    pub received: u64,
    /// Datagrams that came more than once.
    pub duplicated: u64,
    /// Datagrams that one sent later overtook.
    pub reordered: u64,
    /// What arrived as something else than was sent, or from elsewhere.
    pub corrupted: u64,
    /// The longest times between two arrivals, longest first.
    pub gaps: Vec<Gap>,
    /// Arrivals over time, per [`MOMENT_MS`].
    pub timeline: Vec<Moment>,
}

impl Way {
    fn new(from: &End, to: &End, began: u64, pauses: &[&[Span]]) -> Self {
        let gap = |span: &Span| Gap::new(*span, began, pauses);
        Self {
            sent: from.sent,
            received: to.received,
            duplicated: to.duplicated,
            reordered: to.reordered,
            corrupted: to.corrupted,
            gaps: to.gaps.iter().map(gap).collect(),
            timeline: to.timeline.clone(),
        }
    }

    fn longest_gap(&self) -> Gap {
        self.gaps.first().copied().unwrap_or_default()
    }

    /// What was sent and did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

/// A flow and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Its path.
    pub path: Path,
    /// The family of its addresses.
    pub family: Family,
    /// `udp`, `echo` or `bulk`.
    pub kind: &'static str,
    /// There and back; of an echo the round trip only.
    pub ways: Vec<Way>,
    /// Errors that ended its connection, at either end.
    pub resets: Vec<String>,
}

impl Flow {
    /// For people.
    pub fn name(&self) -> String {
        format!("{} {} {}", self.path.name(), self.family, self.kind)
    }

    fn harm(&self) -> Vec<String> {
        let name = self.name();
        let mut harm: Vec<String> = self.resets.iter().map(|r| format!("{name}: {r}")).collect();
        for (way, direction) in self.ways.iter().zip(["there", "back"]) {
            let mut say = |what: String| harm.push(format!("{name} {direction}: {what}"));
            if way.sent == 0 {
                say("nothing was sent".to_owned());
            }
            for (count, what) in [
                (way.lost(), "lost"),
                (way.duplicated, "came twice"),
                (way.corrupted, "are not what was sent"),
            ] {
                if count > 0 {
                    say(format!("{count} of {} {what}", way.sent));
                }
            }
        }
        harm
    }
}

/// What became of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When it began, nanoseconds since 1970.
    pub began: u64,
    /// How long it ran.
    pub time: Duration,
    /// What gaps are usual.
    pub limit: Limit,
    /// All flows.
    pub flows: Vec<Flow>,
    /// Places whose buffers overflowed, and how often: what is lost there was
    /// lost by the generator.
    pub overflown: Vec<(String, u64)>,
}

impl Report {
    pub(super) fn new(
        began: u64,
        ended: u64,
        limit: Limit,
        plan: &[Planned],
        places: &[(String, PlaceReport)],
    ) -> Result<Self> {
        let overflown = places.iter().filter(|(_, p)| p.overflown > 0);
        let overflown = overflown.map(|(n, p)| (n.clone(), p.overflown)).collect();
        let flows: Result<Vec<Flow>> = plan
            .iter()
            .map(|planned| {
                let end = |side| {
                    let wanted = |e: &&End| e.flow == planned.spec.flow && e.side == side;
                    places
                        .iter()
                        .find_map(|(_, p)| Some((p.ends.iter().find(wanted)?, &p.pauses[..])))
                        .with_context(|| format!("{}: no report of {side:?}", planned.name()))
                };
                let (client, asking) = end(Side::Client)?;
                let (server, asked) = end(Side::Server)?;
                let both = [asking, asked];
                let ways = match planned.kind {
                    "echo" => vec![Way::new(client, client, began, &both)],
                    // The kernel says when a datagram has come.
                    "udp" => vec![
                        Way::new(client, server, began, &both[..1]),
                        Way::new(server, client, began, &both[1..]),
                    ],
                    _ => vec![
                        Way::new(client, server, began, &both),
                        Way::new(server, client, began, &both),
                    ],
                };
                Ok(Flow {
                    path: planned.path,
                    family: planned.family,
                    kind: planned.kind,
                    ways,
                    resets: client
                        .resets
                        .iter()
                        .chain(&server.resets)
                        .cloned()
                        .collect(),
                })
            })
            .collect();
        Ok(Self {
            began,
            time: Duration::from_nanos(ended.saturating_sub(began)),
            limit,
            flows: flows?,
            overflown,
        })
    }

    /// The same of some paths only.
    #[must_use]
    pub fn only(&self, paths: &[Path]) -> Self {
        let mut some = self.clone();
        some.flows.retain(|f| paths.contains(&f.path));
        some
    }

    /// It is an error when anything was lost, doubled, altered or reset.
    pub fn unharmed(&self) -> Result<()> {
        let harm = self.harm();
        ensure!(harm.is_empty(), "{}", harm.join("\n"));
        Ok(())
    }

    /// All harm, or that there was none.
    pub fn losses(&self) -> String {
        let harm = self.harm();
        if harm.is_empty() {
            "nothing was lost".to_owned()
        } else {
            harm.join("\n")
        }
    }

    fn harm(&self) -> Vec<String> {
        let mut harm: Vec<String> = self.flows.iter().flat_map(Flow::harm).collect();
        harm.extend(
            self.overflown
                .iter()
                .map(|(name, count)| format!("{name} had no room for {count} datagrams")),
        );
        harm
    }

    fn ways(&self) -> impl Iterator<Item = (&Flow, &Way)> {
        self.flows
            .iter()
            .flat_map(|f| f.ways.iter().map(move |w| (f, w)))
    }

    /// What the flows of a family carried and lost.
    fn figure_of(&self, family: Family) -> Option<String> {
        let own = || self.ways().filter(move |(f, _)| f.family == family);
        own().next()?;
        let sum = |kind: &str, count: fn(&Way) -> u64| -> u64 {
            let ways = own().filter(|(f, _)| f.kind == kind);
            ways.map(|(_, way)| count(way)).sum()
        };
        let lost: u64 = own().map(|(_, way)| way.lost()).sum();
        let flows = self.flows.iter().filter(|f| f.family == family);
        let resets: usize = flows.map(|f| f.resets.len()).sum();
        let of_sum = sum("bulk", |w| w.received) / 1_000_000;
        Some(format!(
            "{family} {} datagrams, {} echoes, {of_sum} MB checked: {lost} lost, {resets} resets, \
             {} reordered",
            sum("udp", |w| w.sent),
            sum("echo", |w| w.sent),
            sum("udp", |w| w.reordered),
        ))
    }

    fn longest(&self) -> Option<(&Flow, &Way)> {
        self.ways().max_by_key(|(_, w)| w.longest_gap().length)
    }

    /// The longest gap of all.
    pub fn longest_gap(&self) -> Option<Duration> {
        self.longest().map(|(_, way)| way.longest_gap().length)
    }

    /// The longest gap of all without what a flow's ends were not running.
    pub fn longest_gap_of_network(&self) -> Duration {
        let gaps = self.ways().flat_map(|(_, way)| &way.gaps);
        gaps.map(|g| g.of_network()).max().unwrap_or_default()
    }

    /// All of it in a line, for tables.
    pub fn figure(&self) -> String {
        let families = Family::ALL.into_iter().filter_map(|f| self.figure_of(f));
        let families: Vec<String> = families.collect();
        let gap = self.longest().map_or_else(String::new, |(flow, way)| {
            let gap = way.longest_gap();
            let paused = if gap.length > self.limit.usual {
                format!(
                    ", ended {:.2} s after the beginning, for {} of it an end was not running",
                    gap.ended.as_secs_f64(),
                    millis(gap.paused)
                )
            } else {
                String::new()
            };
            format!(
                "longest gap {} ({}{paused})",
                millis(gap.length),
                flow.name()
            )
        });
        format!(
            "{:.1} s: {}; {gap}",
            self.time.as_secs_f64(),
            families.join("; ")
        )
    }

    /// Octets per second and longest gap over time, of all flows together or
    /// of those that `which` wants: one value per [`MOMENT_MS`].
    pub fn timeline(&self, which: impl Fn(&Flow) -> bool) -> Vec<(f64, Duration)> {
        let mut line: Vec<(f64, Duration)> = Vec::new();
        for (_, way) in self.ways().filter(|(f, _)| which(f)) {
            for (index, moment) in way.timeline.iter().enumerate() {
                if line.len() <= index {
                    line.resize(index + 1, (0.0, Duration::ZERO));
                }
                let per_second = f64::from(moment.octets) * 1000.0 / MOMENT;
                line[index].0 += per_second;
                let gap = Duration::from_micros(moment.gap_us.into());
                line[index].1 = line[index].1.max(gap);
            }
        }
        line
    }
}

/// [`MOMENT_MS`] as a number to divide by.
const MOMENT: f64 = 100.0;
const _: () = assert!(MOMENT_MS == 100, "MOMENT is MOMENT_MS");

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(length: u64, paused: u64) -> Gap {
        Gap {
            length: Duration::from_millis(length),
            ended: Duration::from_secs(1),
            paused: Duration::from_millis(paused),
        }
    }

    fn way() -> Way {
        Way {
            sent: 100,
            received: 100,
            duplicated: 0,
            reordered: 3,
            corrupted: 0,
            gaps: vec![gap(20, 0)],
            timeline: vec![
                Moment {
                    octets: 1000,
                    gap_us: 20_000,
                };
                2
            ],
        }
    }

    fn report(change: impl Fn(&mut Way), resets: &[&str]) -> Report {
        let mut bad = way();
        change(&mut bad);
        Report {
            began: 0,
            time: Duration::from_secs(1),
            limit: Limit {
                own: Duration::from_millis(20),
                usual: Duration::from_millis(60),
            },
            flows: vec![Flow {
                path: Path::CrossNode,
                family: Family::V6,
                kind: "udp",
                ways: vec![way(), bad],
                resets: resets.iter().map(|r| (*r).to_owned()).collect(),
            }],
            overflown: Vec::new(),
        }
    }

    #[test]
    fn every_kind_of_harm_is_seen_and_named() {
        type Change = fn(&mut Way);
        let none: Change = |_| {};
        assert!(report(none, &[]).unharmed().is_ok());
        let cases: [(Change, &[&str], &str); 5] = [
            (|w| w.received = 99, &[], "1 of 100 lost"),
            (|w| w.duplicated = 1, &[], "came twice"),
            (|w| w.corrupted = 2, &[], "not what was sent"),
            (|w| w.sent = 0, &[], "nothing was sent"),
            (none, &["connection reset"], "connection reset"),
        ];
        for (change, resets, words) in cases {
            let error = report(change, resets).unharmed().expect_err(words);
            let text = error.to_string();
            assert!(
                text.contains(words) && text.contains("cross node IPv6"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_long_gap_is_told_with_the_part_in_which_an_end_did_not_run_and_is_no_harm() {
        let paused = report(|w| w.gaps = vec![gap(9_100, 41), gap(60, 0)], &[]);
        assert!(paused.unharmed().is_ok());
        let figure = paused.figure();
        assert!(figure.contains("9100.0 ms"), "{figure}");
        assert!(figure.contains("for 41.0 ms of it"), "{figure}");
    }

    #[test]
    fn pauses_of_both_ends_count_once_and_only_within_the_gap() {
        let span = |from, to| Span { from, to };
        let asking = [span(0, 120), span(150, 160), span(300, 900)];
        let asked = [span(110, 130), span(155, 158), span(190, 250)];
        let gap = span(100, 200);
        assert_eq!(within(gap, &[&asking, &asked]), 30 + 10 + 10);
        assert_eq!(within(gap, &[&asked]), 20 + 3 + 10);
        assert_eq!(within(gap, &[]), 0);
    }

    #[test]
    fn the_time_line_adds_octets_and_takes_the_longest_gap() {
        let line = report(|w| w.timeline[1].gap_us = 50_000, &[]).timeline(|_| true);
        assert_eq!(line.len(), 2);
        assert!((line[0].0 - 20_000.0).abs() < 1e-9);
        assert_eq!(line[1].1, Duration::from_millis(50));
    }

    #[test]
    fn gaps_up_to_fifty_milliseconds_are_usual() {
        let mut own = report(|_| {}, &[]);
        assert_eq!(Limit::of(&own).usual, Duration::from_millis(60));
        for way in &mut own.flows[0].ways {
            way.gaps = vec![gap(90, 87), gap(4, 0)];
        }
        assert_eq!(Limit::of(&own).usual, HARMLESS);
    }
}
