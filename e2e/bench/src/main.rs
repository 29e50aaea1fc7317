//! veer-e2e-bench
fn main() {}
