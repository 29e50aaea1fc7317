//! Numbers of label sets: pure.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use veer_crds::labels;
use veer_crds::v1alpha1::{IdentityState, SecurityIdentity, SecurityIdentitySpec};

/// The lowest number that is not reserved.
const FIRST: u32 = 256;
/// The highest number that a VNI holds.
const LAST: u32 = 0x00ff_ffff;

/// The numbers of a set in the order in which they are tried: from the one its
/// hash points to, upwards, and round.
pub(crate) fn candidates(
    set: &BTreeMap<String, String>,
) -> impl Iterator<Item = u32> + Send + use<> {
    let span = u64::from(LAST - FIRST) + 1;
    let seed = labels::hash(set) % span;
    // The remainder of a division by `span`, which is less than 2^24.
    (0..span).filter_map(move |i| u32::try_from((seed + i) % span).ok().map(|n| FIRST + n))
}

/// The object of a number.
pub(crate) fn identity(number: u32, set: &BTreeMap<String, String>) -> SecurityIdentity {
    SecurityIdentity {
        metadata: ObjectMeta {
            name: Some(number.to_string()),
            ..ObjectMeta::default()
        },
        spec: SecurityIdentitySpec {
            labels: set.clone(),
            state: IdentityState::Active,
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_all_numbers_once_and_begin_at_the_hash() {
        let set = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let mut all: Vec<u32> = candidates(&set).collect();
        assert_eq!(candidates(&set).next(), Some(all[0]));
        assert_eq!(all[1], if all[0] == LAST { FIRST } else { all[0] + 1 });
        all.sort_unstable();
        assert!(all.iter().copied().eq(FIRST..=LAST));
    }
}
