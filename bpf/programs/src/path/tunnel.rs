//! Tunnel packets as an uplink sees them, before the kernel takes the inner packet
//! out.

use veer_bpf_common::{
    outcome::{DropReason, Verdict},
    tables::Who,
};
use veer_bpf_net::{bytes::Bytes, ipv4::Ipv4, vxlan};

use crate::state::lookup;

/// What is to become of a tunnel packet; `None` for one that is none of ours.
///
/// A node's packet to the tunnel port is one, without a look at its
/// destination: that saves the tunnel's every packet a look-up.
#[inline(always)]
pub(crate) fn judge<P: Bytes>(packet: &P, ip: &Ipv4) -> Result<Option<Verdict>, DropReason> {
    let Some(config) = lookup::config() else {
        return Ok(None);
    };
    if !vxlan::is_tunnel(packet, ip, config.tunnel_port) {
        return Ok(None);
    }
    if lookup::node(ip.source).is_some() {
        vxlan::vni(packet, ip)?;
        return Ok(Some(Verdict::Pass));
    }
    match lookup::who(ip.destination) {
        Who::Host => Err(DropReason::TunnelSourceNotNode),
        Who::World | Who::LocalPod(_) | Who::RemotePod(..) | Who::RemoteNode(_) => Ok(None),
    }
}
