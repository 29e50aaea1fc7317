//! /healthz, /readyz and /metrics, in the smallest form of HTTP/1.1.

use std::{fmt::Write, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::spawn_blocking,
    time::timeout,
};
use veer_bpf_common::outcome::{OUTCOMES_PER_PROGRAM, Program, counter_index, outcome_name};

use crate::shared::Shared;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until the process ends. Without the port the agent still works.
pub(crate) async fn run(shared: Arc<Shared>, address: SocketAddr) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%address, %error, "cannot serve /healthz and /metrics; trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    };
    let scrapes = Arc::new(Semaphore::new(1));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, scrapes) = (shared.clone(), scrapes.clone());
                tokio::spawn(async move {
                    let _ = timeout(PATIENCE, serve(shared, scrapes, stream)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    scrapes: Arc<Semaphore>,
    mut stream: TcpStream,
) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(1024);
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < 8192 {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&request);
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let (status, body) = match path.as_str() {
        // Takes no lock: a stuck engine may hold one.
        "/healthz" => match shared.pulse.check("the engine") {
            Ok(()) => ("200 OK", "ok\n".to_owned()),
            Err(text) => ("503 Service Unavailable", text + "\n"),
        },
        "/readyz" => {
            let reason = shared.plan().not_ready.clone();
            if reason.is_empty() {
                ("200 OK", "ok\n".to_owned())
            } else {
                ("503 Service Unavailable", format!("{reason}\n"))
            }
        }
        "/metrics" => {
            // It waits for locks and the kernel; one at a time is kept from the
            // threads that serve the plugin and the watches.
            let one = scrapes.acquire_owned().await;
            let one = one.map_err(std::io::Error::other)?;
            // Kept until it is done, also when the client has gone.
            let scrape = move || (one, metrics(&shared)).1;
            ("200 OK", spawn_blocking(scrape).await?)
        }
        _ => (
            "404 Not Found",
            "there are /healthz, /readyz and /metrics\n".to_owned(),
        ),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Metrics in the text format of Prometheus.
fn metrics(shared: &Shared) -> String {
    let mut text = String::with_capacity(8192);
    text.push_str("# HELP veer_packets_total Packets by program and outcome.\n");
    text.push_str("# TYPE veer_packets_total counter\n");
    let mut bytes = String::new();
    {
        let datapath = shared.datapath();
        for program in Program::ALL {
            for outcome in 0..OUTCOMES_PER_PROGRAM {
                let Some(name) = outcome_name(outcome) else {
                    continue;
                };
                let index = counter_index(*program, outcome);
                let Ok(values) = datapath.maps.counters.get(&index, 0) else {
                    continue;
                };
                let packets: u64 = values.iter().map(|c| c.packets).sum();
                if packets == 0 {
                    continue;
                }
                let total: u64 = values.iter().map(|c| c.bytes).sum();
                let labels = format!("{{program=\"{}\",outcome=\"{name}\"}}", program.name());
                let _ = writeln!(text, "veer_packets_total{labels} {packets}");
                let _ = writeln!(bytes, "veer_bytes_total{labels} {total}");
            }
        }
    }
    for row in crate::cni::nftables() {
        let labels = format!(
            "{{program=\"{}\",outcome=\"{}\"}}",
            row.program, row.outcome
        );
        let _ = writeln!(text, "veer_packets_total{labels} {}", row.packets);
        let _ = writeln!(bytes, "veer_bytes_total{labels} {}", row.bytes);
    }
    text.push_str("# HELP veer_bytes_total Bytes by program and outcome.\n");
    text.push_str("# TYPE veer_bytes_total counter\n");
    text.push_str(&bytes);
    text.push_str("# HELP veer_changes_total What was written or put back, by kind.\n");
    text.push_str("# TYPE veer_changes_total counter\n");
    for (what, times) in shared.counts() {
        let _ = writeln!(text, "veer_changes_total{{kind=\"{what}\"}} {times}");
    }
    let ready = u8::from(shared.plan().not_ready.is_empty());
    let (endpoints, identities) = (shared.store().len(), shared.index().identities.len());
    for (name, help, value) in [
        (
            "veer_ready",
            "Whether pods can be wired.",
            usize::from(ready),
        ),
        ("veer_endpoints", "Pods wired on this node.", endpoints),
        ("veer_identities", "Identities known here.", identities),
    ] {
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    }
    text
}
