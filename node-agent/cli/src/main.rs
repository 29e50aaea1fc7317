//! veer-cli
fn main() {}
