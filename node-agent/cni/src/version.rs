//! CNI versions: which are spoken and what differs between them.
//!
//! containerd 1.6 and 1.7 carry a libcni that stops at 1.0.0; 1.1.0 adds GC,
//! STATUS and the MTU in results (CNI specification, "Changes").

/// Spoken, oldest first.
pub(crate) const SUPPORTED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", NEWEST];

/// The newest, used where no configuration names another.
pub(crate) const NEWEST: &str = "1.1.0";

/// Whether results of this version can be made.
pub(crate) fn is_supported(version: &str) -> bool {
    SUPPORTED.contains(&version)
}

/// Whether `version` has what came with `since`. Both are of [`SUPPORTED`], whose
/// order is their age.
pub(crate) fn has(version: &str, since: &str) -> bool {
    let age = |wanted: &str| SUPPORTED.iter().position(|known| *known == wanted);
    matches!((age(version), age(since)), (Some(version), Some(since)) if version >= since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_what_came_before_them_and_nothing_later() {
        assert!(has("1.1.0", "1.1.0") && has("1.1.0", "0.4.0"));
        assert!(!has("1.0.0", "1.1.0") && !has("0.3.1", "0.4.0"));
    }

    #[test]
    fn unknown_version_has_nothing() {
        assert!(!has("2.0.0", "0.3.1") && !is_supported("2.0.0"));
    }
}
