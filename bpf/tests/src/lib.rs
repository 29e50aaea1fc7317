//! veer-bpf-tests
