//! ICMP, one file per family: identifiers of queries, and the packets that errors are
//! about.

pub mod v4;
