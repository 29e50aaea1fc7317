//! How a program ends: a verdict or a drop with a reason, and the numbers under
//! which both are counted.

/// Makes a `#[repr(u32)]` enum with its names and its list in one place.
macro_rules! numbered {
    ($(#[$attr:meta])* $name:ident { $($(#[$vattr:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$attr])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vattr])* $variant = $number,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The one with a number, if any has it.
            pub fn of(number: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| *one as u32 == number)
            }

            /// The name that tools and metrics print.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

numbered! {
    /// A program, as the high part of a counter's index.
    Program {
        /// See [`crate::program::POD_EGRESS`].
        PodEgress = 0, "pod_egress";
        /// See [`crate::program::POD_INGRESS`].
        PodIngress = 1, "pod_ingress";
        /// See [`crate::program::OVERLAY_INGRESS`].
        OverlayIngress = 2, "overlay_ingress";
        /// See [`crate::program::OVERLAY_EGRESS`].
        OverlayEgress = 3, "overlay_egress";
        /// See [`crate::program::UPLINK_INGRESS`].
        UplinkIngress = 4, "uplink_ingress";
        /// See [`crate::program::UPLINK_EGRESS`].
        UplinkEgress = 5, "uplink_egress";
        /// See [`crate::program::UPLINK_XDP`].
        UplinkXdp = 6, "uplink_xdp";
    }
}

numbered! {
    /// A packet goes on.
    Verdict {
        /// On, to the next program or the stack.
        Pass = 0, "pass";
        /// To the stack because its destination is this host or the world.
        ToStack = 1, "to-stack";
        /// To the stack, which translates the flow: it has an entry.
        ToStackNoted = 2, "to-stack-noted";
        /// To the stack, which answers with an ICMP error (too big, TTL over).
        ToStackException = 3, "to-stack-exception";
        /// Delivered into a local pod by `bpf_redirect_peer`.
        Deliver = 4, "deliver";
        /// Sent into the tunnel.
        Overlay = 5, "to-overlay";
        /// Sent out of an uplink by `bpf_redirect_neigh`.
        Native = 6, "to-network";
        /// Answered by the program itself (ARP, ND).
        Answer = 7, "answer";
        /// Passed after recording its flow as translated by the stack.
        PassNoted = 8, "pass-noted";
        /// Ends here quietly, since nobody needs it: a pod's multicast group reports, its
        /// questions for routers and its duplicate address detection; what the host sends
        /// to groups on the tunnel device.
        Ignore = 9, "ignore";
        /// To neither a pod nor a node, or down to a pod from this node or the world. Never
        /// an outcome: another function of the program finds out whether it belongs to a
        /// Service, and goes on.
        Beyond = 10, "beyond";
    }
}

numbered! {
    /// Seen on the way and counted beside the outcome.
    Observation {
        /// The VNI of a tunnel packet is not the identity known of its source.
        IdentityMismatch = 64, "identity-mismatch";
        /// A pod, or a share of clients elsewhere, has as many flow entries as one may
        /// have: a new one replaced another of its own without an answer, or any closed one.
        FlowReplaced = 65, "flow-replaced";
        /// Somebody listens to the programs' decisions, and the ring of events was full.
        EventLost = 66, "event-lost";
    }
}

numbered! {
    /// What a program found in the table of flows, [`crate::tables::Flows`].
    FlowState {
        /// It did not look: the decision does not depend on it.
        NotAsked = 0, "not-asked";
        /// No entry: the stack does not translate the flow.
        NoEntry = 1, "no-entry";
        /// None, and it made one.
        New = 2, "new";
        /// The packet goes in the direction of the one that opened the flow.
        Established = 3, "established";
        /// The packet answers one of an entry, or is an ICMP error about it.
        Reply = 4, "reply";
    }
}

numbered! {
    /// A packet ends here, for this reason. Numbers never change their meaning.
    DropReason {
        /// `EtherType` below 0x600, i.e. an 802.3 length.
        UnsupportedL2 = 128, "unsupported-l2";
        /// Neither IPv4 nor IPv6 nor ARP.
        UnsupportedL3 = 129, "unsupported-l3";
        /// A header lies about its length or the packet ends within it.
        Malformed = 130, "malformed";
        /// Source MAC is not the pod's.
        SpoofedMac = 131, "spoofed-mac";
        /// Source address is not the pod's.
        SpoofedAddress = 132, "spoofed-address";
        /// The veth is not one that the agent wired.
        UnknownInterface = 133, "unknown-interface";
        /// A later fragment whose first was not seen.
        FragmentWithoutFirst = 134, "fragment-without-first";
        /// Outer source of a tunnel packet is no node of the cluster.
        TunnelSourceNotNode = 135, "tunnel-source-not-node";
        /// Inner source does not belong to the node that sent the tunnel packet.
        TunnelSourceNotOnNode = 136, "tunnel-source-not-on-node";
        /// A VNI that no sender of veer writes.
        ReservedVni = 137, "reserved-vni";
        /// A bare packet claims a pod or node from which the native form is not
        /// accepted now, or an address for pods that no node has.
        NativeNotAccepted = 138, "native-not-accepted";
        /// A packet from outside claims an address of this node's own pods or
        /// their gateway.
        OwnSourceFromOutside = 139, "own-source-from-outside";
        /// No pod has this address of the node's pod CIDR.
        NoSuchEndpoint = 140, "no-such-endpoint";
        /// The remote node's entry is missing or has no usable form.
        RemoteUnusable = 141, "remote-unusable";
        /// A pod sends to the tunnel port of a node.
        TunnelPortFromPod = 142, "tunnel-port-from-pod";
        /// A helper failed (out of memory, or a device that is going away).
        HelperFailed = 143, "helper-failed";
        /// ARP or ND that asks for something other than the gateway.
        NeighbourNotGateway = 144, "neighbour-not-gateway";
        /// The node's configuration has not been written yet.
        NotConfigured = 145, "not-configured";
        /// Multicast, broadcast or another destination no pod network carries.
        UnsupportedDestination = 146, "unsupported-destination";
        /// From outside, with a source in a denied prefix.
        DeniedPrefix = 147, "denied-prefix";
        /// A pod sends a router advertisement.
        RouterAdvertisement = 148, "router-advertisement";
        /// A pod sends an `ICMPv6` redirect.
        Redirect = 149, "redirect";
        /// A pod sends a neighbour message for an address that it does not have, or one
        /// that came from another link.
        ForeignNeighbour = 150, "foreign-neighbour";
        /// An IPv6 routing header, by which a packet would reach what was not judged.
        RoutingHeader = 151, "routing-header";
        /// More IPv6 extension headers than are read.
        TooManyHeaders = 152, "too-many-headers";
        /// A new translated flow finds no place, since its opener has as many established
        /// ones as it may have; or no source port is free for another flow to one backend.
        NoPlaceForFlow = 153, "no-place-for-flow";
        /// What a packet of a translated flow would become is not its sender's, or not for
        /// its receiver: an ICMP error about another pod's packet, or another flow took
        /// the place of the entry just now. Or its headers are cut short.
        ForeignTranslation = 154, "foreign-translation";
    }
}

/// What judging a packet gives.
pub type Outcome = Result<Verdict, DropReason>;

/// How many outcomes one program can have; verdicts lie below 64, observations
/// below [`FIRST_REASON`], reasons from there to here.
pub const OUTCOMES_PER_PROGRAM: u32 = 192;

/// The lowest number of a reason.
pub const FIRST_REASON: u32 = 128;
/// How many reasons one program can have.
pub const REASONS_PER_PROGRAM: u32 = 32;
const _: () = assert!(FIRST_REASON + REASONS_PER_PROGRAM <= OUTCOMES_PER_PROGRAM);

/// Number and name of every outcome of any kind, in the order of the numbers.
pub fn outcomes() -> impl Iterator<Item = (u32, &'static str)> {
    let verdicts = Verdict::ALL.iter().map(|v| (*v as u32, v.name()));
    let observations = Observation::ALL.iter().map(|o| (*o as u32, o.name()));
    let reasons = DropReason::ALL.iter().map(|r| (*r as u32, r.name()));
    verdicts.chain(observations).chain(reasons)
}

/// The name of an outcome's number, of any kind.
pub fn outcome_name(outcome: u32) -> Option<&'static str> {
    let named = outcomes().find(|(number, _)| *number == outcome);
    named.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        assert!(Verdict::ALL.iter().all(|v| (*v as u32) < 64));
        assert!(
            Observation::ALL
                .iter()
                .all(|o| (64..FIRST_REASON).contains(&(*o as u32)))
        );
        assert!(DropReason::ALL.iter().all(|r| {
            (FIRST_REASON..FIRST_REASON + REASONS_PER_PROGRAM).contains(&(*r as u32))
        }));
        assert!(outcomes().is_sorted_by(|(a, _), (b, _)| a < b));
    }
}
