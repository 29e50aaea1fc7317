//! Thousands of damaged frames of both families through every program, by
//! `BPF_PROG_TEST_RUN`. What a test reads in a frame by itself must allow what the
//! program made of it. The seed is fixed: a failure comes again.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::wildcard_imports,
    reason = "random bytes; tables speak of the world by its names"
)]

use anyhow::{Result, ensure};
use std::net::{IpAddr, Ipv4Addr};
use veer_bpf_common::{
    identity::Identity,
    outcome::{FIRST_REASON, Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    family::Family,
    in_both_families,
    packet::{Complaint, Extension, Headers, Packet, SYN, arp, link_local, tagged},
    random::Random,
    world::{self, *},
};

in_both_families! {
    nothing_but_the_pods_own_leaves_it,
    nothing_that_may_not_come_passes_an_uplink,
    the_tunnel_device_carries_what_the_node_or_its_pods_send,
    what_is_observed_goes_on_unchanged,
    no_strangers_tunnel_packet_passes_xdp,
}

/// Damaged frames per program and family.
const FRAMES: usize = 20_000;

/// Between all that exist: whole frames of a family, to be damaged.
fn whole(family: Family) -> Vec<Vec<u8>> {
    let all = [A, B, C, D, GATEWAY, HEALTH_2, NODE_1, NODE_2, WORLD];
    let udp = |source, to| Packet::udp((source, 1111), (to, 2222));
    let mut packets = Vec::new();
    for source in all {
        for to in all {
            packets.push(udp(source, to));
            packets.push(Packet::tcp((source, 1), (to, 2), SYN));
            packets.push(Packet::echo(source, to, 9));
            packets.push(udp(source, to).first_fragment(3));
            packets.push(udp(source, to).last_fragment(3));
            packets.push(udp(source, to).options(4));
            packets.push(Packet::vxlan(
                source,
                to,
                C_IDENTITY,
                &udp(C, B).frame_of(family),
            ));
            let about = udp(to, C);
            packets.push(Packet::error(source, to, Complaint::TooBig, &about));
            if family == Family::V6 {
                for (_, extension) in Extension::all() {
                    packets.push(udp(source, to).behind(&[extension]));
                }
            }
        }
    }
    let mut frames: Vec<_> = packets
        .into_iter()
        .map(|packet| from_a(packet).frame_of(family))
        .collect();
    frames.push(arp(1, (A_MAC, A), ([0; 6], GATEWAY)));
    let (own, gateway) = (octets_v6(A).into(), octets_v6(GATEWAY).into());
    for source in [own, link_local(A_MAC)] {
        frames.push(from_a(Packet::solicitation(source, gateway, A_MAC)).frame());
        frames.push(from_a(Packet::advertisement(source, gateway, 0, (own, A_MAC))).frame());
    }
    frames
}

/// One of them with some of its bits or bytes changed, its end cut off, or a tag.
fn damaged(random: &mut Random, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = frames[random.below(frames.len())].clone();
    for _ in 0..random.below(4) {
        // Mostly in the headers.
        let limit = if random.below(4) == 0 {
            frame.len()
        } else {
            frame.len().min(90)
        };
        let at = random.below(limit);
        match random.below(3) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = random.number() as u8,
            _ => frame[at] = [0, 1, 6, 17, 43, 44, 58, 60, 255][random.below(9)],
        }
    }
    match random.below(12) {
        0 => frame.truncate(15 + random.below(frame.len() - 15)),
        1 => frame = tagged(&frame, &[[0x81, 0, 0, random.below(2) as u8]]),
        2 => {
            // The addresses of another frame.
            let other = &frames[random.below(frames.len())];
            let end = other.len().min(frame.len()).min(54);
            frame[22..end].copy_from_slice(&other[22..end]);
        }
        _ => {}
    }
    frame
}

/// Runs a program on damaged frames, each judged by `allowed`, which says what is wrong.
fn fuzz(
    family: Family,
    program: Program,
    form: u8,
    allowed: impl Fn(&[u8], Option<Headers>, &Ran) -> Result<(), &'static str>,
) -> Result<()> {
    let mut node = world::load(&[program])?;
    node.set_remote(ID_2, remote(form))?;
    let frames = whole(family);
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(family.tag()));
    let (mut ran_at_all, mut went_on) = (0, 0);
    for number in 0..FRAMES {
        let frame = damaged(&mut random, &frames);
        // The kernel takes no frame of IP without a whole header.
        let Ok(ran) = run(&mut node, program, &frame) else {
            continue;
        };
        ran_at_all += 1;
        went_on += usize::from(ran.decision.outcome < FIRST_REASON);
        let verdict = allowed(&frame, Headers::of(&frame), &ran);
        ensure!(
            verdict.is_ok(),
            "{}, frame {number}: {} although {:?}: {frame:02x?}",
            program.name(),
            name(ran.decision.outcome),
            verdict.err(),
        );
    }
    ensure!(
        ran_at_all > FRAMES * 9 / 10 && went_on > FRAMES / 100,
        "{ran_at_all} frames ran, {went_on} went on"
    );
    Ok(())
}

fn run(node: &mut Datapath, program: Program, frame: &[u8]) -> Result<Ran> {
    if program == Program::UplinkXdp {
        node.run_xdp(frame)
    } else {
        node.run(program, frame, Context::default())
    }
}

fn is(ran: &Ran, verdict: Verdict) -> bool {
    ran.decision.outcome == verdict as u32
}

/// Whether an address is one of these, or what they stand for.
fn among(address: IpAddr, all: &[Ipv4Addr]) -> bool {
    let family = Family::of_address(address);
    all.iter().any(|a| family.of(*a) == address)
}

/// Whether an address is in 10.0.n.0/24, or what that stands for.
fn in_block(address: IpAddr, n: u8) -> bool {
    let family = Family::of_address(address);
    (0..=255).any(|last| family.of(Ipv4Addr::new(10, 0, n, last)) == address)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80)
}

/// What must hold of a packet that was delivered into a pod here.
fn delivered(seen: &Headers, ran: &Ran) -> Result<(), &'static str> {
    let after = Headers::of(&ran.packet).ok_or("it is no packet any more")?;
    let mac = if among(seen.destination, &[A]) {
        A_MAC
    } else {
        B_MAC
    };
    if !among(seen.destination, &[A, B]) {
        Err("no pod here has the destination")
    } else if seen.ttl <= 1 || after.ttl != seen.ttl - 1 {
        Err("the hop was not counted")
    } else if after.destination_mac != mac {
        Err("the MAC is another pod's")
    } else {
        Ok(())
    }
}

fn nothing_but_the_pods_own_leaves_it(family: Family) -> Result<()> {
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        fuzz(family, Program::PodEgress, form, |frame, seen, ran| {
            if ran.code == SHOT {
                return Ok(());
            }
            if frame[6..12] != A_MAC {
                return Err("the MAC is not the pod's");
            }
            let Some(seen) = seen else {
                let answered = frame[12..14] == [8, 6] && is(ran, Verdict::Answer);
                return if answered {
                    Ok(())
                } else {
                    Err("it is no packet")
                };
            };
            let neighbour = matches!(seen.icmp(), Some((135 | 136, 0)));
            if neighbour && is_link_local(seen.source) {
                let said = is(ran, Verdict::Answer) || is(ran, Verdict::ToStack);
                return if said {
                    Ok(())
                } else {
                    Err("it is of the link")
                };
            }
            if !among(seen.source, &[A]) {
                return Err("the source is not the pod's");
            }
            if matches!(seen.icmp(), Some((134 | 137, _))) && seen.family() == Family::V6 {
                return Err("it is a router's");
            }
            if is(ran, Verdict::Answer) {
                return if neighbour {
                    Ok(())
                } else {
                    Err("it asks nothing")
                };
            }
            if frame[12..14] == [0x86, 0xdd] && routed(frame) {
                return Err("it has a routing header");
            }
            let to_node = among(seen.destination, &[NODE_1, NODE_2, GATEWAY, HEALTH_2]);
            if to_node
                && seen.protocol == 17
                && seen.destination_port == 8472
                && !seen.is_later_fragment()
            {
                return Err("it is to the tunnel");
            }
            if is(ran, Verdict::Deliver) {
                return delivered(&seen, ran);
            }
            let there = in_block(seen.destination, 2) || among(seen.destination, &[NODE_2]);
            let sent = is(ran, Verdict::Overlay) || is(ran, Verdict::Native);
            if sent && (!there || is(ran, Verdict::Native) != (form == FORM_NATIVE)) {
                return Err("the destination is not there, or not by this form");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Whether there is a routing header among the extension headers.
fn routed(frame: &[u8]) -> bool {
    let (mut next, mut at) = (frame[20], 54);
    while let Some(h) = frame.get(at..at + 8) {
        at += match next {
            43 => return true,
            44 if u16::from_be_bytes([h[2], h[3]]) & 0xfff8 != 0 => return false,
            44 => 8,
            51 => (usize::from(h[1]) + 2) * 4,
            0 | 60 | 135 | 139 | 140 => (usize::from(h[1]) + 1) * 8,
            _ => return false,
        };
        next = h[0];
    }
    false
}

fn nothing_that_may_not_come_passes_an_uplink(family: Family) -> Result<()> {
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        fuzz(family, Program::UplinkIngress, form, |frame, seen, ran| {
            let Some(seen) = seen.filter(|_| ran.code != SHOT) else {
                return Ok(());
            };
            let tunnel = seen.protocol == 17 && seen.destination_port == 8472;
            if is(ran, Verdict::Pass) && tunnel && among(seen.source, &[NODE_2, NODE_3]) {
                return Ok(());
            }
            if in_block(seen.source, 1) {
                return Err("the source is this node's own");
            }
            let there = in_block(seen.source, 2);
            let probe = seen.is_icmp()
                && among(seen.source, &[HEALTH_2])
                && among(seen.destination, &[GATEWAY]);
            if there && form != FORM_NATIVE && !probe {
                return Err("the native form is not accepted");
            }
            if in_block(seen.source, 3) {
                return Err("the native form is accepted from no such node");
            }
            if there && frame[12..14] == [0x86, 0xdd] && routed(frame) {
                return Err("it has a routing header");
            }
            if is(ran, Verdict::Deliver) {
                return delivered(&seen, ran);
            }
            if frame != ran.packet {
                return Err("it was changed");
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn the_tunnel_device_carries_what_the_node_or_its_pods_send(family: Family) -> Result<()> {
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        fuzz(family, Program::OverlayEgress, form, |frame, seen, ran| {
            if ran.code == SHOT {
                return Ok(());
            }
            let seen = seen.ok_or("it is no packet")?;
            if !in_block(seen.destination, 2) && !among(seen.destination, &[NODE_2]) {
                return Err("the destination is not there");
            }
            if is(ran, Verdict::Overlay) {
                let vni = if among(seen.source, &[NODE_1, GATEWAY]) {
                    Identity::REMOTE_NODE
                } else if among(seen.source, &[A]) {
                    A_IDENTITY
                } else if among(seen.source, &[B]) {
                    B_IDENTITY
                } else if in_block(seen.source, 1) {
                    Identity::INIT
                } else {
                    return Err("the source is not here");
                };
                if ran.decision.vni != vni.get() {
                    return Err("the VNI is another's");
                }
            }
            if frame != ran.packet {
                return Err("it was changed");
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn what_is_observed_goes_on_unchanged(family: Family) -> Result<()> {
    for program in [Program::PodIngress, Program::UplinkEgress] {
        let all = |frame: &[u8], _: Option<Headers>, ran: &Ran| {
            if ran.code == UNSPEC && frame == ran.packet {
                Ok(())
            } else {
                Err("it is only to be observed")
            }
        };
        fuzz(family, program, FORM_TUNNEL, all)?;
    }
    Ok(())
}

fn no_strangers_tunnel_packet_passes_xdp(family: Family) -> Result<()> {
    fuzz(
        family,
        Program::UplinkXdp,
        FORM_TUNNEL,
        |frame, seen, ran| {
            if frame != ran.packet {
                return Err("it was changed");
            }
            let Some(seen) = seen.filter(|_| is(ran, Verdict::Pass)) else {
                return Ok(());
            };
            let tunnel = seen.protocol == 17
                && seen.destination_port == 8472
                && !seen.is_later_fragment()
                && among(seen.destination, &[NODE_1, GATEWAY]);
            if tunnel && !among(seen.source, &[NODE_2, NODE_3]) {
                return Err("it is a stranger's tunnel packet");
            }
            Ok(())
        },
    )
}
