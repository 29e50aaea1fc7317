//! What pods send to `NodePort`s, by `BPF_PROG_TEST_RUN`: to those of this node and of
//! others, which lead where a Service's own address does.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr};
use veer_bpf_common::{
    identity::Identity,
    node::NodeId,
    outcome::{FlowState, Program, Verdict},
    tables::{FORM_NATIVE, Frontend},
};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{ACK, Packet, SYN},
    services::{
        BACKEND_PORT, CLIENT_PORT, answer, back, checksums_ok, egress, ends, packet, socket,
    },
    world::{self, *},
};

in_both_families! {
    a_packet_to_a_node_port_goes_to_a_backend_and_its_answer_comes_from_the_node,
    what_is_no_node_ports_goes_where_it_was_sent,
    what_the_stack_translated_is_answered_through_it_whatever_its_port,
    a_node_port_that_other_nodes_keep_for_themselves_is_asked_of_them,
    what_goes_through_a_node_port_goes_on_when_that_is_none_any_more,
    health_addresses_of_nodes_have_no_node_ports,
}

const PORT: u16 = 30_080;
const NODES: [(Ipv4Addr, bool); 2] = [(NODE_1, false), (NODE_2, true)];

fn load() -> Result<Datapath> {
    let mut node = world::load(&[Program::PodEgress])?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    Ok(node)
}

/// The address under which the agent writes `NodePort`s.
fn at_node(family: Family, of_other: bool) -> IpAddr {
    let address = Frontend::new(family.of(A), 0, 0).at_node(of_other).address;
    let [a, b, c, d, ..] = address;
    family.pick(IpAddr::from([a, b, c, d]), IpAddr::from(address))
}

fn serve(node: &mut Datapath, family: Family, of_other: bool, backend: Ipv4Addr) -> Result<()> {
    for protocol in [UDP, TCP] {
        let frontend = (at_node(family, of_other), PORT, protocol);
        let backends = [socket(family, backend)];
        node.set_service(frontend, protocol.into(), 1, &backends, 0)?;
    }
    Ok(())
}

fn to_port(protocol: u8, node: Ipv4Addr, flags: u8) -> Packet {
    from_a(packet(protocol, (A, CLIENT_PORT), (node, PORT), flags))
}

fn a_packet_to_a_node_port_goes_to_a_backend_and_its_answer_comes_from_the_node(
    family: Family,
) -> Result<()> {
    let mut node = load()?;
    for (of, of_other) in NODES {
        for (backend, verdict) in [
            (B, Verdict::Deliver),
            (C, Verdict::Native),
            (NODE_1, Verdict::ToStack),
            (NODE_2, Verdict::Native),
        ] {
            serve(&mut node, family, of_other, backend)?;
            for (protocol, flags) in [(UDP, [0, 0]), (TCP, [SYN, ACK])] {
                node.clear_flows()?;
                let what = format!("{of} → {backend}, protocol {protocol}");
                for (flags, state) in flags
                    .into_iter()
                    .zip([FlowState::New, FlowState::Established])
                {
                    node.set_sender(A)?;
                    let ran = egress(&mut node, family, &to_port(protocol, of, flags))?;
                    let outcome = ran.decision.outcome;
                    assert_eq!(name(outcome), name(verdict as u32), "{what}");
                    let seen = ends(&ran.packet);
                    let client = (family.of(A), CLIENT_PORT);
                    assert_eq!(seen, [client, socket(family, backend)], "{what}");
                    assert!(checksums_ok(&ran.packet), "{what}");
                    assert_eq!(ran.decision.flow, state as u16, "{what}");
                }
                let asked = family.flow(protocol, (A, CLIENT_PORT), (of, PORT));
                node.pair(&asked, &back(family, protocol, backend))
                    .context(what.clone())?;
                if backend == B {
                    node.set_sender(B)?;
                    let ran = egress(&mut node, family, &answer(protocol, ACK))?;
                    let seen = ends(&ran.packet);
                    let node_port = (family.of(of), PORT);
                    assert_eq!(seen, [node_port, (family.of(A), CLIENT_PORT)], "{what}");
                    assert!(checksums_ok(&ran.packet), "{what}");
                }
            }
        }
    }
    Ok(())
}

fn what_is_no_node_ports_goes_where_it_was_sent(family: Family) -> Result<()> {
    const EMPTY: u16 = 30_081;
    let mut node = load()?;
    for (_, of_other) in NODES {
        serve(&mut node, family, of_other, B)?;
        for protocol in [UDP, TCP] {
            let frontend = (at_node(family, of_other), EMPTY, protocol);
            node.set_service(frontend, 70, 1, &[], 0)?;
        }
    }
    for (of, verdict) in [(NODE_1, Verdict::ToStack), (NODE_2, Verdict::Native)] {
        let to = |protocol, port, flags| packet(protocol, (A, CLIENT_PORT), (of, port), flags);
        for (what, packet) in [
            ("another port", to(UDP, PORT + 2, 0)),
            ("UDP, no backends", to(UDP, EMPTY, 0)),
            ("TCP, no backends", to(TCP, EMPTY, SYN)),
            // A connection from before veer translated.
            ("an ACK of no flow", to(TCP, PORT, ACK)),
            ("a SYN-ACK of no flow", to(TCP, PORT, SYN | ACK)),
            ("a ping", Packet::echo(A, of, 9)),
        ] {
            let ran = egress(&mut node, family, &from_a(packet))?;
            let what = format!("{what} to {of}");
            let outcome = ran.decision.outcome;
            assert_eq!(name(outcome), name(verdict as u32), "{what}");
            assert_eq!(headers(&ran.packet).destination, family.of(of), "{what}");
            assert_eq!(node.flow_count()?, 0, "{what}");
        }
    }
    Ok(())
}

/// A client behind the stack's translation may have any port.
fn what_the_stack_translated_is_answered_through_it_whatever_its_port(
    family: Family,
) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress, Program::PodIngress])?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    serve(&mut node, family, true, B)?;
    let asked = Packet::udp((NODE_2, PORT), (A, CLIENT_PORT)).frame_of(family);
    node.run(Program::PodIngress, &asked, Context::default())?;
    let ran = egress(&mut node, family, &to_port(UDP, NODE_2, 0))?;
    let outcome = ran.decision.outcome;
    assert_eq!(name(outcome), name(Verdict::ToStackNoted as u32));
    assert_eq!(ends(&ran.packet)[1], (family.of(NODE_2), PORT));
    Ok(())
}

fn a_node_port_that_other_nodes_keep_for_themselves_is_asked_of_them(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, false, B)?;
    for (of, verdict, port) in [
        (NODE_1, Verdict::Deliver, BACKEND_PORT),
        (NODE_2, Verdict::Native, PORT),
    ] {
        let ran = egress(&mut node, family, &to_port(TCP, of, SYN))?;
        let outcome = ran.decision.outcome;
        assert_eq!(name(outcome), name(verdict as u32), "{of}");
        assert_eq!(ends(&ran.packet)[1].1, port, "{of}");
    }
    Ok(())
}

/// Who translated a connection goes on with it: by no row, and by one without backends.
fn what_goes_through_a_node_port_goes_on_when_that_is_none_any_more(family: Family) -> Result<()> {
    let mut node = load()?;
    for (of, of_other) in NODES {
        for backends in [None, Some(&[][..])] {
            for (protocol, flags) in [(TCP, [SYN, ACK]), (UDP, [0, 0])] {
                node.clear_flows()?;
                serve(&mut node, family, of_other, C)?;
                egress(&mut node, family, &to_port(protocol, of, flags[0]))?;
                let frontend = (at_node(family, of_other), PORT, protocol);
                match backends {
                    None => node.remove_service(frontend)?,
                    Some(left) => node.set_service(frontend, protocol.into(), 2, left, 0)?,
                }
                let ran = egress(&mut node, family, &to_port(protocol, of, flags[1]))?;
                let what = format!("{of}, protocol {protocol}, {backends:?}");
                let outcome = ran.decision.outcome;
                assert_eq!(name(outcome), name(Verdict::Native as u32), "{what}");
                assert_eq!(ends(&ran.packet)[1], socket(family, C), "{what}");
                // And no new one begins.
                let client = (A, CLIENT_PORT + 1);
                let other = from_a(packet(protocol, client, (of, PORT), flags[0]));
                let ran = egress(&mut node, family, &other)?;
                assert_eq!(ends(&ran.packet)[1], (family.of(of), PORT), "{what}");
            }
        }
    }
    Ok(())
}

/// They are what nodes' stacks send from; the own one is the gateway of pods.
fn health_addresses_of_nodes_have_no_node_ports(family: Family) -> Result<()> {
    let mut node = load()?;
    for (of, of_other, id) in [(GATEWAY, false, NodeId::LOCAL), (NODE_2, true, ID_2)] {
        serve(&mut node, family, of_other, B)?;
        let address = (family.of(of), family.bits());
        node.set_prefix(address, Identity::HEALTH, id)?;
        let ran = egress(&mut node, family, &to_port(UDP, of, 0))?;
        assert_eq!(ends(&ran.packet)[1], (family.of(of), PORT), "{of}");
    }
    Ok(())
}
