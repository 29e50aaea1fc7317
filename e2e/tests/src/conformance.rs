//! Kubernetes' own network suite against the cluster.
