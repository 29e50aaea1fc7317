//! Thousands of packets to frontends, whole and damaged, through `pod_egress` by
//! `BPF_PROG_TEST_RUN`: what it changes is addresses and ports alone, to those of a
//! backend. The seed is fixed: a failure comes again.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::wildcard_imports,
    reason = "random bytes; tables speak of the world by its names"
)]

use anyhow::{Result, ensure};
use veer_bpf_common::{
    outcome::{FIRST_REASON, Program},
    tables::{FORM_NATIVE, FORM_TUNNEL},
};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::{Context, Ran},
    family::Family,
    in_both_families,
    packet::{Extension, Headers, Packet},
    random::Random,
    services::{VIP, VIP_PORT, checksums_ok, packet, serve, socket},
    world::{self, *},
};

in_both_families! {
    a_packet_to_a_frontend_is_changed_as_a_whole_or_not_at_all,
}

/// Packets per family and form.
const FRAMES: usize = 20_000;
/// What the frontends lead to, but the sender itself.
const BACKENDS: [std::net::Ipv4Addr; 4] = [B, C, NODE_1, WORLD];

/// A packet of A, mostly to a frontend, and sometimes broken.
fn frame(random: &mut Random, family: Family) -> Vec<u8> {
    let protocol = [UDP, TCP][random.below(2)];
    let flags = random.number() as u8;
    let source = (A, 1000 + random.below(200) as u16);
    let port = VIP_PORT + u16::from(random.below(8) == 0);
    let mut whole =
        from_a(packet(protocol, source, (VIP, port), flags))
            .payload(vec![random.number() as u8; random.below(1300)]);
    if random.below(4) == 0 {
        whole = whole.options(random.below(5));
    }
    if family == Family::V6 && random.below(4) == 0 {
        let all = Extension::all();
        whole = whole.behind(&[all[random.below(all.len())].1.clone()]);
    }
    let identification = random.below(50) as u16;
    whole = match random.below(10) {
        0 => whole.first_fragment(identification),
        1 => whole.last_fragment(identification),
        _ => whole,
    };
    if random.below(20) == 0 {
        whole = from_a(Packet::echo(A, VIP, identification));
    }
    let mut bytes = whole.frame_of(family);
    match random.below(8) {
        0 if bytes.len() > 34 => bytes.truncate(34 + random.below(bytes.len() - 34)),
        1 => {
            let at = 14 + random.below(bytes.len().min(90) - 14);
            bytes[at] = random.number() as u8;
        }
        _ => {}
    }
    bytes
}

/// What is wrong with what became of a packet.
fn judged(family: Family, frame: &[u8], ran: &Ran) -> Result<(), &'static str> {
    if ran.decision.outcome >= FIRST_REASON {
        return Ok(());
    }
    let (Some(before), Some(after)) = (Headers::of(frame), Headers::of(&ran.packet)) else {
        return if frame == ran.packet {
            Ok(())
        } else {
            Err("no packet was changed, or what it became is none")
        };
    };
    if ran.packet.len() != frame.len() {
        return Err("its length changed");
    }
    if after.transport_at != before.transport_at || after.protocol != before.protocol {
        return Err("its headers changed");
    }
    if after.source != before.source {
        return Err("its source changed");
    }
    if checksums_ok(frame) && !checksums_ok(&ran.packet) {
        return Err("a checksum is wrong");
    }
    let is_later = before.is_later_fragment();
    if before.destination == after.destination {
        let at = before.transport_at.min(frame.len());
        return if frame[at..] == ran.packet[at..] {
            Ok(())
        } else {
            Err("its ports changed and its address did not")
        };
    }
    let is_frontend = before.destination == family.of(VIP)
        && (is_later || before.destination_port == VIP_PORT)
        && matches!(before.protocol, UDP | TCP);
    if !is_frontend {
        return Err("it is to no frontend");
    }
    let is_backend = BACKENDS.iter().any(|b| {
        let (address, port) = socket(family, *b);
        after.destination == address && (is_later || after.destination_port == port)
    });
    if !is_backend {
        return Err("it goes to no backend");
    }
    // Behind the ports and checksums nothing changes, nor anything in a later fragment.
    let kept = match (is_later, before.protocol) {
        (true, _) => before.transport_at,
        (false, UDP) => before.transport_at + 8,
        (false, _) => before.transport_at + 18,
    };
    if frame.get(kept..) != ran.packet.get(kept..) {
        return Err("what it carries changed");
    }
    Ok(())
}

fn a_packet_to_a_frontend_is_changed_as_a_whole_or_not_at_all(family: Family) -> Result<()> {
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        let mut node = world::load(&[Program::PodEgress])?;
        node.set_remote(ID_2, remote(form))?;
        serve(&mut node, family, 1, &BACKENDS)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(family.tag()));
        let mut translated = 0;
        for number in 0..FRAMES {
            let frame = frame(&mut random, family);
            // The kernel takes no frame of IP without a whole header.
            let Ok(ran) = node.run(Program::PodEgress, &frame, Context::default()) else {
                continue;
            };
            let verdict = judged(family, &frame, &ran);
            ensure!(
                verdict.is_ok(),
                "frame {number}: {} although {:?}: {frame:02x?}",
                name(ran.decision.outcome),
                verdict.err(),
            );
            translated += usize::from(frame[14..] != ran.packet[14..]);
        }
        ensure!(translated > FRAMES / 4, "{translated} were translated");
        node.check_partners()?;
    }
    Ok(())
}
