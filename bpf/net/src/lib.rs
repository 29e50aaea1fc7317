//! veer-bpf-net
