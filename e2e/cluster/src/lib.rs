//! veer-e2e-cluster
