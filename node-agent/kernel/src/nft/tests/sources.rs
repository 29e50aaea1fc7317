//! By which address others see what pods and the node send.

use std::time::Instant;

use super::*;

/// How long a datagram is waited for before it is sent again.
const AGAIN: Duration = Duration::from_millis(50);

#[test]
fn a_flow_that_began_without_the_table_is_translated_once_it_is_back() {
    for e in &ENDS {
        let lab = Lab::new();
        let Ends {
            family,
            node,
            other,
            pod,
            world: [world, _],
            ..
        } = e;
        own(&lab.node, pod);
        own(&lab.outside, world);
        let ways = [
            (&lab.node, e.world_block, other),
            (&lab.outside, e.block, node),
        ];
        for (at, to, by) in ways {
            at.command("ip", &format!("{family} route add {to} via {by}"));
        }
        let bind = |at: &Netns, ip: &str, port| {
            let socket = at.run(|| UdpSocket::bind(SocketAddr::new(parsed(ip), port)).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let [from_pod, listener] = [(&lab.node, *pod, 4000), (&lab.outside, *world, 53)]
            .map(|(at, ip, port)| bind(at, ip, port));
        let seen_from = || {
            let to = SocketAddr::new(parsed(world), 53);
            from_pod.send_to(b"?", to).unwrap();
            let (_, from) = receive(&listener, &mut [0; 8]).expect("a datagram");
            from.ip()
        };
        // Something else has conntrack at work.
        lab.node.command("nft", "add table inet t");
        lab.node.command(
            "nft",
            "add chain inet t c { type filter hook output priority 0 ; }",
        );
        lab.node
            .command("nft", "add rule inet t c ct state new counter");
        assert_eq!(seen_from(), parsed(pod));
        let content = content(&["far0"]);
        lab.write(&content);
        assert_eq!(seen_from(), parsed(pod), "as it began");
        let ended = lab.node.run(|| {
            conntrack::end(|flow| {
                flow.answered == flow.source && content.translates(&facts(), &blocks(), &flow)
            })
        });
        assert_eq!(ended.unwrap(), 1);
        assert_eq!(seen_from(), parsed(node));
        // And where the address goes, so does what was translated to it.
        let ended = lab
            .node
            .run(|| conntrack::end(|flow| flow.answered == parsed(node)));
        assert_eq!(ended.unwrap(), 1);
    }
}

#[test]
fn what_leaves_by_the_tunnels_device_has_an_address_that_other_nodes_know() {
    for e in &ENDS {
        let lab = Lab::new();
        lab.write(&content(&["far0"]));
        // The tunnel's device, as far as the rules see it. It has no address.
        lab::pair(&lab.node, &lab.outside, "veer_vxlan");
        let peer = e.pods[1];
        lab.node.command("ip", "link set veer_vxlan up");
        lab.outside.device("veer_vxlan", peer, e.node_single);
        let way = format!("route add {peer} dev veer_vxlan");
        lab.node.command("ip", &way);
        let entry = format!("neigh add {peer} lladdr 02:00:00:00:00:02 dev veer_vxlan");
        lab.node.command("ip", &entry);
        own(&lab.node, e.pod);
        own(&lab.node, e.service);
        let listener = listen(&lab.outside, e.any);
        listener.set_read_timeout(Some(AGAIN)).unwrap();
        let to = SocketAddr::new(parsed(peer), PORT);
        for (label, (from, seen)) in
            (1..).zip([(e.node, e.node), (e.pod, e.pod), (e.service, e.node)])
        {
            let from = SocketAddr::new(parsed(from), 0);
            let socket = lab.node.run(|| UdpSocket::bind(from).unwrap());
            // A device that has just come up carries nothing for a while.
            let begin = Instant::now();
            let found = loop {
                assert!(begin.elapsed() < PATIENCE, "no datagram from {from}");
                socket.send_to(&[label], to).unwrap();
                let mut got = [0];
                let received = receive(&listener, &mut got);
                if let Some((_, found)) = received.ok().filter(|_| got == [label]) {
                    break found.ip();
                }
            };
            assert_eq!(found, parsed(seen), "{from}");
        }
    }
}
