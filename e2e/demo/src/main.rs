//! veer-e2e-demo
fn main() {}
