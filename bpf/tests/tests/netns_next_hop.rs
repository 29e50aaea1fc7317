//! The next hop of the native form, with an agent and long after its end.

#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use std::net::Ipv4Addr;
use veer_bpf_common::{
    address::IpKey,
    tables::{FORM_NATIVE, Heartbeat, Remote},
};
use veer_bpf_tests::{
    family::Family,
    in_both_families,
    lab::{ETH0, TwoNodes, address, id, prefix},
    packet::Headers,
    world::{now, octets_v6},
};

in_both_families! {
    a_changed_gateway_is_followed_when_the_agent_has_been_dead_for_long,
}

/// Where node 2 is now: behind a router.
const BEHIND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const OLD_ROUTER: u8 = 8;
const NEW_ROUTER: u8 = 9;

fn a_changed_gateway_is_followed_when_the_agent_has_been_dead_for_long(
    family: Family,
) -> Result<()> {
    let mut lab = TwoNodes::new(family, Family::V4)?;
    let old = lab.link.join(OLD_ROUTER, "old")?;
    let new = lab.link.join(NEW_ROUTER, "new")?;
    let hop = |family| *IpKey::from(address(family, OLD_ROUTER)).addr();
    let entry = Remote {
        form: FORM_NATIVE,
        tunnel_address: *IpKey::v4(BEHIND.octets()).addr(),
        address_v4: BEHIND.octets(),
        address_v6: octets_v6(BEHIND),
        next_hop: hop(Family::V4),
        next_hop_v6: hop(Family::V6),
        ..lab.one.remote(2)?
    };
    lab.one.datapath.set_remote(id(2), entry)?;
    let to = prefix(family, (BEHIND, 32));
    let via = address(family, NEW_ROUTER).to_string();
    lab.one
        .namespace
        .ip(&["route", "add", &to, "via", &via, "dev", ETH0])?;
    let (a, c) = (lab.a.address, lab.c.address);
    let bare = |f: &[u8]| Headers::of(f).filter(|s| s.source == a && s.destination == c);
    let client = lab.a.udp(1111)?;
    let long_ago = now()?.saturating_sub(Heartbeat::LASTS + 1);
    ensure!(long_ago > 0, "the machine has just started");
    for (what, heartbeat, router, other) in [
        ("no agent has told", 0, &old, &new),
        ("the agent lives", now()? + Heartbeat::LASTS, &old, &new),
        ("it is dead for long", long_ago, &new, &old),
    ] {
        lab.one.datapath.set_heartbeat(heartbeat)?;
        let (mut there, mut elsewhere) = (router.capture(ETH0)?, other.capture(ETH0)?);
        client.send_to(b"there", (c, 2222))?;
        let seen = there.wait(bare)?;
        ensure!(
            (seen.ttl, seen.checksum_ok) == (63, true),
            "{what}: {seen:?}"
        );
        ensure!(
            !elsewhere.frames()?.iter().any(|f| bare(f).is_some()),
            "{what}: it went to the other router"
        );
    }
    // A route that is gone is no reason to give up the way that was.
    lab.one.namespace.ip(&["route", "del", &to])?;
    let mut there = old.capture(ETH0)?;
    client.send_to(b"there", (c, 2222))?;
    there.wait(bare)?;
    Ok(())
}
