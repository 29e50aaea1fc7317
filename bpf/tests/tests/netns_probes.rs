//! Probes between two nodes, on the wire: ICMP echo with a mark goes in the form
//! it asks for while the entry says the other, and the kernel there answers.

#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use std::net::IpAddr;
use veer_bpf_common::{
    VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6,
    identity::{Identity, Vni},
    mark,
    tables::{FORM_NATIVE, FORM_TUNNEL, Remote},
};
use veer_bpf_tests::{
    echo::Echo,
    family::Family,
    in_and_over_both_families,
    lab::{ETH0, MTU, TwoNodes, address, gateway, id},
    netns::{Capture, DEADLINE},
    packet::Headers,
};

in_and_over_both_families! {
    a_tunnel_probe_is_tunnelled_while_the_pair_is_native,
    a_native_probe_is_bare_while_the_pair_is_tunnelled,
    a_native_probe_is_answered_by_a_node_that_takes_nothing_bare_for_its_pods,
    a_probe_that_does_not_fit_its_form_is_not_cut_up,
    a_pair_that_was_not_confirmed_goes_back_by_itself_on_the_wire,
    what_the_stack_sends_bare_waits_for_the_neighbours_mac,
}

const NATIVE_MTU: usize = MTU as usize;
/// The small size of the agent's probes.
const SMALL: usize = 64;

/// Largest packet in the tunnel.
fn tunnel_mtu(outer: Family) -> usize {
    (MTU - outer.pick(VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6)) as usize
}

/// An echo request of node 1's health address, of `length` bytes, in a tunnel
/// packet: its outer header and VNI.
fn tunnelled(frame: &[u8], length: usize) -> Option<(Headers, Vni)> {
    let outer = Headers::of(frame)?;
    let (vni, inner) = outer.tunnelled(frame)?;
    let request = Headers::of(inner)?;
    (is_request(&request) && inner.len() == 14 + length).then_some((outer, vni))
}

fn bare(frame: &[u8], length: usize) -> Option<Headers> {
    let seen = Headers::of(frame)?;
    (is_request(&seen) && frame.len() == 14 + length).then_some(seen)
}

fn is_request(seen: &Headers) -> bool {
    let family = seen.family();
    (seen.source, seen.destination) == (gateway(family, 1), gateway(family, 2)) && seen.is_icmp()
}

fn probe(lab: &TwoNodes, family: Family, mark: u32) -> Result<Echo> {
    let node = &lab.one.namespace;
    node.run(|| Echo::new(gateway(family, 1), mark, 77))
}

/// Sends a probe and waits for its reply.
fn exchange(lab: &mut TwoNodes, probe: &Echo, to: IpAddr, length: usize) -> Result<()> {
    probe.send(to, length)?;
    probe
        .reply(length, DEADLINE)
        .with_context(|| lab.counted().unwrap_or_default())
}

fn wire(lab: &TwoNodes) -> Result<Capture> {
    lab.two.namespace.capture(ETH0)
}

fn a_tunnel_probe_is_tunnelled_while_the_pair_is_native(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    lab.set_form(FORM_NATIVE)?;
    // The receiver has not been told to accept the native form, nor not to.
    let mut wire = wire(&lab)?;
    let probe = probe(&lab, family, mark::PROBE_TUNNEL)?;
    for length in [SMALL, tunnel_mtu(outer)] {
        exchange(&mut lab, &probe, gateway(family, 2), length)?;
        let (seen, vni) = wire.wait(|f| tunnelled(f, length))?;
        assert_eq!(
            (seen.source, seen.destination),
            (address(outer, 1), address(outer, 2))
        );
        assert_eq!(vni, Identity::REMOTE_NODE.into());
        assert!(seen.dont_fragment(), "{length} bytes: no DF outside");
        let frames = wire.frames()?;
        assert!(!frames.iter().any(|f| bare(f, length).is_some()));
    }
    Ok(())
}

fn a_native_probe_is_bare_while_the_pair_is_tunnelled(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let mut wire = wire(&lab)?;
    let probe = probe(&lab, family, mark::PROBE_NATIVE)?;
    for length in [SMALL, NATIVE_MTU] {
        exchange(&mut lab, &probe, gateway(family, 2), length)?;
        let seen = wire.wait(|f| bare(f, length))?;
        assert_eq!(seen.destination_mac, lab.two.namespace.mac(ETH0)?);
        assert!(seen.dont_fragment(), "{length} bytes: no DF");
        let frames = wire.frames()?;
        assert!(!frames.iter().any(|f| tunnelled(f, length).is_some()));
    }
    Ok(())
}

fn a_native_probe_is_answered_by_a_node_that_takes_nothing_bare_for_its_pods(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    for (node, other) in [(&mut lab.one, 2), (&mut lab.two, 1)] {
        let mut entry = node.remote(other)?;
        entry.flags = 0;
        node.datapath.set_remote(id(other), entry)?;
    }
    let probe = probe(&lab, family, mark::PROBE_NATIVE)?;
    for length in [SMALL, NATIVE_MTU] {
        exchange(&mut lab, &probe, gateway(family, 2), length)?;
    }
    Ok(())
}

fn a_probe_that_does_not_fit_its_form_is_not_cut_up(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let mut wire = wire(&lab)?;
    let probe = probe(&lab, family, mark::PROBE_TUNNEL)?;
    probe.send(gateway(family, 2), tunnel_mtu(outer) + 1)?;
    exchange(&mut lab, &probe, gateway(family, 2), SMALL)?;
    wire.wait(|f| tunnelled(f, SMALL))?;
    let fragments = wire.frames()?.iter().filter_map(|f| Headers::of(f));
    let fragments = fragments.filter(Headers::is_fragment).count();
    assert_eq!(fragments, 0, "seen: {:?}", wire.summary());
    // What is no probe arrives all the same, in fragments: of the outer packet, or of the
    // inner one where the kernel does not fragment the outer.
    let length = tunnel_mtu(outer) + 1;
    if outer == Family::V4 {
        let own = gateway(family, 1);
        let echo = lab.one.namespace.run(|| Echo::new(own, 0, 78))?;
        exchange(&mut lab, &echo, gateway(family, 2), length)?;
    } else {
        let (own, to) = (gateway(family, 1), gateway(family, 2));
        let (own, to, size) = (own.to_string(), to.to_string(), length.to_string());
        let ping = ["-c1", "-W5", "-I", &own, "-s", &size, &to];
        lab.one.namespace.command("ping", &ping)?;
    }
    let fragment = |f: &[u8]| {
        let seen = Headers::of(f)?;
        let inner = seen.tunnelled(f).and_then(|(_, inner)| Headers::of(inner));
        (seen.is_fragment() || inner.is_some_and(|i| i.is_fragment())).then_some(())
    };
    wire.wait(fragment)?;
    Ok(())
}

fn a_pair_that_was_not_confirmed_goes_back_by_itself_on_the_wire(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let mut wire = wire(&lab)?;
    let echo = lab
        .one
        .namespace
        .run(|| Echo::new(gateway(family, 1), 0, 79))?;
    let entry = Remote {
        form: FORM_NATIVE,
        previous_form: FORM_TUNNEL,
        ..lab.one.remote(2)?
    };
    // Lengths tell the requests apart.
    for (length, revert_at, native) in [(100, u64::MAX, true), (101, 1, false), (102, 0, true)] {
        let entry = Remote { revert_at, ..entry };
        lab.one.datapath.set_remote(id(2), entry)?;
        exchange(&mut lab, &echo, gateway(family, 2), length)?;
        let was_bare = wire.wait(|f| {
            let tunnelled = tunnelled(f, length).map(|_| false);
            tunnelled.or_else(|| bare(f, length).map(|_| true))
        })?;
        ensure!(
            was_bare == native,
            "revert at {revert_at}: bare is {was_bare}"
        );
    }
    Ok(())
}

fn what_the_stack_sends_bare_waits_for_the_neighbours_mac(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    lab.set_form(FORM_NATIVE)?;
    let echo = lab
        .one
        .namespace
        .run(|| Echo::new(gateway(family, 1), 0, 80))?;
    for _ in 0..3 {
        for node in [&lab.one, &lab.two] {
            node.namespace.ip(&["neigh", "flush", "dev", ETH0])?;
        }
        // Each is sent once only.
        exchange(&mut lab, &echo, gateway(family, 2), SMALL)?;
    }
    Ok(())
}
