//! veer-operator
fn main() {}
