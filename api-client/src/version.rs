//! The order of resourceVersions: as numbers, which Kubernetes guarantees of its own
//! API server (KEP 5504).

use kube::Resource;

/// `None`: there is none, or of its order nothing is known.
fn number(version: Option<&str>) -> Option<u64> {
    version?.parse().ok()
}

/// An object's resourceVersion; 0: of its order nothing is known.
pub fn of<K: Resource>(object: &K) -> u64 {
    number(object.meta().resource_version.as_deref()).unwrap_or(0)
}

/// Whether a resourceVersion is older than another.
pub fn is_before(a: Option<&str>, b: &str) -> bool {
    number(a).zip(number(Some(b))).is_some_and(|(a, b)| a < b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_before(Some("9"), "10"));
        assert!(!is_before(Some("10"), "10"));
        assert!(!is_before(Some("10"), "9"));
        assert!(!is_before(None, "9"), "unknown is not behind");
        assert!(!is_before(Some(""), "9"), "unknown is not behind");
    }
}
