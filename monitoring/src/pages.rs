//! The routes and their answers.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{sync::Semaphore, task::spawn_blocking};

/// The content type of what prometheus-client writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A program that the kubelet probes. Both methods run on the threads of the
/// runtime: neither may wait for the kernel, the disk or the network.
pub trait Probed: Send + Sync + 'static {
    /// The answer of `/healthz`. It must not take a lock that a stuck program may
    /// hold.
    ///
    /// # Errors
    ///
    /// Why the program has to be restarted.
    fn healthy(&self) -> Result<(), String>;

    /// The answer of `/readyz`.
    ///
    /// # Errors
    ///
    /// What the program waits for.
    fn ready(&self) -> Result<(), String>;
}

/// `/healthz` and `/readyz` of a program (200, or 503 with the reason), `/metrics`
/// from a registry. The registry's collectors may block.
pub fn pages<P: Probed>(program: Arc<P>, registry: Registry) -> Router {
    let scrapes = Scrapes {
        registry: Arc::new(registry),
        turn: Arc::new(Semaphore::new(1)),
    };
    Router::new()
        .route("/healthz", get(healthz::<P>).with_state(program.clone()))
        .route("/readyz", get(readyz::<P>).with_state(program))
        .route("/metrics", get(metrics).with_state(scrapes))
        .fallback(unknown)
}

/// What a scrape needs.
#[derive(Clone, Debug)]
struct Scrapes {
    registry: Arc<Registry>,
    /// One permit: scrapes take turns.
    turn: Arc<Semaphore>,
}

async fn healthz<P: Probed>(State(program): State<Arc<P>>) -> (StatusCode, String) {
    answer(program.healthy())
}

async fn readyz<P: Probed>(State(program): State<Arc<P>>) -> (StatusCode, String) {
    answer(program.ready())
}

fn answer(result: Result<(), String>) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

async fn unknown() -> (StatusCode, &'static str) {
    let known = "there are /healthz, /readyz and /metrics\n";
    (StatusCode::NOT_FOUND, known)
}

async fn metrics(State(scrapes): State<Scrapes>) -> Response {
    let Scrapes { registry, turn } = scrapes;
    let turn = turn.acquire_owned().await;
    let page = spawn_blocking(move || {
        // Held until the values are read, also when the client has gone: the next
        // scrape would wait for the same locks on another thread.
        let _turn = turn;
        let mut page = String::with_capacity(8 << 10);
        text::encode(&mut page, &registry).map(|()| page)
    });
    match page.await {
        Ok(Ok(page)) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        // Half a page would look as if counters had gone.
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
