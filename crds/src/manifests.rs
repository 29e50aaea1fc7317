//! The CRDs as Kubernetes objects: what `crds/manifests` holds and what the
//! operator applies. Made from the Rust types; the rules that speak of a whole
//! object, its name or its status are added here, since a derive sees the spec
//! only.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube::CustomResourceExt;

use crate::rules::{self, RootRule};
use crate::v1alpha1::{
    ClusterNetwork, NodeNetwork, NodeReport, PodCIDR, PodEndpoint, SecurityIdentity,
};

/// Annotation of a CRD with the number of its schema.
pub const SCHEMA_VERSION_KEY: &str = "veer.dev/schema-version";

/// Number of the schema, raised with every change of it. The operator replaces
/// a CRD with a lower number and never one with a higher.
pub const SCHEMA_VERSION: u32 = 11;

/// All CRDs, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        finish(ClusterNetwork::crd(), &rules::CLUSTER_NETWORK),
        finish(NodeNetwork::crd(), &[]),
        finish(NodeReport::crd(), &[]),
        finish(PodCIDR::crd(), &rules::POD_CIDR),
        finish(PodEndpoint::crd(), &[]),
        finish(SecurityIdentity::crd(), &rules::SECURITY_IDENTITY),
    ]
}

/// The schema number of a CRD as found in a cluster; none: not veer's, or older
/// than numbers.
pub fn schema_version(crd: &CustomResourceDefinition) -> Option<u32> {
    crd.metadata
        .annotations
        .as_ref()?
        .get(SCHEMA_VERSION_KEY)?
        .parse()
        .ok()
}

fn finish(mut crd: CustomResourceDefinition, root: &[RootRule]) -> CustomResourceDefinition {
    crd.metadata
        .annotations
        .get_or_insert_default()
        .insert(SCHEMA_VERSION_KEY.to_owned(), SCHEMA_VERSION.to_string());
    for version in &mut crd.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut());
        let Some(schema) = schema else { continue };
        bound_conditions(schema);
        // What `kubectl explain` says of the kind is what the type says of it.
        schema.description = schema
            .properties
            .as_ref()
            .and_then(|p| p.get("spec"))
            .and_then(|spec| spec.description.clone());
        if !root.is_empty() {
            schema.x_kubernetes_validations = Some(
                root.iter()
                    .map(|(field, rule, message)| ValidationRule {
                        field_path: field.map(str::to_owned),
                        rule: (*rule).to_owned(),
                        message: Some((*message).to_owned()),
                        ..ValidationRule::default()
                    })
                    .collect(),
            );
        }
    }
    crd
}

/// Gives conditions the bounds that they have in Kubernetes' own kinds, which the
/// type's schema lacks.
fn bound_conditions(schema: &mut JSONSchemaProps) {
    let of = |schema: &mut JSONSchemaProps, name: &str| {
        schema.properties.as_mut().and_then(|all| all.remove(name))
    };
    let Some(mut status) = of(schema, "status") else {
        return;
    };
    if let Some(list) = status
        .properties
        .as_mut()
        .and_then(|all| all.get_mut("conditions"))
        && let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut list.items
    {
        for (name, length) in [
            ("type", 316),
            ("status", 7),
            ("reason", 1024),
            ("message", i64::from(rules::TEXT_MAX)),
        ] {
            let mut field = of(item, name).unwrap_or_default();
            field.max_length = Some(length);
            item.properties
                .get_or_insert_default()
                .insert(name.to_owned(), field);
        }
    }
    schema
        .properties
        .get_or_insert_default()
        .insert("status".to_owned(), status);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths of strings, numbers, lists and maps without bounds.
    fn unbounded(path: &str, schema: &JSONSchemaProps, out: &mut Vec<String>) {
        let enumerated = schema.enum_.is_some() || schema.format.as_deref() == Some("date-time");
        let of_operator = path.ends_with("observedGeneration");
        match schema.type_.as_deref() {
            Some("string") if schema.max_length.is_none() && !enumerated => {
                out.push(path.to_owned());
            }
            Some("integer") if schema.maximum.is_none() && !of_operator => {
                out.push(path.to_owned());
            }
            Some("array") if schema.max_items.is_none() => out.push(path.to_owned()),
            _ => {}
        }
        if schema.additional_properties.is_some() && schema.max_properties.is_none() {
            out.push(path.to_owned());
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            unbounded(&format!("{path}[]"), item, out);
        }
        for (name, field) in schema.properties.iter().flatten() {
            unbounded(&format!("{path}.{name}"), field, out);
        }
    }

    #[test]
    fn whatever_an_agent_writes_has_bounds() {
        let mut out = Vec::new();
        for (kind, part) in [
            ("NodeNetwork", "status"),
            ("NodeReport", "status"),
            ("PodEndpoint", "spec"),
        ] {
            let crd = all().into_iter().find(|crd| crd.spec.names.kind == kind);
            let schema = crd.unwrap().spec.versions.remove(0).schema.unwrap();
            let root = schema.open_api_v3_schema.unwrap();
            let path = format!("{kind}.{part}");
            unbounded(&path, &root.properties.unwrap()[part], &mut out);
        }
        assert!(out.is_empty(), "{out:#?}");
    }

    #[test]
    fn every_crd_is_in_the_category_and_has_printer_columns() {
        for crd in all() {
            let name = crd.metadata.name.clone().unwrap();
            assert_eq!(
                crd.spec.names.categories,
                Some(vec!["veer".to_owned()]),
                "{name}"
            );
            assert!(crd.spec.names.short_names.is_some(), "{name}");
            assert!(
                crd.spec.versions[0].additional_printer_columns.is_some(),
                "{name}"
            );
            assert_eq!(schema_version(&crd), Some(SCHEMA_VERSION), "{name}");
        }
    }

    #[test]
    fn schemas_use_only_formats_that_an_api_server_knows() {
        let text = serde_json::to_string(&all()).unwrap();
        let formats: std::collections::BTreeSet<&str> = text
            .split("\"format\":\"")
            .skip(1)
            .filter_map(|s| s.split('"').next())
            .collect();
        for format in formats {
            assert!(
                ["int32", "int64", "date-time"].contains(&format),
                "format {format}"
            );
        }
    }
}
