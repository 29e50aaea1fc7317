//! SecurityIdentity: every label set that a pod uses gets a number as soon as the pod
//! exists; an unused number is removed.
//!
//! Two parts. [`assign`] follows pods and namespaces and creates missing identities;
//! its work is proportional to the changes. [`retire`] looks at one identity at a
//! time, when it falls out of use and at the end of each wait.
//!
//! Invariant: a number never means two sets. It is the object's name, and an object
//! is deleted only when no agent assigns it and no pod has it.

pub(crate) mod assign;
mod build;
pub(crate) mod index;
mod owners;
pub(crate) mod retire;
mod state;

/// Field manager of this controller.
const MANAGER: &str = "veer-operator/security-identity";
