//! From what the table is to do to its chains. Pure.
//!
//! Order matters within a chain: the first rule that accepts ends veer's part.

use std::ffi::CStr;

use super::{
    Rules,
    expression::{Expression as E, Meta},
};

/// Devices of veer: host sides of pods' veths, and the tunnel's.
const OURS: &[u8] = b"veer";
/// The tunnel's device.
const TUNNEL: &str = "veer_vxlan";

/// The bit by which kube-proxy asks for masquerade (`--iptables-masquerade-bit`,
/// 14 unless told otherwise).
const KUBE_PROXY_MASQUERADE: u32 = 0x4000;

/// Hooks of the inet family (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hook {
    /// `NF_INET_PRE_ROUTING`.
    PreRouting = 0,
    /// `NF_INET_LOCAL_IN`.
    LocalIn = 1,
    /// `NF_INET_FORWARD`.
    Forward = 2,
    /// `NF_INET_LOCAL_OUT`.
    LocalOut = 3,
    /// `NF_INET_POST_ROUTING`.
    PostRouting = 4,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chain {
    /// Its name.
    pub(super) name: &'static CStr,
    /// `filter` or `nat`.
    pub(super) kind: &'static CStr,
    /// Where it hooks.
    pub(super) hook: Hook,
    /// When, among the chains of the hook.
    pub(super) priority: i32,
    /// Its rules, each a list of expressions.
    pub(super) rules: Vec<Vec<E>>,
}

/// Before conntrack (`NF_IP_PRI_RAW`).
const RAW: i32 = -300;
/// Where others filter (`NF_IP_PRI_FILTER`).
const FILTER: i32 = 0;
/// Just before source NAT (`NF_IP_PRI_NAT_SRC`), where kube-proxy is: the first
/// chain that translates a flow settles it.
const BEFORE_SOURCE_NAT: i32 = 99;

/// All chains of the table.
pub(super) fn chains(rules: &Rules) -> Vec<Chain> {
    let ours = |which| vec![E::Meta(which), E::Equal(OURS.to_vec())];
    let not_ours = |which| vec![E::Meta(which), E::NotEqual(OURS.to_vec())];
    let tunnel_port = E::udp_to(rules.tunnel_port).to_vec();
    // The tunnel's outer packets are one flow per pair of nodes and need no state.
    let untracked = |which| [not_ours(which), tunnel_port.clone(), vec![E::NoTrack]].concat();
    // After DNAT: a service must not lead a pod to a node's tunnel port either.
    let forbidden = || {
        [
            ours(Meta::Input),
            tunnel_port.clone(),
            vec![E::Counter, E::Drop],
        ]
        .concat()
    };
    vec![
        Chain {
            name: c"prerouting",
            kind: c"filter",
            hook: Hook::PreRouting,
            priority: RAW,
            rules: vec![untracked(Meta::Input)],
        },
        Chain {
            name: c"output",
            kind: c"filter",
            hook: Hook::LocalOut,
            priority: RAW,
            rules: vec![untracked(Meta::Output)],
        },
        Chain {
            name: c"input",
            kind: c"filter",
            hook: Hook::LocalIn,
            priority: FILTER,
            rules: vec![forbidden()],
        },
        Chain {
            name: c"forward",
            kind: c"filter",
            hook: Hook::Forward,
            priority: FILTER,
            rules: vec![forbidden()],
        },
        Chain {
            name: c"postrouting",
            kind: c"nat",
            hook: Hook::PostRouting,
            priority: BEFORE_SOURCE_NAT,
            rules: [into_tunnel(rules), to_world(rules)].concat(),
        },
    ]
}

/// What the stack sends by the tunnel's device has a source that lives on this
/// node: a local pod's, or the node's primary address. (Masquerade on a device
/// without an address would pick an arbitrary one.)
fn into_tunnel(rules: &Rules) -> Vec<Vec<E>> {
    let Some(primary) = rules.primary else {
        return Vec::new();
    };
    let out = [
        E::ipv4().to_vec(),
        vec![E::Meta(Meta::Output), E::Equal(E::device(TUNNEL))],
    ]
    .concat();
    let asked = KUBE_PROXY_MASQUERADE.to_ne_bytes().to_vec();
    let translate = vec![E::Counter, E::SourceNat(primary)];
    let mut list = vec![
        [
            out.clone(),
            vec![E::Meta(Meta::Mark), E::Mask(asked.clone()), E::Equal(asked)],
            translate.clone(),
        ]
        .concat(),
    ];
    for block in rules.local_cidrs.iter().copied().chain([primary.into()]) {
        list.push([out.clone(), E::from(&block).to_vec(), vec![E::Accept]].concat());
    }
    list.push([out, translate].concat());
    list
}

/// Pods to the world, and in tunnel mode to nodes.
fn to_world(rules: &Rules) -> Vec<Vec<E>> {
    if !rules.masquerade {
        return Vec::new();
    }
    let mut list = vec![
        [
            E::ipv4().to_vec(),
            vec![E::Meta(Meta::Output), E::Equal(OURS.to_vec()), E::Accept],
        ]
        .concat(),
    ];
    for block in rules.cluster_cidrs.iter().chain(&rules.exclude) {
        list.push([E::ipv4().to_vec(), E::to(block).to_vec(), vec![E::Accept]].concat());
    }
    list.push(
        [
            E::ipv4().to_vec(),
            vec![E::NetworkHeader(16, 4), E::InNodes, E::Accept],
        ]
        .concat(),
    );
    for block in &rules.local_cidrs {
        list.push(
            [
                E::ipv4().to_vec(),
                E::from(block).to_vec(),
                vec![E::Counter, E::Masquerade],
            ]
            .concat(),
        );
    }
    list
}
