//! Scenarios of the index.

use serde_json::json;

use super::*;

fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> SlimPod {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    serde_json::from_value(json!({
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
    }))
    .unwrap()
}

fn namespace(name: &str, team: &str) -> SlimNamespace {
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "team": team } } }))
        .unwrap()
}

fn known(name: &str) -> Index {
    let mut index = Index::default();
    index.apply_namespace(&namespace(name, "blue"));
    index.set_complete();
    index
}

#[test]
fn pods_of_one_set_come_into_use_once_and_fall_out_of_it_with_the_last() {
    let mut index = known("shop");
    index.apply_pod(&pod("shop", "a", &[("app", "web")]));
    index.apply_pod(&pod(
        "shop",
        "b",
        &[("app", "web"), ("pod-template-hash", "x")],
    ));
    let sets = index.take_dirty();
    assert_eq!(sets.len(), 1);
    assert_eq!(index.in_use(&sets[0]), Some(true));
    index.delete_pod(&pod("shop", "a", &[]));
    assert!(index.take_dirty().is_empty());
    index.delete_pod(&pod("shop", "b", &[]));
    assert_eq!(index.take_dirty(), sets);
    assert_eq!(index.in_use(&sets[0]), Some(false));
}

#[test]
fn a_pod_seen_before_its_namespace_gets_its_set_when_that_is_known() {
    let mut index = Index::default();
    index.apply_pod(&pod("shop", "a", &[("app", "web")]));
    assert!(index.take_dirty().is_empty());
    index.apply_namespace(&namespace("shop", "blue"));
    assert_eq!(index.take_dirty().len(), 1);
}

#[test]
fn relabelling_a_namespace_moves_its_pods_and_no_others() {
    let mut index = known("shop");
    index.apply_namespace(&namespace("bank", "red"));
    index.apply_pod(&pod("shop", "a", &[("app", "web")]));
    index.apply_pod(&pod("bank", "b", &[("app", "web")]));
    index.take_dirty();
    index.apply_namespace(&namespace("shop", "green"));
    let changed = index.take_dirty();
    assert_eq!(
        changed.len(),
        2,
        "one set fell out of use and one came into it"
    );
    let now = changed
        .iter()
        .filter(|set| index.in_use(set) == Some(true))
        .count();
    assert_eq!(now, 1);
    assert_eq!(index.sets().len(), 2);
}

#[test]
fn host_network_and_finished_pods_use_nothing() {
    let mut index = known("shop");
    let mut host = pod("shop", "a", &[]);
    host.spec.host_network = true;
    index.apply_pod(&host);
    let mut job = pod("shop", "b", &[]);
    index.apply_pod(&job);
    index.take_dirty();
    job.status.phase = "Succeeded".into();
    index.apply_pod(&job);
    assert_eq!(index.take_dirty().len(), 1);
    assert!(index.sets().is_empty());
}

#[test]
fn pods_missing_from_a_new_list_are_gone() {
    let mut index = known("shop");
    index.apply_pod(&pod("shop", "a", &[("app", "a")]));
    index.apply_pod(&pod("shop", "b", &[("app", "b")]));
    index.keep_pods(&HashSet::from([("shop".to_owned(), "b".to_owned())]));
    assert_eq!(index.sets().len(), 1);
}

#[test]
fn a_narrower_filter_merges_sets() {
    let mut index = known("shop");
    index.apply_pod(&pod("shop", "a", &[("app", "web"), ("build", "1")]));
    index.apply_pod(&pod("shop", "b", &[("app", "web"), ("build", "2")]));
    assert_eq!(index.sets().len(), 2);
    index.set_filter(&IdentityLabels {
        include: vec!["app".into()],
        exclude: Vec::new(),
    });
    assert_eq!(index.sets().len(), 1);
}

#[test]
fn nothing_is_called_unused_before_the_first_lists_are_in() {
    let index = Index::default();
    assert_eq!(index.in_use(&BTreeMap::new()), None);
}
