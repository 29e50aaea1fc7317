//! From a watch's events to changes that can be believed.
//!
//! A list is believed unless it lacks more than half of what is known, or is
//! older than the state seen before and lacks any object: an API server that
//! starts empty or from a snapshot sends such a list. The objects in a doubted list
//! are taken in. The objects that it lacks are kept until they are deleted by name,
//! or until a list some minutes later lacks them too and the server answered all
//! that time.
//!
//! Of some kinds the last state of an object tells whether it was to go. A deletion
//! of one that was not (`kubectl delete --all`, a CRD that was deleted) is doubted in
//! the same way, until the object is made again. A new agent does not know what was
//! deleted before it started, so it doubts the first list that lacks any of them.
//!
//! Objects of this node follow every list and deletion: this node has the better
//! knowledge of them and writes them again.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use kube::Resource;
use veer_api_client::version;

use super::source::Observed;
use veer_agent_core::index::Change;

/// An object's name in the index, and whether it is this node's own.
pub(super) type Naming<K> = Box<dyn Fn(&K) -> (String, bool) + Send>;

/// How long what a new agent's first list lacks is kept, if that is not much: until it is
/// sure, an agent removes nothing of anybody's.
const FEW: Duration = Duration::from_secs(30);

/// What is doubted of a kind.
pub(super) struct Doubts<K> {
    /// Names an object.
    pub(super) naming: Naming<K>,
    /// Whether the last state of a deleted object says that it was to go. `None`: all
    /// were.
    pub(super) was_to_go: Option<fn(&K) -> bool>,
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
    /// Since when lists have lacked all of these, and no others.
    since: Option<Instant>,
    /// When a doubted deletion was told last.
    told: Option<Instant>,
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
            told: None,
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

    /// The server did not answer: what is missing may have been there meanwhile.
    pub(super) fn interrupted(&mut self) {
        self.since = None;
    }

    /// When [`Self::take_again`] is true.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Takes in what was seen. Nothing comes of a deletion that is doubted. The
    /// second value says why something is doubted.
    pub(super) fn take(
        &mut self,
        seen: Observed<K>,
        now: Instant,
    ) -> (Option<Change<K, K>>, Option<String>) {
        match seen {
            Observed::List(all) => {
                let (change, doubt) = self.listed(all, now);
                (Some(change), doubt)
            }
            Observed::Apply(object) => {
                self.know(&object);
                (Some(Change::Apply(object)), None)
            }
            Observed::Delete(object) => self.deleted(object, now),
        }
    }

    fn deleted(&mut self, object: K, now: Instant) -> (Option<Change<K, K>>, Option<String>) {
        self.newest = self.newest.max(version::of(&object));
        if let Some(doubts) = &self.doubts {
            let (name, own) = (doubts.naming)(&object);
            let was_to_go = doubts.was_to_go.is_none_or(|was| was(&object));
            if !own && !was_to_go && self.others.contains(&name) {
                // One message for all that are deleted together.
                let told = self.told.is_some_and(|at| now - at < doubts.confirm);
                let why = (!told).then(|| {
                    self.told = Some(now);
                    format!(
                        "{} {name} was deleted, perhaps with others, although its node takes part: \
                         keeping what is deleted so until it is made again, or two lists that are \
                         {} s apart lack it",
                        K::kind(&()),
                        doubts.confirm.as_secs()
                    )
                });
                // The lists to come tell how long it is missing.
                self.since = None;
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
        self.newest = self.newest.max(version::of(object));
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
        let lacking: HashSet<String> = self.others.difference(&names).cloned().collect();
        let lost = if earlier > 0 {
            earlier.saturating_sub(names.len())
        } else {
            lacking.len()
        };
        let newest = all.iter().map(version::of).max().unwrap_or(0);
        let much = lost * 2 > known
            || (lost > 0 && newest < self.newest)
            || !self.missed.is_subset(&names);
        let doubtful = much || (lost > 0 && earlier > 0 && doubts.was_to_go.is_some());
        let confirm = if much { confirm } else { confirm.min(FEW) };
        if !lacking.is_subset(&self.missed) {
            self.since = None;
        }
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
        self.missed = lacking;
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
        of_kind(Some(|o| o.immutable == Some(true)), earlier)
    }

    fn of_kind(was_to_go: Option<fn(&ConfigMap) -> bool>, earlier: usize) -> Intake<ConfigMap> {
        Intake::doubting(Doubts {
            naming: Box::new(|o: &ConfigMap| (o.name_any(), o.name_any() == "own")),
            was_to_go,
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
        let (change, why) = intake.take(Observed::Delete(object), now);
        (change.is_some(), why.is_some())
    }

    fn list(
        intake: &mut Intake<ConfigMap>,
        objects: &[(&str, u64)],
        now: Instant,
    ) -> Change<String, String> {
        let all = objects.iter().map(|(name, version)| object(name, *version));
        let names = |v: Vec<ConfigMap>| v.iter().map(ResourceExt::name_any).collect();
        match intake.take(Observed::List(all.collect()), now).0.unwrap() {
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
        intake.take(Observed::Apply(object("e", 9)), now);
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
        intake.take(Observed::Apply(object("a", 9)), now);
        assert!(intake.again().is_some(), "b is missing still");
        intake.take(Observed::Apply(object("b", 10)), now);
        assert_eq!(intake.again(), None);
    }

    #[test]
    fn a_doubted_deletion_is_believed_after_two_lists_without_it() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        delete(&mut intake, ("a", 6), false, now);
        let rest = [("own", 5), ("b", 2), ("c", 3), ("d", 7)];
        let names = ["own", "b", "c", "d"];
        let mut at = now + CONFIRM;
        assert!(intake.take_again(at));
        assert_eq!(list(&mut intake, &rest, at), doubted(&names, &[]));
        // Another one begins it again for both.
        delete(&mut intake, ("b", 8), false, at);
        let rest = [("own", 5), ("c", 3), ("d", 9)];
        let names = ["own", "c", "d"];
        for _ in 0..2 {
            assert!(!intake.take_again(at));
            at += CONFIRM;
            assert!(intake.take_again(at));
            let change = list(&mut intake, &rest, at);
            if change == believed(&names) {
                return;
            }
            assert_eq!(change, doubted(&names, &[]));
        }
        panic!("never believed");
    }

    #[test]
    fn time_in_which_the_server_does_not_answer_confirms_nothing() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        for name in ["a", "b", "c", "d"] {
            delete(&mut intake, (name, 6), false, now);
        }
        // The kind itself is deleted, and comes back empty an hour later.
        let later = now + CONFIRM * 12;
        intake.interrupted();
        assert!(intake.take_again(later));
        assert_eq!(list(&mut intake, &[], later), doubted(&[], &["own"]));
        intake.interrupted();
        let later = later + CONFIRM;
        assert_eq!(list(&mut intake, &[], later), doubted(&[], &[]));
        for (name, version) in &FOUR[1..] {
            intake.take(Observed::Apply(object(name, version + 9)), later);
        }
        assert_eq!(intake.again(), None);
    }

    #[test]
    fn deletions_one_by_one_are_told_once() {
        let now = Instant::now();
        let mut intake = doubting(0);
        list(&mut intake, &FOUR, now);
        let told = ["a", "b", "c"].map(|name| {
            let (kept, told) = delete(&mut intake, (name, 6), false, now);
            assert!(!kept);
            intake.take(Observed::Apply(object(name, 7)), now);
            told
        });
        assert_eq!(told, [true, false, false]);
    }

    #[test]
    fn a_new_agent_doubts_a_list_that_lacks_most_of_what_the_maps_hold() {
        let now = Instant::now();
        let mut intake = doubting(4);
        assert_eq!(
            list(&mut intake, &[("own", 1), ("a", 2)], now),
            doubted(&["own", "a"], &[])
        );
        let some = [("own", 1), ("a", 2), ("b", 3)];
        let mut intake = of_kind(None, 4);
        assert_eq!(list(&mut intake, &some, now), believed(&["own", "a", "b"]));
    }

    #[test]
    fn a_new_agent_doubts_the_lack_of_one_whose_deletion_it_may_have_missed() {
        let now = Instant::now();
        let mut intake = doubting(4);
        let some = [("own", 1), ("a", 2), ("b", 3), ("c", 4)];
        let names = ["own", "a", "b", "c"];
        assert_eq!(list(&mut intake, &some, now), doubted(&names, &[]));
        let late = now + FEW;
        assert!(intake.take_again(late));
        assert_eq!(list(&mut intake, &some, late), believed(&names));
    }
}
