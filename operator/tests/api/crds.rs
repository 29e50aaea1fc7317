//! What the CRDs accept and refuse, with the sentence that kubectl prints.

use std::fmt::Write as _;

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::play::NETWORK;
use crate::server::Server;

fn cluster_network(name: &str, spec: &str) -> String {
    let mut yaml = format!(
        "apiVersion: veer.dev/v1alpha1\nkind: ClusterNetwork\nmetadata: {{name: {name}}}\nspec:\n"
    );
    for line in spec.lines() {
        writeln!(yaml, "  {line}").unwrap();
    }
    yaml
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "PodEndpoint" {
        ", namespace: default"
    } else {
        ""
    };
    format!(
        "apiVersion: veer.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: '{name}'{namespace}}}\n\
         spec: {spec}\n"
    )
}

/// Applies each and expects its sentence; the empty sentence means accepted.
fn table(server: &Server, rows: &[(&str, String, &str)]) {
    let mut faults = String::new();
    for (what, yaml, sentence) in rows {
        match (server.apply(yaml), sentence.is_empty()) {
            (Ok(()), true) => {}
            (Ok(()), false) => writeln!(faults, "{what}: was accepted").unwrap(),
            (Err(said), false) if said.contains(sentence) => {}
            (Err(said), _) => writeln!(faults, "{what}: expected {sentence:?}: {said}").unwrap(),
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[tokio::test]
async fn bad_input_is_refused_with_a_sentence_that_says_what_to_do() {
    let server = Server::start().await;
    let cn = |spec: &str| cluster_network("default", spec);
    let blocks = |list: &str| cn(&format!("podCIDRs: [{list}]"));
    let v4 = "podCIDRs: [{cidr: 10.244.0.0/16, nodeMaskSize: 24}]";
    let claim = |name: &str, cidr: &str| {
        object(
            "PodCIDR",
            name,
            &format!("{{cidr: '{cidr}', nodeName: a, nodeUID: u}}"),
        )
    };
    let endpoint = |addresses: &str, identity: u32| {
        let spec = format!(
            "{{podName: p, podUID: u, nodeName: a, endpointId: 1, addresses: [{addresses}], \
             identity: {identity}, serial: 1}}"
        );
        object("PodEndpoint", "p-1", &spec)
    };
    let rows = [
        (
            "another name",
            cluster_network("other", v4),
            "set metadata.name to default",
        ),
        (
            "no blocks",
            cn("podCIDRs: []"),
            "should have at least 1 items",
        ),
        (
            "host bits",
            blocks("{cidr: 10.244.1.0/16, nodeMaskSize: 24}"),
            "has host bits set",
        ),
        (
            "no block",
            blocks("{cidr: 10.244.0.0, nodeMaskSize: 24}"),
            "write it as 10.244.0.0/16",
        ),
        (
            "leading zeros",
            blocks("{cidr: 010.0.0.0/8, nodeMaskSize: 24}"),
            "not a block",
        ),
        (
            "overlap",
            blocks("{cidr: 10.0.0.0/8, nodeMaskSize: 24}, {cidr: 10.9.0.0/16, nodeMaskSize: 24}"),
            "podCIDRs overlap: keep the larger block only",
        ),
        (
            "the same twice",
            blocks("{cidr: 10.0.0.0/8, nodeMaskSize: 24}, {cidr: 10.0.0.0/8, nodeMaskSize: 25}"),
            "Duplicate value",
        ),
        (
            "IPv6 in two spellings",
            blocks("{cidr: 'fd00::/48', nodeMaskSize: 64}, {cidr: 'FD00::/48', nodeMaskSize: 64}"),
            "write it in lower case",
        ),
        (
            "mask shorter than the block",
            blocks("{cidr: 10.244.0.0/16, nodeMaskSize: 15}"),
            "not shorter than the block's own",
        ),
        (
            "IPv6 mask on an IPv4 block",
            blocks("{cidr: 10.244.0.0/16, nodeMaskSize: 64}"),
            "too large for an IPv4 block",
        ),
        (
            "no addresses left",
            blocks("{cidr: 10.244.0.0/16, nodeMaskSize: 32}"),
            "up to 30",
        ),
        (
            "IPv4 mask on an IPv6 block",
            blocks("{cidr: 'fd00:1::/48', nodeMaskSize: 24}"),
            "not shorter than the block's own",
        ),
        (
            "too many parts",
            blocks("{cidr: 'fd00:1::/32', nodeMaskSize: 64}"),
            "more than 16777216 parts",
        ),
        (
            "loopback",
            blocks("{cidr: 127.0.0.0/8, nodeMaskSize: 24}"),
            "choose a private block",
        ),
        (
            "reserved addresses",
            blocks("{cidr: 240.0.0.0/8, nodeMaskSize: 24}"),
            "which are reserved and which kernels drop as martians",
        ),
        (
            "a node's address with a prefix length",
            cn("podCIDRs: [{cidr: 10.0.0.0/8, nodeMaskSize: 24}]\n\
                 extraNodeAddresses: [{node: a, addresses: [192.0.2.7/32]}]"),
            "each address must be one that a node can have",
        ),
        (
            "a loopback address of a node",
            cn("podCIDRs: [{cidr: 10.0.0.0/8, nodeMaskSize: 24}]\n\
                 extraNodeAddresses: [{node: a, addresses: [127.0.0.1]}]"),
            "each address must be one that a node can have",
        ),
        (
            "a node selector with an unknown operator",
            cn("podCIDRs: [{cidr: 10.0.0.0/8, nodeMaskSize: 24}]\n\
                 nodeSelector: {matchExpressions: [{key: a, operator: Maybe}]}"),
            "use In, NotIn, Exists or DoesNotExist",
        ),
        (
            "multicast",
            blocks("{cidr: 'ff00::/16', nodeMaskSize: 32}"),
            "choose a private block",
        ),
        (
            "native block of the other family",
            cn(&format!("{v4}\nrouting: {{native: {{cidr: 'fd00::/48'}}}}")),
            "of a family that no block of podCIDRs has",
        ),
        (
            "native block with host bits",
            cn(&format!("{v4}\nrouting: {{native: {{cidr: 10.0.0.1/8}}}}")),
            "has host bits set",
        ),
        (
            "small mtu",
            cn(&format!("{v4}\nmtu: 500")),
            "give 0 to have it detected",
        ),
        (
            "port",
            cn(&format!("{v4}\nrouting: {{tunnel: {{port: 70000}}}}")),
            "65535",
        ),
        (
            "mode",
            cn(&format!("{v4}\nrouting: {{mode: Both}}")),
            "supported values",
        ),
        (
            "translator of Services",
            cn(&format!("{v4}\nservices: Nobody")),
            "supported values",
        ),
        (
            "masquerade exclusion",
            cn(&format!("{v4}\nmasquerade: {{exclude: [10.0.0.1/8]}}")),
            "must be a block without host bits",
        ),
        (
            "denied prefix with host bits",
            cn(&format!("{v4}\ndeniedPrefixes: [203.0.113.9/24]")),
            "must be a block without host bits",
        ),
        (
            "claim named otherwise",
            claim("10-0-2-0", "10.0.1.0/24"),
            "named by its block",
        ),
        (
            "claim named by its block",
            claim("10-0-1-0", "10.0.1.0/24"),
            "",
        ),
        (
            "IPv6 claim",
            claim("fd000010024400030000000000000000", "fd00:10:244:3::/64"),
            "",
        ),
        (
            "claim moved",
            claim("10-0-1-0", "10.0.1.0/25"),
            "a claim cannot be changed",
        ),
        (
            "identity with a reserved number",
            object("SecurityIdentity", "255", "{labels: {a: b}}"),
            "a number from 256 to 16777215",
        ),
        (
            "identity beyond 24 bits",
            object("SecurityIdentity", "16777216", "{labels: {a: b}}"),
            "a number from 256 to 16777215",
        ),
        (
            "identity",
            object("SecurityIdentity", "256", "{labels: {a: b}}"),
            "",
        ),
        (
            "identity of another set",
            object("SecurityIdentity", "256", "{labels: {a: c}}"),
            "cannot be changed, a number stands for one set for ever",
        ),
        (
            "two blocks of one family",
            object("NodeNetwork", "a", "{podCIDRs: [10.0.1.0/24, 10.0.2.0/24]}"),
            "at most one block of each family",
        ),
        (
            "a block of each family",
            object("NodeNetwork", "a", "{podCIDRs: [10.0.1.0/24, 'fd00::/64']}"),
            "",
        ),
        (
            "two addresses of a family",
            endpoint("10.0.1.1, 10.0.1.2", 256),
            "of each family",
        ),
        (
            "identity 0",
            endpoint("10.0.1.1", 0),
            "greater than or equal to 1",
        ),
        ("endpoint", endpoint("10.0.1.1, 'fd00::1'", 256), ""),
        (
            "endpoint of another pod",
            endpoint("10.0.1.1", 256).replace("podName: p", "podName: q"),
            "podName, podUID and nodeName cannot be changed",
        ),
        ("a good network", cn(NETWORK), ""),
    ];
    table(&server, &rows);
}

#[tokio::test]
async fn what_nodes_hold_cannot_be_taken_away_by_an_edit() {
    let server = Server::start().await;
    let cn = |spec: &str| cluster_network("default", spec);
    let two = "podCIDRs: [{cidr: 10.244.0.0/16, nodeMaskSize: 24}, \
               {cidr: 10.9.0.0/16, nodeMaskSize: 24}]";
    let draining = two.replace("10.9.0.0/16, ", "10.9.0.0/16, state: Draining, ");
    let one = "podCIDRs: [{cidr: 10.244.0.0/16, nodeMaskSize: 24}]";
    let kept = "put it back as it was, set its state to Draining";
    table(
        &server,
        &[("begin", cn(two), ""), ("remove", cn(one), kept)],
    );
    let shrunk = two.replace("10.244.0.0/16", "10.244.0.0/17");
    let grown = two.replace("10.244.0.0/16", "10.240.0.0/12");
    let mask = two.replacen("nodeMaskSize: 24", "nodeMaskSize: 25", 1);
    let port = format!("{two}\nrouting: {{tunnel: {{port: 4789}}}}");
    table(
        &server,
        &[
            ("shrink", cn(&shrunk), kept),
            ("grow", cn(&grown), kept),
            (
                "other mask",
                cn(&mask),
                "nodeMaskSize of a block cannot be changed",
            ),
            ("other port", cn(&port), "tunnel.port cannot be changed"),
            ("drain", cn(&draining), ""),
            ("remove before it is drained", cn(one), kept),
        ],
    );
    let status = json!({ "status": { "podCIDRs": [
        { "cidr": "10.9.0.0/16", "capacity": 256, "claimed": 0, "drained": true },
    ]}});
    let params = PatchParams::default();
    let patch = Patch::Merge(status);
    server
        .cluster_networks()
        .patch_status("default", &params, &patch)
        .await
        .unwrap();
    table(
        &server,
        &[
            ("active again though it was drained", cn(two), ""),
            ("remove while active", cn(one), kept),
            ("drain again", cn(&draining), ""),
            ("remove", cn(one), ""),
        ],
    );
}

#[tokio::test]
async fn users_find_the_resources_by_category_and_short_names() {
    let server = Server::start().await;
    server.apply(&cluster_network("default", NETWORK)).unwrap();
    let out = server.kubectl(&["get", "veer", "-A"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("clusternetwork.veer.dev/default"), "{text}");
    assert!(text.contains("MODE") && text.contains("READY"), "{text}");
    for short in ["cn", "nn", "pcidr", "sid", "pep"] {
        let out = server.kubectl(&["get", short, "-A"]);
        assert!(
            out.status.success(),
            "{short}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let out = server.kubectl(&["explain", "clusternetwork.spec.podCIDRs"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("none overlapping another"), "{text}");
}
