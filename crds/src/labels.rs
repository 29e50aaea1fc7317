//! The canonical label set of a pod: what an identity stands for.
//!
//! Operator and agents both derive it, by this one function, so that a pod gets
//! the same number whoever looks.

use std::collections::BTreeMap;

use crate::v1alpha1::IdentityLabels;

/// Key of the pod's namespace in a canonical set.
pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Prefix of the namespace's own labels in a canonical set.
pub const NAMESPACE_LABELS: &str = "io.veer.k8s.namespace.labels.";
/// Key of the service account in a canonical set.
pub const SERVICE_ACCOUNT: &str = "io.veer.k8s.serviceaccount";

/// Labels that differ per pod, per revision or per run and so never count: with
/// them every pod, or every run of a job, would be an identity of its own.
const NEVER: [&str; 34] = [
    // Kubernetes' own controllers.
    "controller-revision-hash",
    "pod-template-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
    // Argo Workflows: the run, and whether it is over.
    "workflows.argoproj.io/workflow",
    "workflows.argoproj.io/completed",
    // Tekton: the runs of a pipeline and of its tasks.
    "tekton.dev/pipelineRun",
    "tekton.dev/pipelineRunUID",
    "tekton.dev/taskRun",
    "tekton.dev/taskRunUID",
    // Spark, and its operator: the application's run and the executor in it.
    "spark-app-selector",
    "spark-exec-id",
    "sparkoperator.k8s.io/submission-id",
    // JobSet: which run, which of its jobs.
    "jobset.sigs.k8s.io/jobset-name",
    "jobset.sigs.k8s.io/jobset-uid",
    "jobset.sigs.k8s.io/job-key",
    "jobset.sigs.k8s.io/job-index",
    "jobset.sigs.k8s.io/job-global-index",
    "jobset.sigs.k8s.io/job-group-index",
    "jobset.sigs.k8s.io/restart-attempt",
    // LeaderWorkerSet: which group, which pod of it, which revision.
    "leaderworkerset.sigs.k8s.io/group-index",
    "leaderworkerset.sigs.k8s.io/group-key",
    "leaderworkerset.sigs.k8s.io/worker-index",
    "leaderworkerset.sigs.k8s.io/subgroup-index",
    "leaderworkerset.sigs.k8s.io/subgroup-key",
    "leaderworkerset.sigs.k8s.io/template-revision-hash",
    // Kueue: the workload that a pod was admitted with.
    "kueue.x-k8s.io/pod-group-name",
    "kueue.x-k8s.io/prebuilt-workload-name",
];

/// What of a pod counts for its identity.
#[derive(Clone, Copy, Debug)]
pub struct PodIdentityInput<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// That namespace's labels.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Its service account; empty counts as `default`.
    pub service_account: &'a str,
    /// Its own labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// The canonical set of a pod under a filter.
pub fn canonical(pod: PodIdentityInput<'_>, filter: &IdentityLabels) -> BTreeMap<String, String> {
    let account = if pod.service_account.is_empty() {
        "default"
    } else {
        pod.service_account
    };
    let mut set = BTreeMap::from([
        (NAMESPACE.to_owned(), pod.namespace.to_owned()),
        (SERVICE_ACCOUNT.to_owned(), account.to_owned()),
    ]);
    for (key, value) in pod.namespace_labels {
        set.insert(format!("{NAMESPACE_LABELS}{key}"), value.clone());
    }
    for (key, value) in pod.labels.iter().filter(|(key, _)| counts(key, filter)) {
        set.insert(key.clone(), value.clone());
    }
    // A pod's own label must not pass for what only the cluster can say.
    set.insert(NAMESPACE.to_owned(), pod.namespace.to_owned());
    set.insert(SERVICE_ACCOUNT.to_owned(), account.to_owned());
    set
}

/// Whether a label of this key counts under a filter.
pub fn counts(key: &str, filter: &IdentityLabels) -> bool {
    let named = |list: &[String]| list.iter().any(|p| key.starts_with(p.as_str()));
    !NEVER.contains(&key)
        && !key.starts_with(NAMESPACE_LABELS)
        && (filter.include.is_empty() || named(&filter.include))
        && !named(&filter.exclude)
}

/// A 64-bit hash of a canonical set, the same in every process and version
/// (FNV-1a over length-prefixed keys and values); the seed of its number.
pub fn hash(set: &BTreeMap<String, String>) -> u64 {
    let texts = set.iter().flat_map(|(key, value)| [key, value]);
    fnv1a(texts.flat_map(|text| {
        let length = (text.len() as u64).to_le_bytes();
        length.into_iter().chain(text.bytes())
    }))
}

/// The 64-bit FNV-1a hash of these bytes, the same in every process and version.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let next = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    bytes.into_iter().fold(OFFSET, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn the_hash_is_fnv1a() {
        let of = |text: &str| fnv1a(text.bytes());
        assert_eq!(of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(of("foobar"), 0x8594_4171_f739_67e8);
    }

    fn set(labels: &[(&str, &str)], filter: &IdentityLabels) -> BTreeMap<String, String> {
        canonical(
            PodIdentityInput {
                namespace: "shop",
                namespace_labels: &map(&[("team", "blue")]),
                service_account: "",
                labels: &map(labels),
            },
            filter,
        )
    }

    #[test]
    fn pods_of_two_revisions_share_a_set() {
        let none = IdentityLabels::default();
        let a = set(&[("app", "web"), ("pod-template-hash", "aaaa")], &none);
        let b = set(&[("app", "web"), ("pod-template-hash", "bbbb")], &none);
        assert_eq!(a, b);
        assert_eq!(hash(&a), hash(&b));
    }

    #[test]
    fn runs_of_one_job_share_a_set() {
        let none = IdentityLabels::default();
        for keys in [
            &["job-name", "batch.kubernetes.io/job-name", "controller-uid"][..],
            &["workflows.argoproj.io/workflow"],
            &[
                "tekton.dev/pipelineRun",
                "tekton.dev/taskRun",
                "tekton.dev/taskRunUID",
            ],
            &["spark-app-selector", "spark-exec-id"],
            &[
                "jobset.sigs.k8s.io/job-key",
                "jobset.sigs.k8s.io/jobset-uid",
            ],
            &["leaderworkerset.sigs.k8s.io/group-key"],
        ] {
            let run = |value| {
                let mut labels = vec![("app", "batch")];
                labels.extend(keys.iter().map(|key| (*key, value)));
                set(&labels, &none)
            };
            assert_eq!(run("1"), run("2"), "{keys:?}");
            assert_eq!(run("1"), set(&[("app", "batch")], &none), "{keys:?}");
        }
    }

    #[test]
    fn a_pod_cannot_claim_another_namespace_by_label() {
        let none = IdentityLabels::default();
        let forged = set(
            &[(NAMESPACE, "kube-system"), (SERVICE_ACCOUNT, "admin")],
            &none,
        );
        assert_eq!(forged, set(&[], &none));
        let ns = format!("{NAMESPACE_LABELS}team");
        assert_eq!(set(&[(ns.as_str(), "red")], &none), set(&[], &none));
    }

    #[test]
    fn exclude_is_stronger_than_include() {
        let filter = IdentityLabels {
            include: vec!["app".into()],
            exclude: vec!["app.build".into()],
        };
        let got = set(
            &[("app", "web"), ("app.build", "7"), ("tier", "x")],
            &filter,
        );
        assert!(got.contains_key("app"));
        assert!(!got.contains_key("app.build") && !got.contains_key("tier"));
    }

    #[test]
    fn sets_that_concatenate_alike_hash_apart() {
        assert_ne!(hash(&map(&[("ab", "c")])), hash(&map(&[("a", "bc")])));
    }
}
