//! Tunnel packets as an uplink sees them, before the kernel takes the inner packet
//! out.

use veer_bpf_common::{
    address::IpKey,
    outcome::{DropReason, Verdict},
    tables::Who,
};
use veer_bpf_net::{bytes::Bytes, ip::Ip, vxlan};

use crate::state::lookup;

/// The verdict on a tunnel packet; `None` for a packet that is not of this tunnel.
///
/// A node's packet to the tunnel port counts as one whatever its destination: this
/// saves a lookup for every packet of the tunnel.
#[inline(always)]
pub(crate) fn judge<I: Ip, P: Bytes>(packet: &P, ip: &I) -> Result<Option<Verdict>, DropReason> {
    let Some(config) = lookup::config() else {
        return Ok(None);
    };
    if !vxlan::is_tunnel(packet, ip, config.tunnel_port) {
        return Ok(None);
    }
    if lookup::node(IpKey::of(ip.source())).is_some() {
        vxlan::vni(packet, ip)?;
        return Ok(Some(Verdict::Pass));
    }
    match lookup::who(ip.destination()) {
        Who::Host => Err(DropReason::TunnelSourceNotNode),
        Who::World | Who::LocalPod(_) | Who::RemotePod(..) | Who::RemoteNode(_) => Ok(None),
    }
}
