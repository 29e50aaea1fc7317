//! veer-e2e-tests
