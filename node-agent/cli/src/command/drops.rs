//! `veer drops list`: packets that were dropped lately, the latest first, and for
//! each reason what it means and what to do.

use veer_agent_api::DropRow;
use veer_bpf_common::outcome::DropReason;

use crate::output::{columns_or, or_dash, span};

/// The table, and below it the reasons that are in it.
pub(super) fn table(rows: &[DropRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            age(row.age_ms),
            row.reason.clone(),
            row.program.clone(),
            or_dash(if row.pod.is_empty() {
                &row.device
            } else {
                &row.pod
            }),
            row.protocol.clone(),
            or_dash(&row.source),
            or_dash(&row.destination),
            row.bytes.to_string(),
            or_dash(&row.node),
        ]
    });
    let table = columns_or(
        "No packets were dropped so far.",
        [
            "AGE",
            "REASON",
            "PROGRAM",
            "POD OR DEVICE",
            "PROTOCOL",
            "SOURCE",
            "DESTINATION",
            "BYTES",
            "OTHER NODE",
        ],
        cells.collect(),
    );
    let seen = |reason: &&DropReason| rows.iter().any(|row| row.reason == reason.name());
    let advice: Vec<String> = DropReason::ALL
        .iter()
        .filter(seen)
        .map(|reason| format!("{}: {}", reason.name(), advice(*reason)))
        .collect();
    if advice.is_empty() {
        return table;
    }
    format!(
        "{table}\n\nOf each reason some packets are shown; `veer metrics list` has all counts.\n\n{}",
        advice.join("\n")
    )
}

/// As kubectl prints ages.
fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms}ms"),
        seconds => span(seconds),
    }
}

/// Meaning of a reason, and the remedy.
#[expect(clippy::too_many_lines, reason = "a few for each reason")]
const fn advice(reason: DropReason) -> &'static str {
    match reason {
        DropReason::UnsupportedL2 => {
            "an IEEE 802.3 frame, which carries no IP; nothing to do unless the pod needs it"
        }
        DropReason::UnsupportedL3 => {
            "neither IPv4, IPv6 nor ARP, or a VLAN tag where there can be none"
        }
        DropReason::Malformed => {
            "a header that lies about its length, or a packet cut off within one: look at who \
             sends it (kubectl exec, tcpdump)"
        }
        DropReason::SpoofedMac => {
            "a pod sent with another MAC than its eth0 was given: a bridge or a virtual machine \
             in the pod, or an attack"
        }
        DropReason::SpoofedAddress => {
            "a pod sent with an address that is not its own: an address added by hand in the \
             pod, traffic that it routes for others, or an attack"
        }
        DropReason::UnknownInterface => {
            "from a veth that the agent has not wired, or not yet: if it goes on, delete the pod \
             so that it is recreated"
        }
        DropReason::FragmentWithoutFirst => {
            "a fragment that came before its first one, or whose first was lost: the sender \
             repeats; if there are many, lower the MTU of the application or of the path"
        }
        DropReason::TunnelSourceNotNode => {
            "a tunnel packet from an address that is no node's: a node whose NodeNetwork is not \
             known here (kubectl get nodenetworks, veer remote list), a NAT between nodes, or an \
             attack"
        }
        DropReason::TunnelSourceNotOnNode => {
            "a tunnel packet whose inner source is not on the node that sent it: a pod that was \
             made or moved this second, else an attack from that node (veer ipcache list)"
        }
        DropReason::ReservedVni => {
            "a tunnel packet with a VNI that no veer writes for such a source: something else \
             uses the tunnel's port, or an attack"
        }
        DropReason::NativeNotAccepted => {
            "a bare packet from a node whose packets come by tunnel now: a node that missed \
             a change of mode (kubectl describe clusternetwork default), a pod's packet \
             that went out by the default route without masquerade, or an attack"
        }
        DropReason::OwnSourceFromOutside => {
            "a packet from outside with an address of this node's own pods: a loop in the \
             underlay's routes, or an attack"
        }
        DropReason::NoSuchEndpoint => {
            "to an address of this node that no pod has now: a pod that is gone, to whose \
             address somebody still sends (kubectl get endpointslices -A shows whether a Service \
             names it)"
        }
        DropReason::RemoteUnusable => {
            "to a node of which no usable path is known: veer remote list, kubectl get \
             nodenetworks"
        }
        DropReason::TunnelPortFromPod => {
            "a pod sent to the tunnel's port of a node, by which it could forge others' packets; \
             nothing that should work needs that"
        }
        DropReason::HelperFailed => {
            "the kernel refused to change or redirect the packet: out of memory, or a device that \
             was going away; if it goes on, look at dmesg"
        }
        DropReason::NeighbourNotGateway => {
            "a pod asked by ARP or neighbour discovery for another address than its gateway's: a \
             route or a netmask in the pod that was changed by hand"
        }
        DropReason::NotConfigured => {
            "the agent has not written the node's configuration yet: kubectl get nodenetwork \
             NODE, veer status"
        }
        DropReason::UnsupportedDestination => {
            "multicast or broadcast, which this pod network does not carry (mDNS, SSDP and their \
             like are harmless)"
        }
        DropReason::DeniedPrefix => {
            "from a source that spec.deniedPrefixes of the ClusterNetwork names"
        }
        DropReason::RouterAdvertisement => {
            "a pod announced itself as a router: a VPN or a container network in the pod, or an \
             attack on its neighbours, of which it has none"
        }
        DropReason::Redirect => {
            "a pod told its node to use another next hop: it routes for others, or an attack"
        }
        DropReason::ForeignNeighbour => {
            "a pod spoke for an IPv6 address that it does not have: one added by hand in the \
             pod, or an attack"
        }
        DropReason::RoutingHeader => {
            "an IPv6 packet with a routing header, which could reach what was not judged: the \
             sender must do without"
        }
        DropReason::TooManyHeaders => "an IPv6 packet with more than eight extension headers",
        DropReason::NoPlaceForFlow => {
            "a new translated flow (a Service, a hostPort) of a pod, or of an address \
             elsewhere, that has as many established ones as one may have, or as many from one \
             port to one backend by several addresses: close idle \
             connections, or open fewer per pod (veer flow list --address ADDRESS shows them)"
        }
        DropReason::ForeignTranslation => {
            "a pod was told of a packet to a Service that it did not send: an ICMP error that \
             somebody made up, one packet of a flow whose entry was replaced just then, or a \
             packet whose headers are cut short"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> DropRow {
        DropRow {
            age_ms: 2500,
            reason: "spoofed-address".to_owned(),
            program: "pod_egress".to_owned(),
            device: "veer0123456789".to_owned(),
            pod: "shop/cart-0".to_owned(),
            protocol: "udp".to_owned(),
            source: "10.0.1.99:4000".to_owned(),
            destination: "10.0.2.1:53".to_owned(),
            bytes: 98,
            identity: 40123,
            node: String::new(),
        }
    }

    #[test]
    fn a_drop_is_one_line_and_its_reason_is_explained_once() {
        let text = table(&[row(), row()]);
        let line = text.lines().nth(1).unwrap();
        for part in [
            "2s",
            "spoofed-address",
            "shop/cart-0",
            "10.0.1.99:4000",
            "98",
            "-",
        ] {
            assert!(
                line.split_whitespace().any(|word| word == part),
                "{part}: {line}"
            );
        }
        assert_eq!(
            text.matches("spoofed-address: a pod sent").count(),
            1,
            "{text}"
        );
        assert!(!text.contains("denied-prefix"), "{text}");
    }

    #[test]
    fn without_drops_it_says_so() {
        assert_eq!(table(&[]), "No packets were dropped so far.");
    }

    #[test]
    fn ages_are_short() {
        for (ms, text) in [
            (7, "7ms"),
            (119_999, "119s"),
            (600_000, "10m"),
            (7_200_000, "2h"),
            (400_000_000, "4d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }
}
