//! The difference between what is and what should be, and what of it somebody
//! else made.

use std::{collections::HashMap, hash::Hash};

/// What to write and what to remove.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<K, V> {
    /// New and changed entries.
    pub write: Vec<(K, V)>,
    /// Entries that should not be there.
    pub remove: Vec<K>,
}

impl<K, V> Default for Difference<K, V> {
    fn default() -> Self {
        Self {
            write: Vec::new(),
            remove: Vec::new(),
        }
    }
}

/// The difference between two tables. With `complete` unset `want` may lack
/// rows that are right, so nothing is removed.
pub fn difference<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    have: &HashMap<K, V>,
    want: &HashMap<K, V>,
    complete: bool,
) -> Difference<K, V> {
    let write = want
        .iter()
        .filter(|(k, v)| have.get(*k) != Some(*v))
        .map(|(k, v)| (*k, *v))
        .collect();
    let remove = have
        .keys()
        .filter(|k| complete && !want.contains_key(*k))
        .copied()
        .collect();
    Difference { write, remove }
}

/// What is to be done with one map, and what somebody else did to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Compared<K, V> {
    /// What is to be written and removed.
    pub todo: Difference<K, V>,
    /// Entries that are not as this agent wrote them, and what was done to them.
    pub strange: Vec<(K, &'static str)>,
}

impl<K, V> Compared<K, V> {
    /// Passes on what somebody else did.
    pub fn tell(&self, mut to: impl FnMut(&K, &'static str)) {
        for (key, how) in &self.strange {
            to(key, how);
        }
    }
}

/// Compares what a map holds with what this agent wrote and with what it should
/// hold. The shadow becomes what the map holds; what is written then notes itself.
pub fn compare<K, V>(
    have: HashMap<K, V>,
    shadow: &mut HashMap<K, V>,
    want: &HashMap<K, V>,
    complete: bool,
    begun: bool,
) -> Compared<K, V>
where
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    let mut todo = difference(&have, want, complete);
    let mut strange = Vec::new();
    if begun {
        for (key, own) in &*shadow {
            let how = match have.get(key) {
                Some(found) if found == own => continue,
                Some(_) => "changed",
                None => "removed",
            };
            strange.push((*key, how));
            // What an earlier agent left is kept while the list is not complete,
            // and so put back as well.
            if !complete && !want.contains_key(key) {
                todo.write.push((*key, *own));
            }
        }
        let added = have.keys().filter(|k| complete && !shadow.contains_key(k));
        strange.extend(added.map(|k| (*k, "added")));
    }
    *shadow = have;
    Compared { todo, strange }
}

/// The desired rows of a table at the end of the last round. They distinguish a
/// repair from a change of the desired state. A missing row is a foreign removal only
/// if the last round wanted the same row. An extra row is a foreign addition only if
/// the last round did not want it either.
#[derive(Debug)]
pub struct Last<K, V>(Option<HashMap<K, V>>);

impl<K, V> Default for Last<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Eq + Hash, V: PartialEq> Last<K, V> {
    /// Whether somebody else changed or removed what is now to be written.
    pub fn lost(&self, key: &K, value: &V) -> bool {
        self.0.as_ref().is_some_and(|l| l.get(key) == Some(value))
    }

    /// Whether somebody else wrote what is now to be removed.
    pub fn foreign(&self, key: &K) -> bool {
        self.0.as_ref().is_some_and(|l| !l.contains_key(key))
    }

    /// Notes what the table holds now, in full.
    pub fn set(&mut self, now: HashMap<K, V>) {
        self.0 = Some(now);
    }

    /// Notes more of what the table holds.
    pub fn extend(&mut self, more: HashMap<K, V>) {
        self.0.get_or_insert_default().extend(more);
    }

    /// Forgets everything: the next round repairs nothing, it begins.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_written() {
        let have = HashMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let want = HashMap::from([(1, 'a'), (2, 'x'), (4, 'd')]);
        let mut got = difference(&have, &want, true);
        got.write.sort_unstable();
        assert_eq!(got.write, [(2, 'x'), (4, 'd')]);
        assert_eq!(got.remove, [3]);
    }

    #[test]
    fn an_incomplete_list_removes_nothing() {
        let have = HashMap::from([(1, 'a')]);
        let got = difference(&have, &HashMap::new(), false);
        assert!(got.remove.is_empty() && got.write.is_empty());
    }

    #[test]
    fn applying_a_difference_converges() {
        let mut have = HashMap::from([(1, 'a'), (2, 'b')]);
        let want = HashMap::from([(2, 'c'), (3, 'd')]);
        let step = difference(&have, &want, true);
        have.extend(step.write);
        for key in step.remove {
            have.remove(&key);
        }
        assert_eq!(have, want);
        let again = difference(&have, &want, true);
        assert!(again.write.is_empty() && again.remove.is_empty());
    }

    fn sorted<K: Ord, V: Ord>(mut c: Compared<K, V>) -> Compared<K, V> {
        c.strange.sort_unstable();
        c.todo.write.sort_unstable();
        c.todo.remove.sort_unstable();
        c
    }

    #[test]
    fn what_somebody_else_did_is_told_and_put_back() {
        let mut shadow = HashMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let have = HashMap::from([(1, 'x'), (3, 'c'), (9, 'z')]);
        let want = shadow.clone();
        let got = sorted(compare(have.clone(), &mut shadow, &want, true, true));
        assert_eq!(got.strange, [(1, "changed"), (2, "removed"), (9, "added")]);
        assert_eq!(got.todo.write, [(1, 'a'), (2, 'b')]);
        assert_eq!(got.todo.remove, [9]);
        assert_eq!(shadow, have, "until it is written");
    }

    #[test]
    fn what_the_agent_itself_wants_otherwise_is_no_repair() {
        let mut shadow = HashMap::from([(1, 'a'), (2, 'b')]);
        let want = HashMap::from([(1, 'n'), (3, 'c')]);
        let got = sorted(compare(shadow.clone(), &mut shadow, &want, true, true));
        assert!(got.strange.is_empty());
        assert_eq!(got.todo.write, [(1, 'n'), (3, 'c')]);
        assert_eq!(got.todo.remove, [2]);
    }

    #[test]
    fn while_the_list_is_incomplete_an_earlier_agents_entry_is_put_back_too() {
        let mut shadow = HashMap::from([(1, 'a'), (2, 'b')]);
        let want = HashMap::from([(1, 'a')]);
        let have = HashMap::from([(1, 'a')]);
        let got = compare(have, &mut shadow, &want, false, true);
        assert_eq!(got.strange, [(2, "removed")]);
        assert_eq!(got.todo.write, [(2, 'b')]);
    }

    #[test]
    fn what_a_new_agent_finds_is_nobodys_fault() {
        let want = HashMap::from([(1, 'a')]);
        let have = HashMap::from([(1, 'x'), (5, 'e')]);
        let got = compare(have, &mut HashMap::new(), &want, true, false);
        assert!(got.strange.is_empty());
        assert_eq!((got.todo.write, got.todo.remove), (vec![(1, 'a')], vec![5]));
    }

    #[test]
    fn a_change_of_mind_is_no_repair() {
        let mut last = Last::default();
        assert!(!last.lost(&1, &'a') && !last.foreign(&1), "the first round");
        last.set(HashMap::from([(1, 'a'), (2, 'b')]));
        assert!(last.lost(&1, &'a'), "wanted then and now");
        assert!(!last.lost(&1, &'x'), "wanted otherwise now");
        assert!(!last.lost(&3, &'c'), "new");
        assert!(!last.foreign(&2), "wanted no longer");
        assert!(last.foreign(&4), "never wanted");
        last.extend(HashMap::from([(3, 'c')]));
        assert!(last.lost(&2, &'b') && last.lost(&3, &'c'));
    }
}
