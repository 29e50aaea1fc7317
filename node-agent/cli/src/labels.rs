//! Labels of identities, as people tell identities apart.

/// The label of an identity that says its namespace (`veer_crds::labels`).
const NAMESPACE: &str = "io.kubernetes.pod.namespace=";
/// How labels begin that are not the pod's own (`veer_crds::labels`).
const NOT_OWN: [&str; 2] = ["io.kubernetes.", "io.veer.k8s."];
/// How the names of reserved identities begin.
const RESERVED: &str = "reserved:";
/// Labels of a pod's own that are shown of an identity.
const SHOWN: usize = 2;

/// The namespace of an identity's pods; `None`: it is no pod's.
pub(crate) fn namespace(labels: &[String]) -> Option<&str> {
    let mut labels = labels.iter();
    labels.find_map(|label| label.strip_prefix(NAMESPACE))
}

/// An identity in a few words: its number and name, or its number, namespace and first
/// labels.
pub(crate) fn brief(identity: u32, labels: &[String]) -> String {
    if identity == 0 {
        return "unknown".to_owned();
    }
    if let Some(name) = labels.iter().find_map(|l| l.strip_prefix(RESERVED)) {
        return format!("{identity} {name}");
    }
    let Some(namespace) = namespace(labels) else {
        return identity.to_string();
    };
    let own: Vec<&str> = labels
        .iter()
        .map(String::as_str)
        .filter(|label| !NOT_OWN.iter().any(|start| label.starts_with(start)))
        .collect();
    let shown = own[..own.len().min(SHOWN)].join(", ");
    let more = if own.len() > SHOWN { ", …" } else { "" };
    match shown.as_str() {
        "" => format!("{identity} {namespace}"),
        shown => format!("{identity} {namespace}: {shown}{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_told_by_its_namespace_and_its_first_labels() {
        let pod = |own: &[&str]| {
            let all = ["io.kubernetes.pod.namespace=shop"].iter().chain(own);
            all.map(ToString::to_string).collect::<Vec<_>>()
        };
        let account = "io.veer.k8s.serviceaccount=default";
        for (identity, labels, expected) in [
            (0, vec![], "unknown"),
            (2, vec!["reserved:world".to_owned()], "2 world"),
            (40_123, vec![], "40123"),
            (40_123, pod(&[account]), "40123 shop"),
            (40_123, pod(&[account, "app=cart"]), "40123 shop: app=cart"),
            (
                40_123,
                pod(&["a=1", "b=2", "c=3"]),
                "40123 shop: a=1, b=2, …",
            ),
        ] {
            assert_eq!(brief(identity, &labels), expected);
        }
    }
}
