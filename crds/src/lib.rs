//! The API of veer: resource types with their validation, conditions, and the one
//! function that makes a pod's canonical label set.
//!
//! Users write `ClusterNetwork`; everything else is written by the operator or
//! the agents (each type says by whom). Nothing here talks to a cluster.

#![forbid(unsafe_code)]

pub mod condition;
pub mod labels;
pub mod manifests;
pub mod names;
mod rules;
pub mod v1alpha1;
