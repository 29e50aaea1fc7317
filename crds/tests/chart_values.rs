//! The chart's schema of values accepts what the ClusterNetwork accepts: all of its
//! fields, and nothing that is none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

fn chart(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/veer");
    fs::read_to_string(path.join(file)).unwrap()
}

/// The schema that a `$ref` stands for.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema["$ref"].as_str();
    target.map_or(schema, |r| root.pointer(r.trim_start_matches('#')).unwrap())
}

fn words(list: &Value) -> BTreeSet<&str> {
    let words = list.as_array().into_iter().flatten();
    words.filter_map(Value::as_str).collect()
}

/// Where two schemas differ in what they accept, one line each.
fn compare(root: &Value, at: &str, values: &Value, crd: &Value, differences: &mut Vec<String>) {
    let values = resolved(root, values);
    if let Some(fields) = crd["properties"].as_object() {
        let of_values = values["properties"].as_object();
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match of_values.and_then(|p| p.get(name)) {
                Some(values) => compare(root, &at, values, field, differences),
                None => differences.push(format!("{at}: the schema of values refuses it")),
            }
        }
        for name in of_values.into_iter().flat_map(|p| p.keys()) {
            if !fields.contains_key(name) {
                differences.push(format!("{at}.{name}: the ClusterNetwork does not have it"));
            }
        }
        let (needed, wanted) = (words(&values["required"]), words(&crd["required"]));
        if needed != wanted {
            differences.push(format!("{at}: required {needed:?}, not {wanted:?}"));
        }
    }
    if crd["items"].is_object() {
        let at = format!("{at}[]");
        compare(root, &at, &values["items"], &crd["items"], differences);
    }
    // Where Kubernetes names the words in prose only, values may be stricter.
    let (named, known) = (words(&values["enum"]), words(&crd["enum"]));
    if !known.is_empty() && named != known {
        differences.push(format!("{at}: one of {named:?}, not {known:?}"));
    }
    for bound in ["maximum", "maxItems", "maxLength"] {
        let number = |schema: &Value| schema[bound].as_f64();
        if let (Some(ours), Some(theirs)) = (number(values), number(crd))
            && ours < theirs
        {
            differences.push(format!("{at}: {bound} {ours}, less than {theirs}"));
        }
    }
}

#[test]
fn chart_accepts_every_field_of_the_cluster_network() {
    let values: Value = serde_json::from_str(&chart("values.schema.json")).unwrap();
    let crd: Value = serde_yaml::from_str(&chart("crds/clusternetworks.yaml")).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    assert!(spec["properties"]["podCIDRs"].is_object(), "{spec}");
    let mut differences = Vec::new();
    let network = &values["properties"]["clusterNetwork"];
    compare(&values, "clusterNetwork", network, spec, &mut differences);
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}
