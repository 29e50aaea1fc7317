//! veer-cni
fn main() {}
