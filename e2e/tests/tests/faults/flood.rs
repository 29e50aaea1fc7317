//! A real flood of what the uplinks' programs drop: XDP takes over by itself.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use veer_e2e_cluster::{await_condition, decode::VXLAN_PORT};
use veer_e2e_tests::{
    lab::{Lab, Mode},
    scene::Scene,
    site::Site,
    told,
};

use crate::{
    fault::{Fault, Held},
    survive::{SETTLED, seconds, unharmed},
};

/// Who is flooded.
const NODE: &str = "worker2";
/// Packets a millisecond: twice what an agent takes for a flood.
const PER_MILLISECOND: u32 = 100;
/// How soon it must be met. It has to last some seconds before it counts.
const MET: Duration = Duration::from_secs(40);

/// All faults of this kind.
pub(crate) fn faults() -> Vec<Fault> {
    vec![Fault::new(
        "flood::of_tunnel_packets_from_a_stranger",
        "100,000 packets a second to a node's tunnel port from an address that is no node",
        Mode::Tunnel,
        stranger,
    )]
}

/// Sends until told to stop; returns how many.
fn pour(site: &Site, to: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    site.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        let (start, mut sent) = (Instant::now(), 0_u64);
        while !stop.load(Ordering::Relaxed) {
            let due = start.elapsed().as_millis() * u128::from(PER_MILLISECOND);
            if u128::from(sent) >= due {
                thread::yield_now();
                continue;
            }
            // A full queue is no matter: enough get through.
            if socket.send(&[0; 50]).is_ok() {
                sent += 1;
            }
        }
        Ok(sent)
    })
}

/// The mode of XDP that the node reports for its uplink.
fn xdp(lab: &Lab) -> Result<String> {
    let report = lab.kubectl().json(&["get", "nodereport", NODE])?;
    let mode = report["status"]["uplinks"][0]["xdp"].as_str();
    Ok(mode.context("no uplink in status")?.to_owned())
}

fn await_xdp(lab: &Lab, wanted: &str, time: Duration) -> Result<Duration> {
    let start = Instant::now();
    let what = format!("XDP on {NODE}'s uplink is {wanted}");
    await_condition(&what, time, || {
        let now = xdp(lab).map_err(|e| format!("{e:#}"))?;
        if now == wanted {
            Ok(Some(()))
        } else {
            Err(now)
        }
    })?;
    Ok(start.elapsed())
}

fn stranger(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let world = lab.world()?;
    let to = SocketAddr::new(scene.tunnel_address(NODE)?, VXLAN_PORT);
    await_xdp(lab, "Off", SETTLED)?;
    let held = unharmed(
        scene,
        "all traffic; XDP in generic mode, told by an event",
        || {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let pouring = scope.spawn(|| pour(&world, to, &stop));
                let met = await_xdp(lab, "Generic", MET);
                stop.store(true, Ordering::Relaxed);
                let sent = pouring.join().map_err(|_| anyhow!("a thread panicked"))??;
                let told = told::events(lab, "Node", NODE, Some("Flood"))?;
                let met = met?;
                ensure!(!told.is_empty(), "no event tells of it");
                Ok((met, sent))
            })
        },
        |(met, sent)| format!("met after {}, {sent} packets", seconds(*met)),
    );
    // Without the minutes that it has to be calm.
    for mode in ["Off", "Auto"] {
        lab.patch_network(&format!(r#"{{"spec": {{"xdp": "{mode}"}}}}"#))?;
        await_xdp(lab, "Off", SETTLED)?;
    }
    held
}
