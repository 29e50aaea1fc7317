//! The CRDs as Kubernetes objects: what `crds/manifests` holds and what the
//! operator applies. Made from the Rust types; the rules that speak of a whole
//! object, its name or its status are added here, since a derive sees the spec
//! only.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, ValidationRule,
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
pub const SCHEMA_VERSION: u32 = 6;

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

#[cfg(test)]
mod tests {
    use super::*;

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
