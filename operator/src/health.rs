//! The state behind the operator's probes, and the server of probes and `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::registry::Registry;
use veer_monitoring::{Probed, Pulse, pages};

/// What the probes answer from.
#[derive(Debug, Default)]
pub(crate) struct Health {
    ready: AtomicBool,
    pulse: Pulse,
}

impl Health {
    /// The API server has answered: this replica leads or waits for its turn.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// This replica still looks at the Lease.
    pub(crate) fn beat(&self) {
        self.pulse.beat();
    }
}

impl Probed for Health {
    fn healthy(&self) -> Result<(), String> {
        self.pulse.check("the loop that holds the Lease")
    }

    fn ready(&self) -> Result<(), String> {
        if self.ready.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("the API server has not answered yet".into())
        }
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(
    listen: SocketAddr,
    health: Arc<Health>,
    metrics: Registry,
) -> std::io::Result<Infallible> {
    let listener = veer_monitoring::listen(listen).await?;
    Ok(veer_monitoring::serve(listener, pages(health, metrics)).await)
}
