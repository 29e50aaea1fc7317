//! Who talks to whom, summed by namespaces: counters that never go down while the agent
//! runs, although the map forgets.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use veer_agent_core::index::IdentityRecord;
use veer_agent_kernel::datapath::CpuTalk;
use veer_bpf_common::{
    identity::Identity,
    outcome::FIRST_REASON,
    tables::{Counter, Talk},
};
use veer_crds::labels::NAMESPACE;

/// Series of one metric. They stay as long as the agent runs, so a cluster whose
/// namespaces come and go must not add to them without end.
const MOST_SERIES: usize = 500;
/// Those that have names of their own: one of each verdict is for the rest.
const NAMED_SERIES: usize = MOST_SERIES - 2;
/// Both ends of the rest.
const OTHER: &str = "other";
/// An end whose identity is not known, or is none that the agent knows.
const UNKNOWN: &str = "unknown";

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Series {
    source: String,
    destination: String,
    dropped: bool,
}

impl Series {
    /// The series of a row. `names` has what identities are called.
    fn of(talk: &Talk, names: &HashMap<u32, String>) -> Self {
        let name = |identity| names.get(&identity).map_or(UNKNOWN, String::as_str);
        Self {
            source: name(talk.source).to_owned(),
            destination: name(talk.destination).to_owned(),
            dropped: u32::from(talk.outcome) >= FIRST_REASON,
        }
    }

    /// The one for what has no room.
    fn rest(dropped: bool) -> Self {
        Self {
            source: OTHER.to_owned(),
            destination: OTHER.to_owned(),
            dropped,
        }
    }

    /// Its labels, as a scrape has them.
    pub(super) fn labels(&self) -> [(&str, &str); 3] {
        [
            ("source_namespace", &self.source),
            ("destination_namespace", &self.destination),
            ("verdict", if self.dropped { "drop" } else { "forward" }),
        ]
    }
}

/// Sums since the agent started.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// The rows of the map when it was last read.
    last: HashMap<CpuTalk, Counter>,
    sums: BTreeMap<Series, Counter>,
}

impl Totals {
    /// Adds what each row grew by. `rows` are all that the map has now; what is no longer
    /// among them begins at zero when it comes back.
    pub(super) fn take_in(&mut self, rows: Vec<(CpuTalk, Counter)>, names: &HashMap<u32, String>) {
        let now: HashMap<CpuTalk, Counter> = rows.into_iter().collect();
        let mut grown: BTreeMap<Series, Counter> = BTreeMap::new();
        for (row, counter) in &now {
            let growth = growth(self.last.get(row), counter);
            if growth != Counter::default() {
                *grown.entry(Series::of(&row.talk, names)).or_default() += growth;
            }
        }
        let mut grown: Vec<_> = grown.into_iter().collect();
        // Where there is not room for all of them, those with the most bytes get it.
        grown.sort_by_key(|(_, growth)| Reverse(growth.bytes));
        for (series, growth) in grown {
            let series = self.admitted(series);
            *self.sums.entry(series).or_default() += growth;
        }
        self.last = now;
    }

    /// The series itself where it has or finds room, else the one for the rest.
    fn admitted(&self, series: Series) -> Series {
        if self.sums.len() < NAMED_SERIES || self.sums.contains_key(&series) {
            series
        } else {
            Series::rest(series.dropped)
        }
    }

    /// The sums as they are.
    pub(super) const fn sums(&self) -> &BTreeMap<Series, Counter> {
        &self.sums
    }
}

/// What a row grew by. One that is lower than before was forgotten meanwhile, and what it
/// has is new.
fn growth(last: Option<&Counter>, now: &Counter) -> Counter {
    let grown = last.and_then(|last| {
        Some(Counter {
            packets: now.packets.checked_sub(last.packets)?,
            bytes: now.bytes.checked_sub(last.bytes)?,
        })
    });
    grown.unwrap_or(*now)
}

/// What the identities of rows are called: pods by their namespace, others by their
/// reserved name.
pub(super) fn names<'a>(
    rows: &[(CpuTalk, Counter)],
    identities: impl Iterator<Item = &'a IdentityRecord>,
) -> HashMap<u32, String> {
    let ends = rows
        .iter()
        .flat_map(|(row, _)| [row.talk.source, row.talk.destination]);
    let asked: HashSet<u32> = ends.collect();
    let pods = identities
        .filter(|record| asked.contains(&record.number.get()))
        .filter_map(|record| Some((record.number.get(), record.labels.get(NAMESPACE)?.clone())));
    let reserved = Identity::RESERVED.iter();
    pods.chain(reserved.map(|(number, name)| (number.get(), (*name).to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use veer_bpf_common::outcome::{DropReason, Program, Verdict};

    use super::*;

    fn talk(source: u32, destination: u32, outcome: u32) -> Talk {
        Talk {
            source,
            destination,
            program: Program::PodEgress as u16,
            outcome: u16::try_from(outcome).unwrap(),
        }
    }

    /// A row with packets of 100 bytes.
    fn row(source: u32, destination: u32, packets: u64) -> (CpuTalk, Counter) {
        let talk = talk(source, destination, Verdict::Deliver as u32);
        (CpuTalk { cpu: 0, talk }, counter(packets))
    }

    fn dropped(source: u32, destination: u32, packets: u64) -> (CpuTalk, Counter) {
        let talk = talk(source, destination, DropReason::SpoofedAddress as u32);
        (CpuTalk { cpu: 0, talk }, counter(packets))
    }

    fn counter(packets: u64) -> Counter {
        Counter {
            packets,
            bytes: packets * 100,
        }
    }

    /// Identities from 1000 on are of namespaces that are called by the number.
    fn named(rows: &[(CpuTalk, Counter)]) -> HashMap<u32, String> {
        let ends = rows
            .iter()
            .flat_map(|(row, _)| [row.talk.source, row.talk.destination]);
        let pods = ends.filter(|number| *number >= 1000);
        pods.map(|number| (number, format!("n{number}"))).collect()
    }

    fn take_in(totals: &mut Totals, rows: Vec<(CpuTalk, Counter)>) {
        let names = named(&rows);
        totals.take_in(rows, &names);
    }

    fn sum(totals: &Totals) -> Counter {
        totals.sums().values().copied().sum()
    }

    #[test]
    fn sums_grow_by_what_rows_grow_and_never_shrink_when_the_map_forgets() {
        let mut totals = Totals::default();
        for (rows, expected) in [
            (vec![row(1000, 1001, 10)], 10),
            // Nobody sent anything.
            (vec![row(1000, 1001, 10)], 10),
            (vec![row(1000, 1001, 25)], 25),
            // Forgotten and back between two scrapes.
            (vec![row(1000, 1001, 4)], 29),
            (vec![row(1000, 1001, 5)], 30),
            // Forgotten when it is read, and back with more than it had.
            (vec![], 30),
            (vec![row(1000, 1001, 7)], 37),
        ] {
            take_in(&mut totals, rows);
            assert_eq!(sum(&totals), counter(expected));
        }
    }

    #[test]
    fn what_one_cpu_forgets_is_not_counted_again_of_the_others() {
        let on = |cpu, packets| {
            let (row, counter) = row(1000, 1001, packets);
            (CpuTalk { cpu, ..row }, counter)
        };
        let mut totals = Totals::default();
        take_in(&mut totals, vec![on(0, 1_000_000), on(1, 10)]);
        take_in(&mut totals, vec![on(0, 1_000_001)]);
        assert_eq!(sum(&totals), counter(1_000_011));
    }

    #[test]
    fn a_row_whose_bytes_alone_are_lower_was_forgotten_too() {
        let last = Counter {
            packets: 2,
            bytes: 3000,
        };
        assert_eq!(growth(Some(&last), &counter(3)), counter(3));
        assert_eq!(growth(None, &counter(3)), counter(3));
    }

    #[test]
    fn nothing_is_kept_of_rows_that_are_gone() {
        let mut totals = Totals::default();
        take_in(&mut totals, vec![row(1000, 1001, 1), row(1001, 1000, 1)]);
        assert_eq!(totals.last.len(), 2);
        take_in(&mut totals, vec![row(1001, 1000, 1)]);
        assert_eq!(totals.last.len(), 1);
        assert_eq!(sum(&totals), counter(2));
    }

    #[test]
    fn rows_of_the_same_namespaces_are_one_series_and_drops_another() {
        let rows = vec![row(1000, 1, 1), row(1001, 1, 2), dropped(1000, 1, 4)];
        let shop = || "shop".to_owned();
        let names = HashMap::from([(1000, shop()), (1001, shop()), (1, "host".to_owned())]);
        let mut totals = Totals::default();
        totals.take_in(rows, &names);
        let told: Vec<_> = totals
            .sums()
            .iter()
            .map(|(series, sum)| (series.labels().map(|(_, value)| value), *sum))
            .collect();
        assert_eq!(
            told,
            [
                (["shop", "host", "forward"], counter(3)),
                (["shop", "host", "drop"], counter(4)),
            ]
        );
    }

    #[test]
    fn what_finds_no_room_is_summed_and_what_is_most_finds_it_first() {
        let rest = |totals: &Totals, dropped| totals.sums().get(&Series::rest(dropped)).copied();
        let many = u32::try_from(MOST_SERIES).unwrap() + 100;
        let left_out = MOST_SERIES + 100 - NAMED_SERIES;
        let left_out = (1..=many).map(u64::from).take(left_out).sum();
        // The last ones have the most packets.
        let mut rows: Vec<_> = (1..=many)
            .map(|n| row(1000 + n, 1000, u64::from(n)))
            .collect();
        let mut totals = Totals::default();
        take_in(&mut totals, rows.clone());
        assert_eq!(rest(&totals, false), Some(counter(left_out)));
        assert_eq!(rest(&totals, true), None);
        assert_eq!(totals.sums().len(), NAMED_SERIES + 1);

        // What comes later joins the rest, however much it is; the others go on.
        let before = sum(&totals);
        rows.extend((1..=many).map(|n| dropped(1000 + n, 1000, 1_000_000)));
        let last = usize::try_from(many).unwrap() - 1;
        rows[last].1 += counter(5);
        take_in(&mut totals, rows);
        assert_eq!(totals.sums().len(), MOST_SERIES);
        assert_eq!(rest(&totals, false), Some(counter(left_out)));
        let drops = counter(u64::from(many) * 1_000_000);
        assert_eq!(rest(&totals, true), Some(drops));
        let grown = sum(&totals).packets - before.packets;
        assert_eq!(grown, drops.packets + 5);
    }

    #[test]
    fn pods_are_called_by_their_namespace_and_others_by_their_reserved_name() {
        let record = |number, namespace: &str| IdentityRecord {
            number: Identity::new(number).unwrap(),
            labels: BTreeMap::from([
                (NAMESPACE.to_owned(), namespace.to_owned()),
                ("app".to_owned(), "cart".to_owned()),
            ]),
            active: false,
            created: 0,
        };
        let records = [record(1000, "shop"), record(1001, "bank")];
        let rows = [row(1000, 2, 1), row(0, 6, 1), row(1002, 1, 1)];
        let names = names(&rows, records.iter());
        let series = rows
            .each_ref()
            .map(|(row, _)| Series::of(&row.talk, &names));
        let ends = series.each_ref().map(|s| [&*s.source, &*s.destination]);
        let expected = [
            ["shop", "world"],
            ["unknown", "remote-node"],
            ["unknown", "host"],
        ];
        assert_eq!(ends, expected);
        // Identities that nobody asks for are not copied.
        assert_eq!(names.get(&1001), None);
    }
}
