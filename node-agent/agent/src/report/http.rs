//! The agent's /healthz, /readyz and /metrics.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use veer_monitoring::{Probed, Pulse, pages};

use super::{metrics::Scraped, sources::Sources};
use crate::state::{handles::Reader, plan::Plan};

/// What the probes of the kubelet ask.
struct Health {
    pulse: Arc<Pulse>,
    plan: Reader<Plan>,
}

impl Probed for Health {
    // Takes no lock: a stuck engine may hold one.
    fn healthy(&self) -> Result<(), String> {
        self.pulse.check("the engine")
    }

    fn ready(&self) -> Result<(), String> {
        let reason = self.plan.read().not_ready.clone();
        if reason.is_empty() {
            Ok(())
        } else {
            Err(reason)
        }
    }
}

/// Serves until the process ends. Without the port the agent still works. `pulse` is the
/// engine's.
pub(crate) async fn run(sources: Sources, pulse: Arc<Pulse>, address: SocketAddr) -> Infallible {
    let health = Health {
        pulse,
        plan: sources.plan.clone(),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scraped::new(sources)));
    veer_monitoring::serve(listen(address).await, pages(Arc::new(health), registry)).await
}

/// Listens as soon as the port is free: the agent that this one replaces, or another
/// program of the node, may still have it.
async fn listen(address: SocketAddr) -> TcpListener {
    loop {
        match veer_monitoring::listen(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::warn!(%address, %error, "cannot serve /healthz and /metrics; trying again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpStream, time::timeout};

    use super::*;

    #[tokio::test]
    async fn port_that_another_has_is_taken_once_it_is_free() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let waiting = tokio::spawn(listen(address));
        // The other one is asked while the agent waits.
        let _asked = TcpStream::connect(address).await.unwrap();
        assert!(!waiting.is_finished());
        drop(other);
        let listener = timeout(Duration::from_mins(1), waiting).await;
        assert_eq!(listener.unwrap().unwrap().local_addr().unwrap(), address);
    }
}
