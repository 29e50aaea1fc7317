//! Probes of either family and of both.

use veer_agent_core::mtu::Mtu;

use super::*;
use crate::netlink::{lab, netns::Netns};

const FROM: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const TO: [&str; 2] = ["10.1.1.1", "fd00:1:0:1::1"];

fn parsed(all: [&str; 2]) -> [IpAddr; 2] {
    all.map(|a| a.parse().unwrap())
}

/// The ends of a probe in each family.
fn ends() -> [(IpAddr, IpAddr); 2] {
    let ([a, b], [c, d]) = (parsed(FROM), parsed(TO));
    [(a, c), (b, d)]
}

/// Bytes of the IP header.
fn header(to: IpAddr) -> usize {
    if to.is_ipv4() { 20 } else { 40 }
}

fn ask(to: IpAddr, form: Form, full: u32) -> Ask {
    Ask {
        node: "b".into(),
        to,
        form,
        full: Mtu::new(full).unwrap(),
        confirms: false,
    }
}

#[test]
fn a_probe_has_the_size_asked_for_and_must_not_be_fragmented() {
    for (from, to) in ends() {
        for length in [SMALL, 1280, 1450, 1500, 9000] {
            let bytes = packet(from, to, (7, 3), length).unwrap();
            assert_eq!(bytes.len(), length);
            assert!(to.is_ipv6() || bytes[6] & 0x40 == 0x40);
        }
        assert!(packet(from, to, (7, 3), 70_000).is_err());
    }
    let [(from, _), (_, to)] = ends();
    assert!(packet(from, to, (7, 3), SMALL).is_err());
}

#[test]
fn only_replies_of_this_job_count() {
    for ((from, to), kind) in ends().into_iter().zip(REPLIES) {
        let of = |bytes: &[u8]| {
            let begin = if to.is_ipv4() { 0 } else { header(to) };
            bytes[begin..].to_vec()
        };
        let request = packet(to, from, (7, 3), SMALL).unwrap();
        let mut answer = request.clone();
        answer[header(to)] = kind;
        let (request, answer) = (of(&request), of(&answer));
        assert_eq!(reply(to, &answer, 7), Some(3));
        assert_eq!(reply(to, &answer, 8), None);
        assert_eq!(reply(to, &request, 7), None);
        for cut in 0..answer.len() {
            // Whatever is made of a piece, it is not taken apart beyond its end.
            let _ = reply(to, &answer[..cut], 7);
        }
        assert_eq!(reply(to, &[0x4f; 64], 7), None);
    }
}

#[test]
fn what_is_not_answered_says_what_to_look_at() {
    for (_, to) in ends() {
        let open = |size| {
            let number = number(0, size).unwrap();
            let error = None;
            HashMap::from([(number, Open { at: 0, size, error })])
        };
        let text = |form, open: &HashMap<u16, Open>| {
            let mut all = answers(vec![ask(to, form, 1500)], open);
            all.pop().unwrap().outcome.unwrap_err()
        };
        assert!(text(Form::Native, &open(Size::Small)).contains("underlay"));
        assert!(text(Form::Tunnel, &open(Size::Small)).contains("UDP port"));
        assert!(text(Form::Native, &open(Size::Full)).contains("1500 bytes"));
        assert!(text(Form::Tunnel, &open(Size::Full)).contains(&to.to_string()));
        let none = HashMap::new();
        assert_eq!(
            answers(vec![ask(to, Form::Tunnel, 1500)], &none)[0].outcome,
            Ok(())
        );
    }
}

/// Two nodes with a link of 1500 bytes, whose stacks have health addresses of both
/// families.
fn nodes() -> [Netns; 2] {
    let nodes = [lab::namespace(), lab::namespace()];
    lab::pair(&nodes[0], &nodes[1], "eth0");
    for (node, (own, other)) in nodes.iter().zip([(FROM, TO), (TO, FROM)]) {
        for (own, other) in parsed(own).into_iter().zip(parsed(other)) {
            let block = format!("{other}/{}", if own.is_ipv4() { 32 } else { 128 });
            node.device("eth0", &own.to_string(), &block);
        }
    }
    nodes
}

#[test]
fn both_families_are_asked_at_once_and_each_says_what_became_of_it() {
    let [node, peer] = nodes();
    let [v4, v6] = parsed(TO);
    let from = parsed(FROM);
    let asks = || {
        vec![
            ask(v4, Form::Native, 1500),
            ask(v6, Form::Tunnel, 1500),
            ask(v6, Form::Native, 1400),
        ]
    };
    let outcomes = |from: &[IpAddr], asks: Vec<Ask>| {
        let answers = node.run(|| run(from, asks).unwrap());
        answers.into_iter().map(|a| a.outcome).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(&from, asks()), [Ok(()), Ok(()), Ok(())]);

    // Routes that say what another form carries do not count.
    for (ip, to) in [("-4", format!("{v4}/32")), ("-6", format!("{v6}/128"))] {
        node.command("ip", &format!("{ip} route change {to} dev eth0 mtu 1450"));
    }
    assert_eq!(outcomes(&from, asks()), [Ok(()), Ok(()), Ok(())]);

    // Its way carries less than its device says.
    peer.command("ip", "link set eth0 mtu 1400");
    let seen = outcomes(&from, asks());
    assert!(seen[2].is_ok(), "{seen:?}");
    for cut in &seen[..2] {
        assert!(cut.as_ref().unwrap_err().contains("1500 bytes"), "{seen:?}");
    }
    // More than the own device takes is known at once.
    let seen = outcomes(
        &from,
        vec![ask(v4, Form::Tunnel, 1600), ask(v6, Form::Tunnel, 1600)],
    );
    assert!(
        seen.iter()
            .all(|s| s.as_ref().is_err_and(|t| t.contains("1600 bytes ("))),
        "{seen:?}"
    );

    // One family alone fails.
    peer.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let seen = outcomes(
        &from,
        vec![ask(v4, Form::Tunnel, 1400), ask(v6, Form::Tunnel, 1400)],
    );
    assert!(seen[0].is_ok(), "{seen:?}");
    assert!(
        seen[1].as_ref().unwrap_err().contains(&v6.to_string()),
        "{seen:?}"
    );
    let seen = outcomes(
        &from[..1],
        vec![ask(v4, Form::Tunnel, 1400), ask(v6, Form::Tunnel, 1400)],
    );
    assert!(seen[0].is_ok(), "{seen:?}");
    assert!(
        seen[1].as_ref().unwrap_err().contains("no health address"),
        "{seen:?}"
    );
}
