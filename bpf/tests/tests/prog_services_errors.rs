//! ICMP errors about translated packets, by `BPF_PROG_TEST_RUN`: the client is told of the
//! packet that it sent.

#![forbid(unsafe_code)]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr};
use veer_bpf_common::outcome::{DropReason, Program, Verdict};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::{Context, Ran},
    family::Family,
    in_both_families,
    packet::{ACK, Complaint, Headers, Packet, SYN, sum},
    services::{
        BACKEND_PORT, CLIENT_PORT, VIP, VIP_PORT, answering, ask, egress, ends, packet, serve,
    },
    world::*,
};

in_both_families! {
    an_error_about_a_translated_packet_is_about_what_the_client_sent,
    an_error_about_another_pods_flow_is_nobodys_business,
    a_pod_that_is_its_own_backend_is_told_of_what_it_sent,
}

/// The packet that an ICMP error carries, as a frame.
fn carried(frame: &[u8]) -> Result<Vec<u8>> {
    let seen = Headers::of(frame).context("no header")?;
    Ok([&[0; 12], &frame[12..14], &frame[seen.transport_at + 8..]].concat())
}

/// Whether the checksums of an ICMP error and of the header that it carries are right.
fn checksums_ok(frame: &[u8]) -> Result<bool> {
    let seen = Headers::of(frame).context("no header")?;
    let message = &frame[seen.transport_at..];
    let mut summed = Vec::new();
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (seen.source, seen.destination) {
        summed.extend(source.octets());
        summed.extend(destination.octets());
        summed.extend([0, seen.protocol]);
        summed.extend(u16::try_from(message.len())?.to_be_bytes());
    }
    summed.extend(message);
    let inner = Headers::of(&carried(frame)?).context("no header in it")?;
    Ok(seen.checksum_ok && inner.checksum_ok && sum(&summed) == 0xffff)
}

/// What the backend gets instead of [`ask`].
fn asked(protocol: u8, flags: u8, backend: Ipv4Addr) -> Packet {
    packet(protocol, (A, CLIENT_PORT), (backend, BACKEND_PORT), flags)
}

fn assert_told(
    ran: &Ran,
    what: &str,
    verdict: Verdict,
    family: Family,
    from: Ipv4Addr,
) -> Result<()> {
    assert_eq!(name(ran.decision.outcome), name(verdict as u32), "{what}");
    let [source, destination] = ends(&ran.packet).map(|(address, _)| address);
    assert_eq!(
        (source, destination),
        (family.of(from), family.of(A)),
        "{what}"
    );
    let about = ends(&carried(&ran.packet)?);
    assert_eq!(
        about,
        [(family.of(A), CLIENT_PORT), (family.of(VIP), VIP_PORT)],
        "{what}"
    );
    assert!(checksums_ok(&ran.packet)?, "{what}");
    Ok(())
}

fn an_error_about_a_translated_packet_is_about_what_the_client_sent(family: Family) -> Result<()> {
    use Complaint::{Parameter, TimeExceeded, TooBig, Unreachable};
    let deliver = Verdict::Deliver;
    let mut node = answering()?;
    for (protocol, first, flags) in [(UDP, 0, 0), (TCP, SYN, ACK)] {
        for complaint in [Unreachable, TooBig, TimeExceeded, Parameter] {
            for (what, backend, program, sender, told_by, verdict) in [
                ("the backend here", B, Program::PodEgress, B, VIP, deliver),
                (
                    "the backend there",
                    C,
                    Program::UplinkIngress,
                    C,
                    VIP,
                    deliver,
                ),
                (
                    "its node",
                    C,
                    Program::UplinkIngress,
                    NODE_2,
                    NODE_2,
                    deliver,
                ),
                ("a router", C, Program::UplinkIngress, WORLD, WORLD, deliver),
                (
                    "this node",
                    C,
                    Program::PodIngress,
                    NODE_1,
                    NODE_1,
                    Verdict::Pass,
                ),
                (
                    "a host as backend",
                    NODE_1,
                    Program::PodIngress,
                    NODE_1,
                    VIP,
                    Verdict::Pass,
                ),
            ] {
                node.clear_flows()?;
                node.set_sender(A)?;
                serve(&mut node, family, 1, &[backend])?;
                egress(&mut node, family, &ask(protocol, first))?;
                let error = Packet::error(sender, A, complaint, &asked(protocol, flags, backend));
                let error = if program == Program::PodEgress {
                    node.set_sender(B)?;
                    error.macs(B_MAC, B_NODE_MAC)
                } else {
                    error
                };
                let frame = error.frame_of(family);
                let ran = node.run(program, &frame, Context::default())?;
                assert_told(&ran, what, verdict, family, told_by)?;
            }
        }
    }
    Ok(())
}

/// As one that makes up errors would try: they go on as they are, or not at all.
fn an_error_about_another_pods_flow_is_nobodys_business(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[C])?;
    egress(&mut node, family, &ask(UDP, 0))?;
    let error = Packet::error(C, B, Complaint::Unreachable, &asked(UDP, 0, C));
    let frame = error.frame_of(family);
    let ran = node.run(Program::UplinkIngress, &frame, Context::default())?;
    assert_eq!(
        name(ran.decision.outcome),
        name(DropReason::ForeignTranslation as u32)
    );
    // About packets that go the other way.
    let error = Packet::error(C, A, Complaint::Unreachable, &asked(UDP, 0, C).reply());
    let frame = error.frame_of(family);
    let ran = node.run(Program::UplinkIngress, &frame, Context::default())?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    assert_eq!(carried(&ran.packet)?, carried(&frame)?);
    Ok(())
}

fn a_pod_that_is_its_own_backend_is_told_of_what_it_sent(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[A])?;
    let ran = egress(&mut node, family, &ask(UDP, 0))?;
    let [(gateway, _), _] = ends(&ran.packet);
    let delivered = Packet::udp((GATEWAY, CLIENT_PORT), (A, BACKEND_PORT));
    assert_eq!(gateway, family.of(GATEWAY));
    let error = Packet::error(A, GATEWAY, Complaint::Unreachable, &delivered);
    let ran = egress(&mut node, family, &error.macs(A_MAC, A_NODE_MAC))?;
    assert_told(&ran, "itself", Verdict::Deliver, family, VIP)
}
