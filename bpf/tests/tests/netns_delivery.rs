//! Delivery proved in namespaces: same node, tunnel, native, and the switch
//! between them under traffic.

#![allow(
    clippy::cast_possible_truncation,
    clippy::similar_names,
    reason = "patterns of bytes; pods and captures are named by letters"
)]

use anyhow::{Context as _, Result, ensure};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
};
use veer_bpf_common::{
    outcome::{DropReason, Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL},
};
use veer_bpf_tests::{
    family::Family,
    in_and_over_both_families,
    lab::{ETH0, MTU, Pod, SILENCE, TwoNodes, address, exchange, gateway},
    netns::{DEADLINE, await_condition},
    packet::{Complaint, Headers, Packet},
    socket::{Discovery, never_fragment, path_mtu},
};

in_and_over_both_families! {
    pods_on_one_node_reach_each_other_past_the_stack,
    the_gateway_is_the_host_side_of_the_pods_veth,
    a_tunnelled_packet_carries_its_senders_identity,
    a_native_packet_is_bare_on_the_wire,
    hosts_and_pods_of_other_nodes_reach_each_other,
    a_switch_of_the_form_under_traffic_loses_nothing,
    a_tcp_stream_arrives_whole_with_offloads_on_and_off,
    large_datagrams_arrive_in_fragments,
    a_packet_too_big_for_the_tunnel_is_answered_with_the_inner_mtu,
    a_ttl_that_ends_on_the_way_is_answered,
    frames_cut_off_in_their_headers_end_at_the_pods_veth,
}

fn pods_on_one_node_reach_each_other_past_the_stack(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let mut at_b = lab.b.namespace.capture(ETH0)?;
    let mut veth_a = lab.one.namespace.capture(&lab.a.device)?;
    let mut veth_b = lab.one.namespace.capture(&lab.b.device)?;
    let forwarded = lab.one.forwarded()?;
    let (client, server) = (lab.a.udp(1111)?, lab.b.udp(2222)?);
    let (reply, from) = exchange(&client, &server, (lab.b.address, 2222))
        .with_context(|| lab.counted().unwrap_or_default())?;
    ensure!(reply == b"back" && from == (lab.b.address, 2222).into());

    let (a, b) = (lab.a.address, lab.b.address);
    let request = |f: &[u8]| Headers::of(f).filter(|s| s.source == a && s.destination == b);
    let answer = |f: &[u8]| Headers::of(f).filter(|s| s.source == b && s.destination == a);
    let seen = at_b.wait(request)?;
    assert_eq!(seen.ttl, 63);
    assert!(seen.checksum_ok);
    assert_eq!(
        (seen.source_mac, seen.destination_mac),
        (lab.b.node_mac, lab.b.mac)
    );
    // The source's host side sees the request, the destination's the reply.
    veth_a.wait(request)?;
    veth_b.wait(answer)?;
    assert!(!veth_a.frames()?.iter().any(|f| answer(f).is_some()));
    assert!(!veth_b.frames()?.iter().any(|f| request(f).is_some()));
    assert_eq!(lab.one.forwarded()?, forwarded);
    Ok(())
}

fn the_gateway_is_the_host_side_of_the_pods_veth(family: Family, outer: Family) -> Result<()> {
    let lab = TwoNodes::new(family, outer)?;
    let to = gateway(family, 1).to_string();
    lab.a.namespace.command("ping", &["-c1", "-W2", &to])?;
    let neighbours = lab.a.namespace.command("ip", &["neigh", "show", &to])?;
    let mac = lab.a.node_mac.map(|b| format!("{b:02x}")).join(":");
    assert!(neighbours.contains(&mac), "{neighbours} has no {mac}");
    Ok(())
}

fn a_tunnelled_packet_carries_its_senders_identity(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let mut wire = lab.two.namespace.capture(ETH0)?;
    let mut at_c = lab.c.namespace.capture(ETH0)?;
    let mut veth_c = lab.two.namespace.capture(&lab.c.device)?;
    let forwarded = (lab.one.forwarded()?, lab.two.forwarded()?);
    let (client, server) = (lab.a.udp(1111)?, lab.c.udp(2222)?);
    exchange(&client, &server, (lab.c.address, 2222))
        .with_context(|| lab.counted().unwrap_or_default())?;

    let (a, c) = (lab.a.address, lab.c.address);
    let tunnelled = |f: &[u8], from| {
        let outer = Headers::of(f)?;
        let (vni, inner) = outer.tunnelled(f)?;
        let inner = Headers::of(inner).filter(|i| i.source == from)?;
        Some((outer, vni, inner))
    };
    let (seen, vni, inner) = wire.wait(|f| tunnelled(f, a))?;
    assert_eq!(
        (seen.source, seen.destination),
        (address(outer, 1), address(outer, 2))
    );
    assert_eq!((vni, inner.ttl), (lab.a.identity.into(), 64));
    assert_eq!(
        (inner.source_mac, inner.destination_mac),
        (lab.a.mac, lab.a.node_mac)
    );
    let (_, vni, inner) = wire.wait(|f| tunnelled(f, c))?;
    assert_eq!((vni, inner.destination), (lab.c.identity.into(), a));

    let request = |f: &[u8]| Headers::of(f).filter(|s| s.source == a && s.destination == c);
    let seen = at_c.wait(request)?;
    assert_eq!((seen.ttl, seen.checksum_ok), (63, true));
    assert_eq!(seen.destination_mac, lab.c.mac);
    veth_c.wait(|f| Headers::of(f).filter(|s| s.source == c))?;
    assert!(!veth_c.frames()?.iter().any(|f| request(f).is_some()));
    assert_eq!((lab.one.forwarded()?, lab.two.forwarded()?), forwarded);
    Ok(())
}

fn a_native_packet_is_bare_on_the_wire(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    lab.set_form(FORM_NATIVE)?;
    let macs = (lab.one.namespace.mac(ETH0)?, lab.two.namespace.mac(ETH0)?);
    let mut wire = lab.two.namespace.capture(ETH0)?;
    let mut at_c = lab.c.namespace.capture(ETH0)?;
    let forwarded = (lab.one.forwarded()?, lab.two.forwarded()?);
    let (client, server) = (lab.a.udp(1111)?, lab.c.udp(2222)?);
    exchange(&client, &server, (lab.c.address, 2222))
        .with_context(|| lab.counted().unwrap_or_default())?;

    let a = lab.a.address;
    let request = |f: &[u8]| Headers::of(f).filter(|s| s.source == a);
    let seen = wire.wait(request)?;
    assert_eq!((seen.source_mac, seen.destination_mac), macs);
    assert_eq!((seen.ttl, seen.checksum_ok), (63, true));
    let seen = at_c.wait(request)?;
    assert_eq!((seen.ttl, seen.checksum_ok), (62, true));
    let tunnelled = |f: &[u8]| Headers::of(f).is_some_and(|s| s.destination_port == 8472);
    assert!(!wire.frames()?.iter().any(|f| tunnelled(f)));
    assert_eq!((lab.one.forwarded()?, lab.two.forwarded()?), forwarded);
    Ok(())
}

fn hosts_and_pods_of_other_nodes_reach_each_other(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        lab.set_form(form)?;
        for (from, to) in [
            (&lab.one.namespace, lab.c.address),
            (&lab.c.namespace, address(family, 1)),
            (&lab.one.namespace, lab.a.address),
            (&lab.a.namespace, address(family, 1)),
            (&lab.a.namespace, address(family, 2)),
        ] {
            from.command("ping", &["-c1", "-W2", &to.to_string()])
                .with_context(|| format!("form {form}"))?;
        }
    }
    Ok(())
}

fn a_switch_of_the_form_under_traffic_loses_nothing(family: Family, outer: Family) -> Result<()> {
    const PACKETS: u32 = 20_000;
    let mut lab = TwoNodes::new(family, outer)?;
    let (client, server) = (lab.a.udp(1111)?, lab.c.udp(2222)?);
    nix::sys::socket::setsockopt(&server, nix::sys::socket::sockopt::RcvBufForce, &(32 << 20))?;
    // Neighbours are known before the clock runs.
    for form in [FORM_NATIVE, FORM_TUNNEL] {
        lab.set_form(form)?;
        exchange(&client, &server, (lab.c.address, 2222))?;
    }
    let to = (lab.c.address, 2222);
    let switches = thread::scope(|scope| -> Result<u32> {
        let sender = scope.spawn(|| -> Result<()> {
            for i in 0..PACKETS {
                client.send_to(&i.to_be_bytes(), to)?;
            }
            Ok(())
        });
        let mut switches = 0;
        while !sender.is_finished() {
            let form = if switches % 2 == 0 {
                FORM_NATIVE
            } else {
                FORM_TUNNEL
            };
            lab.set_form(form)?;
            switches += 1;
        }
        match sender.join() {
            Ok(sent) => sent?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(switches)
    })?;
    let mut buffer = [0; 64];
    for expected in 0..PACKETS {
        let (n, _) = server
            .recv_from(&mut buffer)
            .with_context(|| format!("packet {expected}\n{}", lab.counted().unwrap_or_default()))?;
        assert_eq!(&buffer[..n], expected.to_be_bytes(), "packet {expected}");
    }
    let program = Program::PodEgress;
    let tunnelled = lab.one.datapath.packets(program, Verdict::Overlay as u32)?;
    let native = lab.one.datapath.packets(program, Verdict::Native as u32)?;
    assert!(
        switches > 10 && tunnelled > 100 && native > 100,
        "{switches} switches, {tunnelled} packets tunnelled, {native} native"
    );
    Ok(())
}

/// Sends a few megabytes over TCP and compares what arrives.
fn stream(from: &Pod, to: &Pod) -> Result<()> {
    let data: Vec<u8> = (0..4_000_000u32).map(|i| (i % 251) as u8).collect();
    let listener = to.tcp(0)?;
    let port = listener.local_addr()?.port();
    thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(DEADLINE))?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            Ok(received)
        });
        from.namespace.run(|| {
            let peer = (to.address, port).into();
            let mut stream = TcpStream::connect_timeout(&peer, DEADLINE)?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream.write_all(&data)?)
        })?;
        match receiver.join() {
            Ok(received) => ensure!(received? == data, "other bytes arrived"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(())
    })
}

fn a_tcp_stream_arrives_whole_with_offloads_on_and_off(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    for offloads in ["on", "off"] {
        let features = ["tx", "rx", "tso", "gso", "gro"];
        for pod in [&lab.a, &lab.b, &lab.c] {
            let mut arguments = vec!["-K", ETH0];
            arguments.extend(features.iter().flat_map(|f| [*f, offloads]));
            pod.namespace.command("ethtool", &arguments)?;
        }
        for form in [FORM_TUNNEL, FORM_NATIVE] {
            lab.set_form(form)?;
            for (from, to) in [(&lab.a, &lab.b), (&lab.a, &lab.c), (&lab.c, &lab.b)] {
                stream(from, to)
                    .with_context(|| format!("{} to {}", from.address, to.address))
                    .with_context(|| format!("offloads {offloads}, form {form}"))?;
            }
        }
    }
    Ok(())
}

fn large_datagrams_arrive_in_fragments(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let datagram: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
    let client = lab.a.udp(1111)?;
    let servers = [lab.b.udp(2222)?, lab.c.udp(2222)?];
    let mut buffer = vec![0; 65_536];
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        lab.set_form(form)?;
        for (server, to) in servers.iter().zip([lab.b.address, lab.c.address]) {
            // A sender of IPv6 has to learn from a lost one what the path takes.
            server.set_read_timeout(Some(family.pick(DEADLINE, SILENCE)))?;
            let n = await_condition(
                &format!("a datagram to {to} arrives"),
                || {
                    client.send_to(&datagram, (to, 2222))?;
                    let received = server.recv(&mut buffer);
                    ensure!(
                        family == Family::V6 || received.is_ok(),
                        "it did not arrive"
                    );
                    Ok(received.ok())
                },
                String::new,
            )
            .with_context(|| lab.counted().unwrap_or_default())?;
            assert!(buffer[..n] == datagram, "to {to}: other bytes arrived");
        }
    }
    Ok(())
}

fn a_packet_too_big_for_the_tunnel_is_answered_with_the_inner_mtu(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let mtu = lab.link.tunnel_mtu();
    let to = lab.c.address;
    // Behind the headers of IP and UDP.
    let payload = |packet: u32| vec![7; packet as usize - family.header_length() - 8];
    let client = lab.a.udp(1111)?;
    client.connect((to, 2222))?;
    never_fragment(&client, family, Discovery::Learn)?;
    client.send(&payload(MTU))?;
    await_condition(
        "the pod learns the inner MTU",
        || Ok((path_mtu(&client, to)? == mtu).then_some(())),
        || {
            format!(
                "it has {:?}; {}",
                path_mtu(&client, to),
                lab.counted().unwrap_or_default()
            )
        },
    )?;
    let server = lab.c.udp(2222)?;
    // The error of the first packet waits in the socket.
    let _ = client.take_error()?;
    client.send(&payload(mtu))?;
    assert_eq!(server.recv(&mut [0; 2000])?, payload(mtu).len());
    Ok(())
}

fn a_ttl_that_ends_on_the_way_is_answered(family: Family, outer: Family) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    for form in [FORM_TUNNEL, FORM_NATIVE] {
        lab.set_form(form)?;
        let mut at_a = lab.a.namespace.capture(ETH0)?;
        for to in [lab.b.address, lab.c.address] {
            let packet = Packet::udp((lab.a.address, 1), (to, 2))
                .macs(lab.a.mac, lab.a.node_mac)
                .ttl(1);
            lab.a.namespace.raw(ETH0)?.send(&packet.frame())?;
            // Time exceeded, about a packet to `to`.
            let exceeded = |f: &[u8]| {
                let seen = Headers::of(f)?;
                let about = f.get(seen.transport_at + 8..)?;
                let about = Headers::of(&[&f[..14], about].concat())?;
                let exceeded = Complaint::TimeExceeded.numbers(family);
                (seen.icmp() == Some(exceeded) && about.destination == to).then_some(())
            };
            at_a.wait(exceeded)
                .with_context(|| format!("form {form}, to {to}"))
                .with_context(|| lab.counted().unwrap_or_default())?;
        }
    }
    Ok(())
}

fn frames_cut_off_in_their_headers_end_at_the_pods_veth(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, outer)?;
    let frame = Packet::udp((lab.a.address, 1), (lab.b.address, 2))
        .macs(lab.a.mac, lab.a.node_mac)
        .payload(Vec::new())
        .frame();
    let raw = lab.a.namespace.raw(ETH0)?;
    let mut at_b = lab.b.namespace.capture(ETH0)?;
    // A packet socket sends nothing that ends with the Ethernet header.
    for n in 15..frame.len() {
        raw.send(&frame[..n])?;
    }
    raw.send(&frame)?;
    let (a, b) = (lab.a.address, lab.b.address);
    at_b.wait(|f| Headers::of(f).filter(|s| s.source == a && s.destination == b))?;
    let malformed = DropReason::Malformed as u32;
    let dropped = lab.one.datapath.packets(Program::PodEgress, malformed)?;
    assert_eq!(dropped, frame.len() as u64 - 15);
    let from_a = at_b
        .frames()?
        .iter()
        .filter(|f| Headers::of(f).is_some_and(|s| s.source == a));
    assert_eq!(from_a.count(), 1);
    Ok(())
}
