//! What a Service costs where the programs translate it: round trips of a datagram between
//! two pods, directly and through a frontend, in turns, as JSON. Run alone, as root.
//!
//! ```text
//! cargo run --release -p veer-bpf-tests --example service_round_trips
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example that prints")]

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Instant,
};

use anyhow::{Result, ensure};
use serde_json::json;
use veer_bpf_common::tables::{FORM_NATIVE, FORM_TUNNEL};
use veer_bpf_net::ip::UDP;
use veer_bpf_tests::{family::Family, lab::TwoNodes};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const FRONTEND: u16 = 53;
const BACKEND: u16 = 2222;
const ROUNDS: usize = 60;
const TRIPS: u32 = 4000;

/// Nanoseconds of a round trip.
fn trip(client: &UdpSocket, server: &UdpSocket) -> Result<f64> {
    let mut buffer = [0; 16];
    let start = Instant::now();
    for _ in 0..TRIPS {
        client.send(b"there")?;
        let (n, from) = server.recv_from(&mut buffer)?;
        server.send_to(&buffer[..n], from)?;
        ensure!(client.recv(&mut buffer)? == n, "another answer");
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(TRIPS))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut results = Vec::new();
    for family in Family::ALL {
        let mut lab = TwoNodes::new(family, Family::V4)?;
        let servers = [lab.b.udp(BACKEND)?, lab.c.udp(BACKEND)?];
        let backends = [lab.b.address, lab.c.address];
        let connected = |lab: &TwoNodes, port: u16, to: (IpAddr, u16)| -> Result<UdpSocket> {
            let socket = lab.a.udp(port)?;
            socket.connect(to)?;
            Ok(socket)
        };
        for (i, (what, at, form)) in [
            ("same node", 0, FORM_TUNNEL),
            ("tunnel", 1, FORM_TUNNEL),
            ("native", 1, FORM_NATIVE),
        ]
        .into_iter()
        .enumerate()
        {
            lab.set_form(form)?;
            let port = FRONTEND + u16::try_from(i)?;
            let frontend = (family.of(VIP), port);
            lab.one.datapath.set_service(
                (frontend.0, frontend.1, UDP),
                u32::from(port),
                1,
                &[(backends[at], BACKEND)],
                0,
            )?;
            let own = 2 * u16::try_from(i)?;
            let direct = connected(&lab, 3000 + own, (backends[at], BACKEND))?;
            let served = connected(&lab, 3001 + own, frontend)?;
            let (mut times, mut more, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let plain = trip(&direct, &servers[at])?;
                let translated = trip(&served, &servers[at])?;
                times.push(plain);
                more.push(translated - plain);
                ratios.push(translated / plain);
            }
            results.push(json!({
                "family": family.to_string(),
                "path": what,
                "direct_ns_p50": median(&mut times).round(),
                "more_ns_p50": median(&mut more).round(),
                "ratio_p50": median(&mut ratios),
            }));
        }
    }
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}
