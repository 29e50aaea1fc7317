//! The CEL rules of the CRDs, each with the sentence that a refused
//! `kubectl apply` prints: what is wrong and what to do.
//!
//! They stand here and not beside the fields because a rule is judged by its
//! sentence, and sentences are best read together. A rule on a string that may
//! be malformed lets the malformed one pass: another rule names that fault, and
//! an error inside CEL would hide both sentences.

use serde_json::{Value, json};

/// A rule in CEL and its sentence.
pub(crate) type Rule = (&'static str, &'static str);

/// A rule of a whole object: the field it speaks of, the rule, its sentence.
pub(crate) type RootRule = (Option<&'static str>, &'static str, &'static str);

/// Key of every list of conditions.
pub(crate) const CONDITIONS_KEYS: [&str; 1] = ["type"];

/// The largest number of an epoch: the largest up to which every reader of JSON can
/// count.
pub(crate) const NUMBER_MAX: i64 = (1 << 53) - 1;

/// The longest text for people, in characters: that of a condition's message in
/// Kubernetes' own kinds.
pub(crate) const TEXT_MAX: u32 = 32_768;

/// The value of `x-kubernetes-validations`.
pub(crate) fn rules(list: &[Rule]) -> Value {
    list.iter()
        .map(|(rule, message)| json!({ "rule": rule, "message": message }))
        .collect()
}

/// Of a string that is a block of addresses.
pub(crate) const BLOCK: [Rule; 3] = [
    (
        "isCIDR(self)",
        "is not a block of addresses: write it as 10.244.0.0/16 or fd00:10:244::/48",
    ),
    (
        "!isCIDR(self) || cidr(self).masked() == cidr(self)",
        "has host bits set: write the block's first address before the slash, as in 10.244.0.0/16",
    ),
    (
        "!isCIDR(self) || ip.isCanonical(self.split('/')[0])",
        "is not in the usual form: write it in lower case, with the longest run of zeros as ::",
    ),
];

/// Of `masquerade.exclude` and `deniedPrefixes`.
pub(crate) const BLOCKS: Rule = (
    "self.all(c, isCIDR(c) && cidr(c).masked() == cidr(c))",
    "each entry must be a block without host bits, as 192.168.0.0/16: correct the one that is not",
);

/// Of `podCIDRs`.
pub(crate) const NO_OVERLAP: Rule = (
    "self.all(a, self.all(b, a.cidr == b.cidr || !isCIDR(a.cidr) || !isCIDR(b.cidr) || \
     !cidr(a.cidr).containsCIDR(cidr(b.cidr))))",
    "podCIDRs overlap: keep the larger block only, or choose blocks that share no address",
);

/// Of a `podCIDRs` entry.
pub(crate) const UNICAST_BLOCK: Rule = (
    "!isCIDR(self.cidr) || cidr(self.cidr).ip().isGlobalUnicast()",
    "cidr is not of addresses that pods can have (unspecified, loopback, link-local or \
     multicast): choose a private block, as 10.244.0.0/16",
);

/// Of a `podCIDRs` entry. Linux and veer's programs refuse such addresses as sources.
pub(crate) const RESERVED_BLOCK: Rule = (
    "!isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 6 || \
     !(cidr('240.0.0.0/4').containsCIDR(cidr(self.cidr)) || \
     cidr(self.cidr).containsCIDR(cidr('240.0.0.0/4')) || \
     cidr('0.0.0.0/8').containsCIDR(cidr(self.cidr)) || \
     cidr(self.cidr).containsCIDR(cidr('0.0.0.0/8')))",
    "cidr is of 240.0.0.0/4 or 0.0.0.0/8, which are reserved and which kernels drop as martians: \
     choose a private block, as 10.244.0.0/16",
);

/// Of `extraNodeAddresses`.
pub(crate) const NODE_ADDRESSES: Rule = (
    "self.all(a, isIP(a) && ip(a).isGlobalUnicast())",
    "each address must be one that a node can have on the network, as 192.0.2.7, without a \
     prefix length: correct the one that is not",
);

/// Of `nodeSelector`.
pub(crate) const SELECTOR: Rule = (
    "!has(self.matchExpressions) || self.matchExpressions.all(e, \
     e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",
    "an operator of matchExpressions is unknown: use In, NotIn, Exists or DoesNotExist",
);

/// Of a `podCIDRs` entry.
pub(crate) const MASK_FAMILY: Rule = (
    "!isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 6 || self.nodeMaskSize <= 30",
    "nodeMaskSize is too large for an IPv4 block: give a prefix length up to 30 (24 is usual), \
     or an IPv6 cidr",
);

/// Of a `podCIDRs` entry.
pub(crate) const MASK_RANGE: Rule = (
    "!isCIDR(self.cidr) || (self.nodeMaskSize >= cidr(self.cidr).prefixLength() && \
     self.nodeMaskSize <= 126)",
    "nodeMaskSize is out of range: give a prefix length not shorter than the block's own \
     (every node gets such a part of it) and not longer than 30 for IPv4, 126 for IPv6",
);

/// Of a `podCIDRs` entry.
pub(crate) const MASK_SHARES: Rule = (
    "!isCIDR(self.cidr) || self.nodeMaskSize - cidr(self.cidr).prefixLength() <= 24",
    "nodeMaskSize cuts the block into more than 16777216 parts: give a shorter nodeMaskSize or \
     a smaller block",
);

/// Of `nodeMaskSize`.
pub(crate) const MASK_IMMUTABLE: Rule = (
    "self == oldSelf",
    "nodeMaskSize of a block cannot be changed, nodes hold parts of that size: add another \
     block with the size you want and set this one to Draining",
);

/// Of `tunnel.port`.
pub(crate) const PORT_IMMUTABLE: Rule = (
    "self == oldSelf",
    "tunnel.port cannot be changed while the network runs, half the nodes would not hear the \
     other half: set it back, or install anew with the other port",
);

/// Of `mtu`.
pub(crate) const MTU: Rule = (
    "self == 0 || self >= 1280",
    "mtu is too small for a pod network: give 0 to have it detected, or 1280 and more",
);

/// Of the ClusterNetwork's spec.
pub(crate) const NATIVE_FAMILY: Rule = (
    "!has(self.routing) || !has(self.routing.native) || !has(self.routing.native.cidr) || \
     !isCIDR(self.routing.native.cidr) || self.podCIDRs.exists(p, isCIDR(p.cidr) && \
     cidr(p.cidr).ip().family() == cidr(self.routing.native.cidr).ip().family())",
    "routing.native.cidr is of a family that no block of podCIDRs has: give a block of the \
     pods' family, or leave it out",
);

/// Of the ClusterNetwork.
pub(crate) const CLUSTER_NETWORK: [RootRule; 2] = [
    (
        None,
        "self.metadata.name == 'default'",
        "a cluster has one ClusterNetwork and its name is default: set metadata.name to default",
    ),
    (
        Some(".spec.podCIDRs"),
        "oldSelf.spec.podCIDRs.all(o, self.spec.podCIDRs.exists(n, n.cidr == o.cidr) || \
         (has(o.state) && o.state == 'Draining' && has(oldSelf.status) && \
         has(oldSelf.status.podCIDRs) && \
         oldSelf.status.podCIDRs.exists(s, s.cidr == o.cidr && s.drained)))",
        "a block of podCIDRs that is in use was removed, shrunk or changed: put it back as it \
         was, set its state to Draining, and remove it once status.podCIDRs shows it drained",
    ),
];

/// Of PodCIDR.spec.
pub(crate) const CLAIM_IMMUTABLE: Rule = (
    "self == oldSelf",
    "a claim cannot be changed: delete it (if no pod has an address of it) and let the operator \
     make another",
);

/// Of the PodCIDR.
pub(crate) const POD_CIDR: [RootRule; 1] = [(
    None,
    "!isCIDR(self.spec.cidr) || (cidr(self.spec.cidr).ip().family() == 4 ? \
     self.spec.cidr.split('/')[0].split('.').join('-') == self.metadata.name : \
     self.metadata.name.matches('^[0-9a-f]{32}$'))",
    "a claim is named by its block, that is what makes it unique: name it by the base address, \
     with dashes (10-244-1-0) or as 32 hex digits",
)];

/// Of SecurityIdentity.spec.labels.
pub(crate) const LABELS_IMMUTABLE: Rule = (
    "self == oldSelf",
    "labels of an identity cannot be changed, a number stands for one set for ever: let the \
     operator make another identity",
);

/// Of the SecurityIdentity.
pub(crate) const SECURITY_IDENTITY: [RootRule; 1] = [(
    None,
    "self.metadata.name.matches('^[1-9][0-9]{2,7}$') && int(self.metadata.name) >= 256 && \
     int(self.metadata.name) <= 16777215",
    "an identity is named by its number: name it by a number from 256 to 16777215",
)];

/// Of NodeNetwork.spec.podCIDRs.
pub(crate) const ONE_BLOCK_PER_FAMILY: Rule = (
    "self.all(c, isCIDR(c) && cidr(c).masked() == cidr(c)) && (self.size() < 2 || \
     cidr(self[0]).ip().family() != cidr(self[1]).ip().family())",
    "a node has at most one block of each family, without host bits: leave this to the operator",
);

/// Of NodeNetwork.status.heldPodCIDRs.
pub(crate) const HELD_BLOCKS: Rule = (
    "self.all(c, isCIDR(c))",
    "each entry must be a block of addresses, as 10.244.1.0/24: leave this to the node's agent",
);

/// Of NodeReport.status.addresses.
pub(crate) const REPORTED_ADDRESSES: Rule = (
    "self.all(a, isIP(a))",
    "each entry must be an address, as 192.0.2.7: leave this to the node's agent",
);

/// Of PodEndpoint.spec.addresses.
pub(crate) const ONE_ADDRESS_PER_FAMILY: Rule = (
    "self.all(a, isIP(a)) && (self.size() < 2 || ip(self[0]).family() != ip(self[1]).family())",
    "a pod has at most one address of each family: leave this to the node's agent",
);

/// Of PodEndpoint.spec.
pub(crate) const ENDPOINT_IMMUTABLE: Rule = (
    "self.podName == oldSelf.podName && self.podUID == oldSelf.podUID && \
     self.nodeName == oldSelf.nodeName",
    "podName, podUID and nodeName cannot be changed: make another PodEndpoint, its name follows \
     from the pod's UID",
);
