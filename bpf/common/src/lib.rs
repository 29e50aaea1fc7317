//! veer-bpf-common
