//! From a watch's events to changes that can be believed.
//!
//! A list is believed unless it lacks more than half of what is known, or is
//! older than what was seen before and lacks anything at all: so does the list of
//! an API server that starts empty or from a snapshot. Then what it has is taken
//! in, and what it lacks is kept until a list some minutes later lacks it too, or
//! until it is deleted by name.
//!
//! Of some kinds the last state of an object tells whether it was to go. A deletion
//! of one that was not (`kubectl delete --all`, a CRD that was deleted) is doubted in
//! the same way, until the object is made again.
//!
//! What is this node's own follows every list and deletion, for of that this node
//! knows better and writes it again.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use kube::Resource;

use super::source::{Seen, version};
use crate::index::Change;

/// What an object is called in the index, and whether it is this node's own.
pub(super) type Naming<K> = Box<dyn Fn(&K) -> (String, bool) + Send>;

/// What is doubted of a kind.
pub(super) struct Doubts<K> {
    /// Which object it is.
    pub(super) naming: Naming<K>,
    /// Whether the last state of a deleted object says that it was to go.
    pub(super) was_to_go: fn(&K) -> bool,
    /// How many objects of other nodes an earlier agent knew of.
    pub(super) earlier: usize,
    /// How long what is doubted is kept.
    pub(super) confirm: Duration,
}

/// What is known of a set of objects.
pub(super) struct Intake<K> {
    /// `None`: everything is believed.
    doubts: Option<Doubts<K>>,
    /// Objects of other nodes by name, with those that are kept in doubt.
    others: HashSet<String>,
    /// Those of them that a doubtful list lacked, or whose deletion is doubted.
    missed: HashSet<String>,
    own: HashMap<String, K>,
    /// The newest resourceVersion seen.
    newest: u64,
    /// When the first of the doubtful lists came, or the last doubted deletion.
    since: Option<Instant>,
    /// When to list again.
    again: Option<Instant>,
}

impl<K: Resource<DynamicType = ()> + Clone> Intake<K> {
    /// One that believes everything.
    pub(super) fn trusting() -> Self {
        Self {
            doubts: None,
            others: HashSet::new(),
            missed: HashSet::new(),
            own: HashMap::new(),
            newest: 0,
            since: None,
            again: None,
        }
    }

    /// One that doubts, as the module says.
    pub(super) fn doubting(doubts: Doubts<K>) -> Self {
        Self {
            doubts: Some(doubts),
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

    /// Takes in what was seen. Nothing comes of a deletion that is doubted. The
    /// second value says why something is doubted.
    pub(super) fn take(
        &mut self,
        seen: Seen<K>,
        now: Instant,
    ) -> (Option<Change<K, K>>, Option<String>) {
        match seen {
            Seen::List(all) => {
                let (change, doubt) = self.listed(all, now);
                (Some(change), doubt)
            }
            Seen::Apply(object) => {
                self.know(&object);
                (Some(Change::Apply(object)), None)
            }
            Seen::Delete(object) => self.deleted(object, now),
        }
    }

    fn deleted(&mut self, object: K, now: Instant) -> (Option<Change<K, K>>, Option<String>) {
        self.newest = self.newest.max(version(&object));
        if let Some(doubts) = &self.doubts {
            let (name, own) = (doubts.naming)(&object);
            if !own && !(doubts.was_to_go)(&object) && self.others.contains(&name) {
                // One message for all that are deleted together.
                let why = self.missed.is_empty().then(|| {
                    format!(
                        "{} {name} was deleted although its node takes part: keeping it until it \
                         is made again, or is still missing in {} s",
                        K::kind(&()),
                        doubts.confirm.as_secs()
                    )
                });
                self.since = Some(now);
                self.again = Some(now + doubts.confirm);
                self.missed.insert(name);
                return (None, why);
            }
            self.others.remove(&name);
            self.missed.remove(&name);
            self.own.remove(&name);
        }
        (Some(Change::Delete(object)), None)
    }

    fn know(&mut self, object: &K) {
        self.newest = self.newest.max(version(object));
        let Some(doubts) = &self.doubts else {
            return;
        };
        match (doubts.naming)(object) {
            (name, true) => drop(self.own.insert(name, object.clone())),
            (name, false) => {
                let back = self.missed.remove(&name);
                if back && self.missed.is_empty() && doubts.earlier == 0 {
                    self.since = None;
                    self.again = None;
                }
                self.others.insert(name);
            }
        }
    }

    fn know_all(&mut self, objects: &[K]) {
        for object in objects {
            self.know(object);
        }
    }

    fn listed(&mut self, all: Vec<K>, now: Instant) -> (Change<K, K>, Option<String>) {
        let Some(doubts) = &self.doubts else {
            return (Change::Snapshot(all), None);
        };
        let mut names = HashSet::new();
        let mut own = HashSet::new();
        for (name, is_own) in all.iter().map(&doubts.naming) {
            if is_own {
                own.insert(name);
            } else {
                names.insert(name);
            }
        }
        let (earlier, confirm) = (doubts.earlier, doubts.confirm);
        let known = self.others.len().max(earlier);
        let lost = if earlier > 0 {
            earlier.saturating_sub(names.len())
        } else {
            self.others.difference(&names).count()
        };
        let newest = all.iter().map(version).max().unwrap_or(0);
        let doubtful = lost * 2 > known
            || (lost > 0 && newest < self.newest)
            || !self.missed.is_subset(&names);
        let confirmed = self
            .since
            .is_some_and(|since| now.duration_since(since) >= confirm);
        if !doubtful || confirmed {
            *self = Self {
                doubts: self.doubts.take().map(|doubts| Doubts {
                    earlier: 0,
                    ..doubts
                }),
                ..Self::trusting()
            };
            self.know_all(&all);
            return (Change::Snapshot(all), None);
        }
        let since = *self.since.get_or_insert(now);
        self.again = Some(since + confirm);
        let gone = self
            .own
            .extract_if(|name, _| !own.contains(name))
            .map(|(_, object)| object)
            .collect();
        self.missed = self.others.difference(&names).cloned().collect();
        self.know_all(&all);
        let why = format!(
            "the API server lists {} objects of {} and lacks {lost} of {known} known ones of other \
             nodes: keeping those until they are still missing in {} s",
            all.len(),
            K::kind(&()),
            confirm.as_secs()
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

    /// The own object is called "own"; one that is immutable was to go.
    fn doubting(earlier: usize) -> Intake<ConfigMap> {
        Intake::doubting(Doubts {
            naming: Box::new(|o: &ConfigMap| (o.name_any(), o.name_any() == "own")),
            was_to_go: |o| o.immutable == Some(true),
            earlier,
            confirm: CONFIRM,
        })
    }

    /// Deletes one that was to go, or was not. Whether the deletion counts, and
    /// whether it is told.
    fn delete(
        intake: &mut Intake<ConfigMap>,
        (name, version): (&str, u64),
        was_to_go: bool,
        now: Instant,
    ) -> (bool, bool) {
        let mut object = object(name, version);
        object.immutable = Some(was_to_go);
        let (change, why) = intake.take(Seen::Delete(object), now);
        (change.is_some(), why.is_some())
    }

    fn list(
        intake: &mut Intake<ConfigMap>,
        objects: &[(&str, u64)],
        now: Instant,
    ) -> Change<String, String> {
        let all = objects.iter().map(|(name, version)| object(name, *version));
        let names = |v: Vec<ConfigMap>| v.iter().map(ResourceExt::name_any).collect();
        match intake.take(Seen::List(all.collect()), now).0.unwrap() {
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
            assert!(delete(&mut intake, (name, 8), true, now).0);
        }
        let rest = [("own", 5), ("d", 9)];
        assert_eq!(list(&mut intake, &rest, now), believed(&["own", "d"]));
    }

    #[test]
    fn what_was_not_to_go_is_kept_until_it_is_made_again() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        assert_eq!(
            delete(&mut intake, ("a", 6), false, now),
            (false, true),
            "kept, and told"
        );
        assert_eq!(
            delete(&mut intake, ("b", 7), false, now),
            (false, false),
            "kept, and told once"
        );
        assert!(delete(&mut intake, ("own", 8), false, now).0, "the own one");
        intake.take(Seen::Apply(object("a", 9)), now);
        assert!(intake.again().is_some(), "b is missing still");
        intake.take(Seen::Apply(object("b", 10)), now);
        assert_eq!(intake.again(), None);
    }

    #[test]
    fn a_doubted_deletion_is_believed_once_a_later_list_confirms_it() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        delete(&mut intake, ("a", 6), false, now);
        let rest = [("own", 5), ("b", 2), ("c", 3), ("d", 7)];
        let names = ["own", "b", "c", "d"];
        assert_eq!(list(&mut intake, &rest, now), doubted(&names, &[]));
        let later = now + CONFIRM / 2;
        delete(&mut intake, ("b", 8), false, later);
        let rest = [("own", 5), ("c", 3), ("d", 9)];
        let names = ["own", "c", "d"];
        let early = now + CONFIRM;
        assert!(!intake.take_again(early), "b was seen some minutes ago");
        assert_eq!(list(&mut intake, &rest, early), doubted(&names, &[]));
        let late = later + CONFIRM;
        assert!(intake.take_again(late));
        assert_eq!(list(&mut intake, &rest, late), believed(&names));
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
