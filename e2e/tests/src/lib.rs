//! What the end-to-end tests, the demo and the benchmark share: a cluster with
//! the product on it, pods to send from, and evidence of the path that packets
//! take.
//!
//! The product is known here only as its users know it: by its chart, its
//! resources, its command line, and packets. Evidence comes from tcpdump,
//! bpftool, nft and ethtool, never from the product's own word.

pub mod agents;
pub mod baseline;
pub mod behind;
pub mod blocks;
pub mod broken;
pub mod client;
pub mod conformance;
pub mod datagrams;
pub mod deaths;
pub mod evidence;
pub mod foreign;
pub mod forge;
pub mod forged;
pub mod kube_proxy;
pub mod lab;
pub mod light;
pub mod load;
pub mod maps;
pub mod monitor;
pub mod numbered;
pub mod picture;
pub mod pods;
pub mod processes;
pub mod rollout;
pub mod scene;
pub mod site;
pub mod snapshot;
pub mod told;
pub mod translator;
pub mod tun;
pub mod underlay_rules;
pub mod workloads;
