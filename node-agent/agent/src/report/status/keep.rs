//! One status: compared with what the API server has, and written.

use std::fmt::Debug;

use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::report::publish::FIELD_MANAGER;

/// Field of a status in which several writers have entries of their own.
const CONDITIONS: &str = "conditions";

/// A status as JSON, of its conditions only those of the agent.
pub(super) fn own_part(status: &impl Serialize, kinds: &[&str]) -> Value {
    let mut status = serde_json::to_value(status).unwrap_or_default();
    if let Some(all) = status.get_mut(CONDITIONS).and_then(Value::as_array_mut) {
        let kind = |c: &Value| c["type"].as_str().unwrap_or_default().to_owned();
        all.retain(|c| kinds.contains(&kind(c).as_str()));
        all.sort_by_key(kind);
        if all.is_empty()
            && let Some(fields) = status.as_object_mut()
        {
            fields.remove(CONDITIONS);
        }
    }
    status
}

/// A merge patch that takes away what is in `found` and not in `wanted`. Another
/// writer's fields stay where an apply without them leaves them.
fn surplus(found: &Value, wanted: &Value) -> Option<Value> {
    let (found, wanted) = (found.as_object()?, wanted.as_object()?);
    let mut patch = Map::new();
    for (key, value) in found.iter().filter(|(key, _)| *key != CONDITIONS) {
        match wanted.get(key) {
            None => drop(patch.insert(key.clone(), Value::Null)),
            Some(wanted) => {
                if let Some(inner) = surplus(value, wanted) {
                    patch.insert(key.clone(), inner);
                }
            }
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The last write.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// The wanted content.
    pub(super) wanted: Value,
    /// The content that the server stored: an older CRD has fewer fields.
    pub(super) stored: Value,
}

/// The action that a status needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Nothing.
    Nothing,
    /// To write what is new.
    Write,
    /// To put back what somebody else changed.
    PutBack,
}

/// Compares what is wanted with what is there and what was last written.
pub(super) fn todo(wanted: &Value, found: &Value, written: Option<&Written>) -> Todo {
    if found == wanted {
        return Todo::Nothing;
    }
    match written {
        Some(w) if w.wanted == *wanted && w.stored == *found => Todo::Nothing,
        Some(w) if w.wanted == *wanted => Todo::PutBack,
        Some(_) | None => Todo::Write,
    }
}

/// Writes a status by server-side apply, and takes away what does not belong
/// there. `status_of` is [`own_part`] of an object.
pub(super) async fn write<K>(
    api: &Api<K>,
    name: &str,
    wanted: &Value,
    status_of: impl Fn(&K) -> Value,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
{
    let object = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name },
        "status": wanted,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let written = api
        .patch_status(name, &params, &Patch::Apply(&object))
        .await?;
    let Some(surplus) = surplus(&status_of(&written), wanted) else {
        return Ok(written);
    };
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    let patch = json!({ "status": surplus });
    api.patch_status(name, &params, &Patch::Merge(&patch)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_added_is_taken_away_and_the_operators_condition_is_not() {
        let wanted = json!({"mtu": 1, "repairs": {"routes": 2}});
        let found = json!({
            "mtu": 9, "repairs": {"routes": 2, "lies": 7}, "probes": {"number": 1},
            "conditions": [{"type": "CIDRAllocated"}],
        });
        let patch = json!({"repairs": {"lies": null}, "probes": null});
        assert_eq!(surplus(&found, &wanted), Some(patch));
        assert_eq!(surplus(&wanted, &wanted), None);
    }

    #[test]
    fn only_the_agents_conditions_are_compared() {
        let kinds = ["Degraded", "Ready"];
        let theirs = json!({"conditions": [{"type": "CIDRAllocated"}]});
        assert_eq!(own_part(&theirs, &kinds), json!({}));
        let all = json!({"conditions": [{"type": "Ready"}, {"type": "X"}, {"type": "Degraded"}]});
        let own = json!({"conditions": [{"type": "Degraded"}, {"type": "Ready"}]});
        assert_eq!(own_part(&all, &kinds), own);
    }

    #[test]
    fn a_field_that_the_server_does_not_know_is_not_written_for_ever() {
        let (wanted, stored) = (json!({"a": 1, "new": 2}), json!({"a": 1}));
        let written = Written {
            wanted: wanted.clone(),
            stored: stored.clone(),
        };
        assert_eq!(todo(&wanted, &stored, None), Todo::Write);
        assert_eq!(todo(&wanted, &stored, Some(&written)), Todo::Nothing);
        assert_eq!(todo(&wanted, &json!({}), Some(&written)), Todo::PutBack);
        let newer = json!({"a": 3});
        assert_eq!(todo(&newer, &stored, Some(&written)), Todo::Write);
    }
}
