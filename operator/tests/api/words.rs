//! What an agent says, or who has its token: nothing of it may harm other nodes.

use ipnet::IpNet;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use veer_crds::manifests::SCHEMA_VERSION_KEY;
use veer_crds::v1alpha1::{NodeNetwork, NodeReport};

use crate::nodes::assert_sound;
use crate::play::NETWORK;
use crate::server::{Server, eventually};

impl Server {
    /// Writes this into the status of a node's object; what the server said.
    async fn says(&self, kind: &str, node: &str, status: Value) -> Result<(), String> {
        let (params, patch) = (
            PatchParams::default(),
            Patch::Merge(json!({ "status": status })),
        );
        // Its answer may be one that cannot be read.
        let refused = if kind == "NodeNetwork" {
            let networks = self.networks();
            networks.patch_status(node, &params, &patch).await.err()
        } else {
            let reports = self.reports();
            reports.patch_status(node, &params, &patch).await.err()
        };
        match refused {
            Some(error @ kube::Error::Api(_)) => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// The note of the Event of this reason on a Node.
    pub(crate) async fn event_on(&self, node: &str, reason: &str) -> String {
        let events: Api<Event> = Api::all(self.client.clone());
        eventually(&format!("an Event {reason} on node {node}"), async || {
            let all = events.list(&ListParams::default()).await.unwrap().items;
            let of = |e: &&Event| {
                let on = e.regarding.as_ref().and_then(|r| r.name.as_deref());
                on == Some(node) && e.reason.as_deref() == Some(reason)
            };
            let found = all.iter().find(of).and_then(|e| e.note.clone());
            found.ok_or_else(|| format!("{} events", all.len()))
        })
        .await
    }

    /// Takes the rules from a field of a kind's status, as in a release before them.
    async fn without_rules(&self, kind: &str, field: &str) {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let mut crd = crds.get(kind).await.unwrap();
        let version = &mut crd.spec.versions[0];
        let schema = version.schema.as_mut().unwrap();
        let root = schema.open_api_v3_schema.as_mut().unwrap();
        let status = root.properties.as_mut().unwrap().get_mut("status").unwrap();
        let field = status.properties.as_mut().unwrap().get_mut(field).unwrap();
        field.x_kubernetes_validations = None;
        // The operator does not replace it.
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert(SCHEMA_VERSION_KEY.into(), "999".into());
        let params = PostParams::default();
        crds.replace(kind, &params, &crd).await.unwrap();
    }
}

/// Blocks claimed, and blocks that nodes are told, in order.
async fn given(server: &Server) -> (Vec<IpNet>, Vec<IpNet>) {
    let claims = server.all_claims().await;
    let mut claimed: Vec<IpNet> = claims.iter().map(|c| c.spec.cidr).collect();
    let all = server.networks().list(&ListParams::default()).await;
    let all = all.unwrap().items;
    let mut told: Vec<IpNet> = all.into_iter().flat_map(|n| n.spec.pod_cidrs).collect();
    claimed.sort();
    told.sort();
    (claimed, told)
}

#[tokio::test]
async fn a_block_that_is_no_share_of_the_network_is_given_to_nobody_who_says_he_holds_it() {
    let server = Server::start().await;
    let _operator = server.operator("podCIDRs: [{cidr: 10.8.0.0/22, nodeMaskSize: 24}]", &[]);
    for name in ["a", "b"] {
        server.add_node(name).await;
        server.kubelet(name, true).await;
        server.network_of(name).await;
        let boot = json!({ "bootID": format!("boot-{name}") });
        server.report(name, boot).await;
        server.block_of(name).await;
        server.agent(name).await;
    }
    let before = given(&server).await;
    let (a, b) = (server.block_of("a").await, server.block_of("b").await);
    let says = async |blocks: &[&str]| {
        let status = json!({ "heldPodCIDRs": blocks });
        server.says("NodeNetwork", "a", status).await.unwrap();
    };
    // Services' addresses, the nodes' own, half of the network and the whole, parts of
    // a share, another node's block, a second share: next to its own block.
    let (own, others) = (a.to_string(), b.to_string());
    let claims = [
        own.as_str(),
        "10.96.0.0/12",
        "192.0.2.0/24",
        "10.8.0.0/23",
        "10.8.0.0/22",
        "10.8.3.0/25",
        "10.8.3.9/32",
        &others,
        "10.8.2.0/24",
    ];
    says(&claims).await;
    let said = server.event_on("a", "BlockRefused").await;
    assert!(said.contains("10.8.0.0/22, 10.8.0.0/23"), "{said}");
    // What is not believed takes no room from the next.
    server.add_node("c").await;
    let c = server.block_of("c").await;
    server.add_node("d").await;
    let d = server.block_of("d").await;
    let mut expected = before.clone();
    for list in [&mut expected.0, &mut expected.1] {
        list.extend([c, d]);
        list.sort();
    }
    assert_eq!(given(&server).await, expected);
    // Another node's block in place of its own: that is no block of this node's.
    says(&[&others]).await;
    server.event_on("a", "HeldByOther").await;
    assert_eq!(server.network_of("a").await.spec.pod_cidrs, [a]);
    assert_eq!(given(&server).await, expected);
    assert_sound(&server).await;
}

#[tokio::test]
async fn what_an_agent_writes_is_refused_unless_it_can_be_read() {
    let server = Server::start().await;
    let network = NodeNetwork::new("a", veer_crds::v1alpha1::NodeNetworkSpec::default());
    let report = NodeReport::new("a", veer_crds::v1alpha1::NodeReportSpec::default());
    let params = PostParams::default();
    server.networks().create(&params, &network).await.unwrap();
    server.reports().create(&params, &report).await.unwrap();
    let epoch = |number: Value| json!({ "number": number, "mode": "Tunnel", "phase": "Ready" });
    let condition = json!({
        "type": "Ready", "status": "Maybe or maybe not", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let long = "x".repeat(40_000);
    let blocks = vec!["10.0.0.0/24"; 17];
    let refused = [
        ("NodeNetwork", json!({ "heldPodCIDRs": ["nonsense"] })),
        ("NodeNetwork", json!({ "heldPodCIDRs": ["10.0.0.0"] })),
        ("NodeNetwork", json!({ "heldPodCIDRs": ["010.0.0.0/24"] })),
        ("NodeNetwork", json!({ "heldPodCIDRs": ["10.0.0.0/33"] })),
        ("NodeNetwork", json!({ "heldPodCIDRs": blocks })),
        ("NodeNetwork", json!({ "pathMtu": 1_000_000_000_000_i64 })),
        ("NodeNetwork", json!({ "pathMtu": -1 })),
        ("NodeNetwork", json!({ "applied": epoch(json!(1e30)) })),
        ("NodeNetwork", json!({ "keptForm": { "number": 1e19 } })),
        ("NodeReport", json!({ "addresses": ["nonsense"] })),
        ("NodeReport", json!({ "addresses": ["10.0.0.1/32"] })),
        ("NodeReport", json!({ "addresses": ["fe80::1%eth0"] })),
        ("NodeReport", json!({ "bootID": long })),
        ("NodeReport", json!({ "endpoints": 5_000_000_000_i64 })),
        ("NodeReport", json!({ "conditions": [condition] })),
    ];
    for (kind, status) in refused {
        let said = server.says(kind, "a", status.clone()).await;
        let text = status.to_string().chars().take(80).collect::<String>();
        assert!(said.is_err(), "accepted: {kind} {text}");
    }
    let said = server
        .says("NodeNetwork", "a", json!({ "heldPodCIDRs": ["x"] }))
        .await;
    assert!(said.unwrap_err().contains("must be a block of addresses"));
    let accepted = [
        (
            "NodeNetwork",
            json!({ "heldPodCIDRs": ["10.0.0.0/24", "fd00:10:244:3::/64"] }),
        ),
        (
            "NodeNetwork",
            json!({ "applied": epoch(json!(3)), "pathMtu": 9000 }),
        ),
        (
            "NodeReport",
            json!({ "addresses": ["192.0.2.7", "2001:db8::7", "fe80::1"] }),
        ),
        (
            "NodeReport",
            json!({ "repairs": { "routes": 3 }, "identitySerial": "18446744073709551615" }),
        ),
    ];
    for (kind, status) in accepted {
        server.says(kind, "a", status).await.unwrap();
    }
}

#[tokio::test]
async fn an_object_that_cannot_be_read_delays_no_other_node() {
    let server = Server::start().await;
    server
        .without_rules("nodenetworks.veer.dev", "heldPodCIDRs")
        .await;
    server
        .without_rules("nodereports.veer.dev", "addresses")
        .await;
    let operator = server.operator(NETWORK, &[]);
    for name in ["a", "b"] {
        server.join(name).await;
        server.block_of(name).await;
        server.agent(name).await;
    }
    // While the operator watches, and in what the next one lists.
    let spoils = async |kind: &str, node: &str, status: Value| {
        eventually("it is written", async || {
            server.says(kind, node, status.clone()).await
        })
        .await;
    };
    spoils("NodeReport", "b", json!({ "addresses": ["nonsense"] })).await;
    spoils("NodeNetwork", "a", json!({ "heldPodCIDRs": ["nonsense"] })).await;
    let said = server.event_on("a", "Unreadable").await;
    assert!(said.starts_with("NodeNetwork a cannot be read"), "{said}");
    server.event_on("b", "Unreadable").await;
    server.add_node("c").await;
    server.block_of("c").await;
    operator.terminate();
    let operator = server.operator(NETWORK, &[]);
    server.add_node("d").await;
    server.block_of("d").await;
    let known = operator
        .said()
        .matches("cannot be read, and is left out")
        .count();
    assert_eq!(known, 2, "each is named once: {}", operator.said());
    // And once it can be read, it counts again.
    server
        .says("NodeNetwork", "a", json!({ "heldPodCIDRs": [] }))
        .await
        .unwrap();
    server.agent("a").await;
    server
        .says("NodeReport", "b", json!({ "addresses": ["192.0.2.7"] }))
        .await
        .unwrap();
    eventually("all nodes are told the epoch", async || {
        let all = server
            .networks()
            .list(&ListParams::default())
            .await
            .unwrap();
        let told = all.items.iter().filter(|n| n.spec.epoch.is_some()).count();
        if told == 4 {
            Ok(())
        } else {
            Err(format!("{told}: {}", operator.said()))
        }
    })
    .await;
}
