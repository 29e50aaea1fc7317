//! `metav1.Condition`s: the time of the last transition stays until the status
//! flips.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// A condition to be reported, without its time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Its type.
    pub type_: &'static str,
    /// Whether it is met.
    pub status: bool,
    /// A fixed word.
    pub reason: &'static str,
    /// A sentence for people; where something is wrong, with the next step.
    pub message: String,
}

impl Judgement {
    /// The condition to write, given those that were there; `generation` is the
    /// object's that it is about.
    pub fn over(self, old: &[Condition], generation: Option<i64>) -> Condition {
        let status = if self.status { "True" } else { "False" };
        let before = old
            .iter()
            .find(|c| c.type_ == self.type_ && c.status == status);
        Condition {
            type_: self.type_.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            observed_generation: generation,
            last_transition_time: before
                .map_or_else(now, |condition| condition.last_transition_time.clone()),
        }
    }
}

/// Whether the condition of this type is met.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions
        .iter()
        .any(|c| c.type_ == type_ && c.status == "True")
}

/// The current time, in whole seconds as the API keeps it.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// An error with its causes in one line, as a condition's message has it.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_changes_only_when_the_status_flips() {
        let judged = |status, reason| Judgement {
            type_: "Ready",
            status,
            reason,
            message: String::new(),
        };
        let mut first = judged(false, "A").over(&[], Some(1));
        first.last_transition_time = Time(Timestamp::from_second(1).unwrap());
        let same = judged(false, "B").over(&[first.clone()], Some(2));
        assert_eq!(same.last_transition_time, first.last_transition_time);
        assert_eq!(
            (same.reason.as_str(), same.observed_generation),
            ("B", Some(2))
        );
        let flipped = judged(true, "C").over(&[first.clone()], Some(3));
        assert_ne!(flipped.last_transition_time, first.last_transition_time);
    }
}
