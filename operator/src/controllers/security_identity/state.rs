//! Which numbers each set has: plain data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use veer_crds::v1alpha1::{IdentityState, SecurityIdentity};

use super::index::Set;

/// The number of an identity, which is its name.
pub(crate) fn number(identity: &SecurityIdentity) -> Option<u32> {
    identity.metadata.name.as_deref()?.parse().ok()
}

/// Sets and their numbers.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    sets: HashMap<Set, BTreeMap<u32, IdentityState>>,
    count: usize,
}

impl Numbers {
    /// An identity is new or changed.
    pub(crate) fn apply(&mut self, identity: &SecurityIdentity) {
        let Some(number) = number(identity) else {
            return;
        };
        let set = Arc::new(identity.spec.labels.clone());
        let old = self
            .sets
            .entry(set)
            .or_default()
            .insert(number, identity.spec.state);
        self.count += usize::from(old.is_none());
    }

    /// An identity is gone; its set, if that has no other.
    pub(crate) fn delete(&mut self, identity: &SecurityIdentity) -> Option<Set> {
        let number = number(identity)?;
        let (set, numbers) = self.sets.get_key_value(&identity.spec.labels)?;
        let (set, mut left) = (Arc::clone(set), numbers.clone());
        self.count -= usize::from(left.remove(&number).is_some());
        if left.is_empty() {
            self.sets.remove(&set);
            return Some(set);
        }
        self.sets.insert(set, left);
        None
    }

    /// Whether agents may assign a number of this set.
    pub(crate) fn is_active(&self, set: &BTreeMap<String, String>) -> bool {
        let numbers = self.sets.get(set);
        numbers.is_some_and(|n| n.values().any(|state| *state == IdentityState::Active))
    }

    /// The numbers of this set.
    pub(crate) fn of(&self, set: &BTreeMap<String, String>) -> Vec<u32> {
        self.sets
            .get(set)
            .map(|n| n.keys().copied().collect())
            .unwrap_or_default()
    }

    /// A number of this set that is retiring.
    pub(crate) fn retiring(&self, set: &BTreeMap<String, String>) -> Option<u32> {
        let numbers = self.sets.get(set)?;
        numbers
            .iter()
            .find(|(_, s)| **s == IdentityState::Retiring)
            .map(|(number, _)| *number)
    }

    /// How many identities there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::identity;
    use super::*;

    #[test]
    fn a_set_is_active_until_its_last_active_number_is_gone() {
        let set = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let mut numbers = Numbers::default();
        let (first, mut second) = (identity(300, &set), identity(301, &set));
        numbers.apply(&first);
        second.spec.state = IdentityState::Retiring;
        numbers.apply(&second);
        numbers.apply(&second);
        assert_eq!((numbers.len(), numbers.retiring(&set)), (2, Some(301)));
        assert!(numbers.is_active(&set));
        assert_eq!(numbers.delete(&first), None);
        assert!(!numbers.is_active(&set));
        assert_eq!(numbers.delete(&second).as_deref(), Some(&set));
        assert_eq!(numbers.len(), 0);
    }
}
