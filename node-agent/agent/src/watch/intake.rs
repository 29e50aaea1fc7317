//! From a watch's events to changes that can be believed.
//!
//! A list is believed unless it lacks more than half of what is known, or is
//! older than what was seen before and lacks anything at all: so does the list of
//! an API server that starts empty or from a snapshot. Then what it has is taken
//! in, and what it lacks is kept until a list some minutes later lacks it too, or
//! until it is deleted by name. What is this node's own follows every list, for of that
//! this node knows better and writes it again.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use kube::Resource;

use super::source::{Seen, version};
use crate::index::Change;

/// What an object is called in the index, and whether it is this node's own.
pub(super) type Naming<K> = Box<dyn Fn(&K) -> (String, bool) + Send>;

/// What is known of a set of objects.
pub(super) struct Intake<K> {
    /// `None`: every complete list is believed.
    naming: Option<Naming<K>>,
    /// Objects of other nodes by name.
    others: HashSet<String>,
    own: HashMap<String, K>,
    /// How many objects of other nodes an earlier agent knew of; counts until
    /// the first list.
    earlier: usize,
    /// The newest resourceVersion seen.
    newest: u64,
    /// When the first of the doubtful lists came.
    since: Option<Instant>,
    /// When to list again.
    again: Option<Instant>,
    /// How long what a doubtful list lacks is kept.
    confirm: Duration,
}

impl<K: Resource<DynamicType = ()> + Clone> Intake<K> {
    /// One that believes every complete list.
    pub(super) fn trusting() -> Self {
        Self {
            naming: None,
            others: HashSet::new(),
            own: HashMap::new(),
            earlier: 0,
            newest: 0,
            since: None,
            again: None,
            confirm: Duration::ZERO,
        }
    }

    /// One that doubts, as the module says. `earlier`: how many objects of other
    /// nodes there were before this agent; `confirm`: how long what a doubtful list
    /// lacks is kept.
    pub(super) fn doubting(naming: Naming<K>, earlier: usize, confirm: Duration) -> Self {
        Self {
            naming: Some(naming),
            earlier,
            confirm,
            ..Self::trusting()
        }
    }

    /// When a list is wanted although the watch goes on. Asks once per doubt.
    pub(super) fn take_again(&mut self, now: Instant) -> bool {
        let due = self.again.is_some_and(|at| at <= now);
        if due {
            self.again = None;
        }
        due
    }

    /// When [`Self::take_again`] is true.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Takes in what was seen; the second value says why a list is doubted.
    pub(super) fn take(&mut self, seen: Seen<K>, now: Instant) -> (Change<K, K>, Option<String>) {
        match seen {
            Seen::List(all) => self.listed(all, now),
            Seen::Apply(object) => {
                self.know(&object);
                (Change::Apply(object), None)
            }
            Seen::Delete(object) => {
                if let Some(naming) = &self.naming {
                    let (name, _) = naming(&object);
                    self.others.remove(&name);
                    self.own.remove(&name);
                }
                self.newest = self.newest.max(version(&object));
                (Change::Delete(object), None)
            }
        }
    }

    fn know(&mut self, object: &K) {
        self.newest = self.newest.max(version(object));
        if let Some(naming) = &self.naming {
            match naming(object) {
                (name, true) => drop(self.own.insert(name, object.clone())),
                (name, false) => drop(self.others.insert(name)),
            }
        }
    }

    fn know_all(&mut self, objects: &[K]) {
        for object in objects {
            self.know(object);
        }
    }

    fn listed(&mut self, all: Vec<K>, now: Instant) -> (Change<K, K>, Option<String>) {
        let Some(naming) = &self.naming else {
            return (Change::Snapshot(all), None);
        };
        let mut names = HashSet::new();
        let mut own = HashSet::new();
        for (name, is_own) in all.iter().map(naming) {
            if is_own {
                own.insert(name);
            } else {
                names.insert(name);
            }
        }
        let known = self.others.len().max(self.earlier);
        let lost = if self.earlier > 0 {
            self.earlier.saturating_sub(names.len())
        } else {
            self.others.difference(&names).count()
        };
        let newest = all.iter().map(version).max().unwrap_or(0);
        let doubtful = lost * 2 > known || (lost > 0 && newest < self.newest);
        let confirmed = self
            .since
            .is_some_and(|since| now.duration_since(since) >= self.confirm);
        if !doubtful || confirmed {
            *self = Self {
                naming: self.naming.take(),
                confirm: self.confirm,
                ..Self::trusting()
            };
            self.know_all(&all);
            return (Change::Snapshot(all), None);
        }
        let since = *self.since.get_or_insert(now);
        self.again = Some(since + self.confirm);
        let gone = self
            .own
            .extract_if(|name, _| !own.contains(name))
            .map(|(_, object)| object)
            .collect();
        self.know_all(&all);
        let why = format!(
            "the API server lists {} objects of {} and lacks {lost} of {known} known ones of other \
             nodes: keeping those until they are still missing in {} s",
            all.len(),
            K::kind(&()),
            self.confirm.as_secs()
        );
        (Change::Doubted(all, gone), Some(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt;

    const CONFIRM: Duration = Duration::from_mins(5);

    fn object(name: &str, version: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    /// The own object is called "own".
    fn doubting(earlier: usize) -> Intake<ConfigMap> {
        Intake::doubting(
            Box::new(|o: &ConfigMap| (o.name_any(), o.name_any() == "own")),
            earlier,
            CONFIRM,
        )
    }

    fn list(
        intake: &mut Intake<ConfigMap>,
        objects: &[(&str, u64)],
        now: Instant,
    ) -> Change<String, String> {
        let all = objects.iter().map(|(name, version)| object(name, *version));
        let names = |v: Vec<ConfigMap>| v.iter().map(ResourceExt::name_any).collect();
        match intake.take(Seen::List(all.collect()), now).0 {
            Change::Snapshot(all) => Change::Snapshot(names(all)),
            Change::Doubted(all, gone) => Change::Doubted(names(all), names(gone)),
            Change::Apply(o) => Change::Apply(o.name_any()),
            Change::Delete(o) => Change::Delete(o.name_any()),
        }
    }

    fn doubted(all: &[&str], gone: &[&str]) -> Change<String, String> {
        let owned = |v: &[&str]| v.iter().map(ToString::to_string).collect();
        Change::Doubted(owned(all), owned(gone))
    }

    fn believed(all: &[&str]) -> Change<String, String> {
        Change::Snapshot(all.iter().map(ToString::to_string).collect())
    }

    const FOUR: [(&str, u64); 5] = [("own", 5), ("a", 1), ("b", 2), ("c", 3), ("d", 4)];

    #[test]
    fn an_empty_list_removes_nobody_until_it_is_confirmed() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        assert_eq!(list(&mut intake, &[], now), doubted(&[], &["own"]));
        let soon = now + CONFIRM / 2;
        assert!(!intake.take_again(soon));
        assert_eq!(list(&mut intake, &[], soon), doubted(&[], &[]));
        let late = now + CONFIRM;
        assert!(intake.take_again(late), "so that it is confirmed");
        assert!(!intake.take_again(late), "once");
        assert_eq!(list(&mut intake, &[], late), believed(&[]));
    }

    #[test]
    fn a_doubtful_list_followed_by_a_good_one_is_forgotten() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        list(&mut intake, &[("a", 6)], now);
        let all = list(&mut intake, &FOUR, now + CONFIRM / 2);
        assert_eq!(all, believed(&["own", "a", "b", "c", "d"]));
        assert_eq!(intake.again(), None);
        let late = now + CONFIRM * 2;
        assert_eq!(
            list(&mut intake, &[("a", 7)], late),
            doubted(&["a"], &["own"])
        );
    }

    #[test]
    fn half_of_all_may_go_at_once() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        let two = [("own", 7), ("a", 1), ("b", 6)];
        assert_eq!(list(&mut intake, &two, now), believed(&["own", "a", "b"]));
    }

    #[test]
    fn a_list_older_than_what_was_seen_removes_nobody() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        intake.take(Seen::Apply(object("e", 9)), now);
        let restored = [("own", 5), ("a", 1), ("b", 2), ("c", 3), ("d", 4)];
        let names = ["own", "a", "b", "c", "d"];
        assert_eq!(list(&mut intake, &restored, now), doubted(&names, &[]));
    }

    #[test]
    fn what_is_deleted_by_name_is_not_missed() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        for name in ["a", "b", "c"] {
            intake.take(Seen::Delete(object(name, 8)), now);
        }
        let rest = [("own", 5), ("d", 9)];
        assert_eq!(list(&mut intake, &rest, now), believed(&["own", "d"]));
    }

    #[test]
    fn a_new_agent_doubts_a_list_that_lacks_most_of_what_the_maps_hold() {
        let now = Instant::now();
        let mut intake = doubting(4);
        assert_eq!(
            list(&mut intake, &[("own", 1), ("a", 2)], now),
            doubted(&["own", "a"], &[])
        );
        let mut intake = doubting(4);
        let some = [("own", 1), ("a", 2), ("b", 3)];
        assert_eq!(list(&mut intake, &some, now), believed(&["own", "a", "b"]));
    }
}
