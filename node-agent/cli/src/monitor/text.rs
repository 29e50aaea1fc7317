//! Decisions as people read them.

use std::fmt::Write as _;

use super::row::{Before, Decision, End};

/// The decision's line; with `verbose` some more lines behind it.
pub(crate) fn decision(decision: &Decision, verbose: bool) -> String {
    let mut text = format!(
        "{} {} {}: {} {} > {}",
        clock(&decision.time),
        decision.node,
        decision.program,
        decision.protocol,
        end(&decision.source),
        end(&decision.destination),
    );
    if !decision.detail.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(text, ", {}", decision.detail);
    }
    if !decision.state.is_empty() {
        let _ = write!(text, ", {}", decision.state);
    }
    if let Some(before) = &decision.before {
        let _ = write!(text, ", {}", translated(before));
    }
    let _ = write!(text, ": {}", decision.delivery);
    if verbose {
        let lines = [
            ("interface", decision.device.clone()),
            ("lookup", lookup(decision)),
            ("from", identity(&decision.source)),
            ("to", identity(&decision.destination)),
            ("headers", headers(decision)),
        ];
        for (name, value) in lines {
            let _ = write!(text, "\n    {:10} {value}", format!("{name}:"));
        }
    }
    text
}

/// How many decisions nobody saw.
pub(crate) fn lost(node: &str, count: u64) -> String {
    format!(
        "{node}: {count} decisions were lost, since somebody who listens there was too slow: ask for \
         less (--drops, --verdict)"
    )
}

/// The time of day, with microseconds.
fn clock(time: &str) -> &str {
    time.split_once('T')
        .and_then(|(_, clock)| clock.get(..15))
        .unwrap_or(time)
}

fn end(end: &End) -> String {
    if end.pod.is_empty() {
        end.text.clone()
    } else {
        format!("{} ({})", end.text, end.pod)
    }
}

/// What veer made of the packet.
fn translated(before: &Before) -> String {
    let Before {
        source,
        destination,
        service,
    } = before;
    let was = format!("translated by veer from {source} > {destination}");
    if service.is_empty() {
        was
    } else {
        format!("{was} (service {service})")
    }
}

fn identity(end: &End) -> String {
    match end.identity {
        0 => "not known".into(),
        number if end.labels.is_empty() => format!("identity {number}"),
        number => format!("identity {number} ({})", end.labels.join(", ")),
    }
}

fn lookup(decision: &Decision) -> String {
    let what = match decision.lookup.as_str() {
        "not-asked" => "none, the decision does not depend on it",
        "no-entry" => "no entry, the flow is not translated",
        "new" => "no entry, one was made",
        "established" => "an entry, in the direction that opened it",
        "reply" => "an entry, in the other direction",
        other => other,
    };
    if decision.translation.is_empty() {
        what.into()
    } else {
        format!("{what}; translated {}", decision.translation)
    }
}

fn headers(decision: &Decision) -> String {
    let mut text = format!("{} bytes", decision.bytes);
    if decision.hops != 0 {
        let _ = write!(text, ", TTL {}", decision.hops);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping() -> Decision {
        let end = |text: &str, identity, pod: &str, label: &str| End {
            text: text.into(),
            identity,
            pod: pod.into(),
            labels: vec![label.into()],
            ..End::default()
        };
        Decision {
            time: "2026-11-30T12:00:01.123456789Z".into(),
            node: "worker-1".into(),
            program: "pod_egress".into(),
            device: "veer0123456789".into(),
            protocol: "icmp".into(),
            source: end("10.0.1.5", 40123, "shop/cart-0", "app=cart"),
            destination: end("10.0.1.6", 40124, "", "app=web"),
            detail: "echo request, id 7, seq 1".into(),
            state: "New".into(),
            lookup: "no-entry".into(),
            delivery: "local delivery to endpoint 12 (shop/web-0) from identity 40123".into(),
            hops: 63,
            bytes: 98,
            ..Decision::default()
        }
    }

    #[test]
    fn a_decision_is_one_line_and_more_when_asked() {
        let line = "12:00:01.123456 worker-1 pod_egress: icmp 10.0.1.5 (shop/cart-0) > 10.0.1.6, \
                    echo request, id 7, seq 1, New: local delivery to endpoint 12 (shop/web-0) \
                    from identity 40123";
        assert_eq!(decision(&ping(), false), line);
        let expected = format!(
            "{line}
    interface: veer0123456789
    lookup:    no entry, the flow is not translated
    from:      identity 40123 (app=cart)
    to:        identity 40124 (app=web)
    headers:   98 bytes, TTL 63"
        );
        assert_eq!(decision(&ping(), true), expected);
    }

    #[test]
    fn a_translated_packet_says_what_it_was_and_whose_service_that_is() {
        let mut ping = ping();
        ping.before = Some(Before {
            source: "10.0.1.5:4000".into(),
            destination: "10.96.0.10:80".into(),
            service: String::new(),
        });
        let was = ", New, translated by veer from 10.0.1.5:4000 > 10.96.0.10:80";
        assert!(decision(&ping, false).contains(&format!("{was}: local")));
        if let Some(before) = &mut ping.before {
            before.service = "shop/cart:http".into();
        }
        let named = format!("{was} (service shop/cart:http): local");
        assert!(decision(&ping, false).contains(&named));
    }
}
