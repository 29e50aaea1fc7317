//! Frames whose `EtherType` is not what their `skb->protocol` says, by which the programs
//! choose the family: a socket may send such frames.

#![forbid(unsafe_code)]

use anyhow::Result;
use veer_bpf_common::outcome::{DropReason, Program, Verdict};
use veer_bpf_tests::{
    family::Family,
    in_both_families,
    lab::{ETH0, TwoNodes, VXLAN},
    netns::await_condition,
    packet::{Headers, Packet},
};

in_both_families! {
    a_frame_of_another_type_than_it_says_is_no_packet_of_either_family,
    what_a_pod_sends_is_judged_by_the_type_in_its_frame,
}

fn a_frame_of_another_type_than_it_says_is_no_packet_of_either_family(
    family: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, Family::V4)?;
    let other = family.pick(Family::V6, Family::V4).ether_type();
    let (a, b, c) = (lab.a.address, lab.b.address, lab.c.address);
    let mut wire = lab.two.namespace.capture(ETH0)?;
    let dropped = DropReason::UnsupportedL3 as u32;
    let (pass, noted) = (Verdict::Pass as u32, Verdict::PassNoted as u32);
    for (program, device, source, to, wrong, right) in [
        (
            Program::OverlayEgress,
            VXLAN,
            a,
            c,
            dropped,
            Verdict::Overlay as u32,
        ),
        (Program::PodIngress, &lab.b.device, c, b, pass, noted),
        (Program::UplinkEgress, ETH0, a, c, pass, noted),
    ] {
        let raw = lab.one.namespace.raw(device)?;
        let frame = Packet::udp((source, 7), (to, 9)).frame();
        // What it ends as when it is what it says shows that the type is the reason.
        for (protocol, outcome) in [(other, wrong), (family.ether_type(), right)] {
            lab.one.datapath.clear_flows()?;
            let node = &mut lab.one.datapath;
            let before = node.packets(program, outcome)?;
            // The kernel tells a sender that its packet was dropped on the way out.
            let sent = raw.send_as(protocol, &frame);
            assert_eq!(sent.is_ok(), outcome != dropped, "{sent:?}");
            await_condition(
                &format!("{} counts type {protocol:#x}", program.name()),
                || Ok((node.packets(program, outcome)? > before).then_some(())),
                || format!("{outcome} expected"),
            )?;
            let flows = node.flow_count()?;
            assert_eq!(flows, usize::from(protocol != other), "{}", program.name());
        }
    }
    let tunnelled = |f: &[u8]| {
        let outer = Headers::of(f)?;
        let inner = Headers::of(outer.tunnelled(f)?.1)?;
        (inner.source == a).then_some(())
    };
    wire.wait(tunnelled)?;
    let sent = wire.frames()?.iter().filter_map(|f| tunnelled(f)).count();
    assert_eq!(sent, 1, "tunnel packets");
    Ok(())
}

fn what_a_pod_sends_is_judged_by_the_type_in_its_frame(family: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, Family::V4)?;
    let other = family.pick(Family::V6, Family::V4).ether_type();
    let raw = lab.a.namespace.raw(ETH0)?;
    for (source, outcome) in [
        (lab.b.address, DropReason::SpoofedAddress as u32),
        (lab.a.address, Verdict::Deliver as u32),
    ] {
        let packet = Packet::udp((source, 7), (lab.b.address, 9));
        let frame = packet.macs(lab.a.mac, lab.a.node_mac).frame();
        raw.send_as(other, &frame)?;
        let node = &mut lab.one.datapath;
        await_condition(
            &format!("a packet of {source} is judged"),
            || Ok((node.packets(Program::PodEgress, outcome)? > 0).then_some(())),
            || format!("{outcome} expected"),
        )?;
    }
    Ok(())
}
