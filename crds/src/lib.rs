//! veer-crds
