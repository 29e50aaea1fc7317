//! The entry points, one file per attach point. None uses another: shared code is in
//! [`crate::path`] or below.

mod host_sockets;
mod overlay_egress;
mod overlay_ingress;
mod pod_egress;
mod pod_ingress;
mod uplink_egress;
mod uplink_ingress;
mod uplink_xdp;
