//! veer-bpf-programs
fn main() {}
