//! veer-agent
fn main() {}
