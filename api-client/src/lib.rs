//! How operator and agents reach the Kubernetes API, publish Events, compare versions
//! and write errors in a log.
//!
//! If the machine of an API server loses power, or a load balancer drops a
//! connection, no packet ends it: a watch on it is silent for ever, and kube's own
//! client does not notice. Here the kernel probes the other end after 15 seconds of
//! silence and ends the connection after 30 without an acknowledgement; a connection
//! on which a living peer sends nothing for 75 seconds is ended too. A connection
//! that was idle for 10 seconds is not used again: if its other end is gone, a new
//! request would start another 30 seconds, just after a watch has noticed.
//!
//! An overloaded server answers 429, 503 or 504, often with the time after which to
//! repeat the request. Such requests are repeated here, after that time and with
//! growing waits. Other waits are randomised by [`jittered`], so that a thousand
//! agents do not come back in the same second.

#![forbid(unsafe_code)]

pub mod events;
pub mod version;

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, retry::RetryPolicy},
    config::InferConfigError,
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// Silence after which the kernel asks whether the other end still lives
/// (`TCP_KEEPIDLE`).
const QUIET: Duration = Duration::from_secs(15);
/// From one such question to the next (`TCP_KEEPINTVL`).
const ASKED_AGAIN: Duration = Duration::from_secs(5);
/// How long nothing that was sent may be acknowledged (`TCP_USER_TIMEOUT`, RFC
/// 5482; it takes the place of a number of questions).
const DEAD: Duration = Duration::from_secs(30);
/// The longest silence of a server that lives: on a watch it sends a bookmark each
/// minute (`bookmarkFrequency` of its watch cache).
const SILENT: Duration = Duration::from_secs(75);

/// Waits before a refused request is repeated, from the first to the longest, where
/// the server names no time; each is longer or shorter by chance.
const REFUSED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often a refused request is repeated.
const REPEATS: u32 = 6;

/// How long a connection may lie idle to be used for another request.
const FRESH: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment names no API server.
    #[error("no way to the API server: run in a pod with a service account, or set KUBECONFIG")]
    NoServer(#[source] InferConfigError),
    /// What it names cannot be used, certificates or token say.
    #[error("cannot set up the API client: look at the kubeconfig or the service account's files")]
    Unusable(#[source] kube::Error),
}

/// A client of the API server that the environment names: by KUBECONFIG, or as a
/// pod's service account.
///
/// # Errors
///
/// No server is named, or the configuration cannot be used. The server is not
/// contacted.
pub async fn connect() -> Result<Client, Error> {
    let config = Config::infer().await.map_err(Error::NoServer)?;
    client(config).map_err(Error::Unusable)
}

fn client(config: Config) -> kube::Result<Client> {
    let secure = config.rustls_https_connector_with_connector(connector())?;
    let mut timed = TimeoutConnector::new(secure);
    timed.set_connect_timeout(config.connect_timeout);
    timed.set_write_timeout(config.write_timeout);
    timed.set_read_timeout(Some(SILENT));
    // Else the time that a connection lay idle would count.
    timed.set_reset_reader_on_write(true);
    let mut http = Http::builder(TokioExecutor::new());
    http.pool_timer(TokioTimer::new()).pool_idle_timeout(FRESH);
    // Constant and valid; without it requests are made once.
    let retry = RetryPolicy::new(REFUSED.0, REFUSED.1, REPEATS, true).ok();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .option_layer(retry.map(RetryLayer::new))
        .map_err(BoxError::from)
        .service(http.build::<_, Body>(timed));
    Ok(Client::new(service, config.default_namespace))
}

/// An error with its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    // The client's own text holds the whole answer of the API server.
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return status.message.clone();
    }
    veer_crds::condition::explain(error)
}

/// A wait of three quarters to five quarters of this, by chance.
pub fn jittered(wait: Duration) -> Duration {
    // Every state of this kind gets a new seed.
    let chance = RandomState::new().hash_one(()) % 1024;
    let chance = u32::try_from(chance).unwrap_or_default();
    wait * 3 / 4 + wait * chance / 2048
}

/// Makes connections that end when the other end is gone.
fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(QUIET));
    connector.set_keepalive_interval(Some(ASKED_AGAIN));
    connector.set_tcp_user_timeout(Some(DEAD));
    connector
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use hyper_util::rt::TokioIo;
    use nix::sys::socket::{getsockopt, sockopt};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::Instant,
    };
    use tower::Service;

    use super::*;

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        (listener, format!("http://{address}"))
    }

    #[tokio::test]
    async fn the_kernel_asks_whether_the_other_end_lives() {
        let (_listener, url) = listener().await;
        let connection: TokioIo<TcpStream> = connector()
            .call(url.parse().expect("a URL"))
            .await
            .expect("connect");
        let socket = connection.inner().as_fd();
        let seconds = |time: Duration| u32::try_from(time.as_secs()).expect("small");
        assert!(getsockopt(&socket, sockopt::KeepAlive).expect("read"));
        assert_eq!(
            getsockopt(&socket, sockopt::TcpKeepIdle).expect("read"),
            seconds(QUIET)
        );
        assert_eq!(
            getsockopt(&socket, sockopt::TcpUserTimeout).expect("read"),
            seconds(DEAD) * 1000
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_given_up() {
        let (listener, url) = listener().await;
        let silent = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.expect("accept");
            let mut all = Vec::new();
            // Until the client ends it.
            let _ = connection.read_to_end(&mut all).await;
            all
        });
        let client = client(Config::new(url.parse().expect("a URL"))).expect("a client");
        let start = Instant::now();
        let error = client.apiserver_version().await.expect_err("no answer");
        assert!(start.elapsed() >= SILENT, "{:?}: {error}", start.elapsed());
        assert!(start.elapsed() < SILENT * 2, "{:?}", start.elapsed());
        let asked = silent.await.expect("served");
        assert!(asked.starts_with(b"GET /version"), "{asked:?}");
    }

    #[test]
    fn waits_differ_and_stay_near_what_was_asked_for() {
        let wait = Duration::from_secs(4);
        let waits: Vec<Duration> = (0..100).map(|_| jittered(wait)).collect();
        assert!(
            waits.iter().all(|w| (3..=5).contains(&w.as_secs())),
            "{waits:?}"
        );
        assert!(waits.iter().any(|w| *w != waits[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_overloaded_server_is_asked_again_when_it_says() {
        const AFTER: u64 = 20;
        let (listener, url) = listener().await;
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in [
                format!("HTTP/1.1 429 Too Many Requests\r\nretry-after: {AFTER}\r\n"),
                "HTTP/1.1 503 Service Unavailable\r\n".to_owned(),
                "HTTP/1.1 404 Not Found\r\n".to_owned(),
            ] {
                let (mut connection, _) = listener.accept().await.expect("accept");
                asked.push(Instant::now());
                let mut request = [0; 4096];
                let length = connection.read(&mut request).await.expect("read");
                assert!(length > 0, "a request");
                let answer = format!("{answer}content-length: 0\r\nconnection: close\r\n\r\n");
                connection
                    .write_all(answer.as_bytes())
                    .await
                    .expect("write");
            }
            asked
        });
        let client = client(Config::new(url.parse().expect("a URL"))).expect("a client");
        // What is refused for good is not repeated.
        client.apiserver_version().await.expect_err("not found");
        let asked = server.await.expect("served");
        let waits: Vec<Duration> = asked.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(waits[0] >= Duration::from_secs(AFTER), "{waits:?}");
        assert!(
            waits[1] > Duration::ZERO && waits[1] <= REFUSED.1 * 2,
            "{waits:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_lay_idle_is_not_used_again() {
        const VERSION: &str = r#"{"major": "1", "minor": "34", "gitVersion": "v1.34.4",
            "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "",
            "compiler": "", "platform": ""}"#;
        let (listener, url) = listener().await;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let server = tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.expect("accept");
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let length = VERSION.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{VERSION}");
                    let mut request = [0; 4096];
                    // A request is one segment here.
                    while connection.read(&mut request).await.expect("read") > 0 {
                        connection
                            .write_all(answer.as_bytes())
                            .await
                            .expect("write");
                    }
                });
            }
        });
        let client = client(Config::new(url.parse().expect("a URL"))).expect("a client");
        for (idle, connections) in [(0, 1), (FRESH.as_secs() / 2, 1), (FRESH.as_secs() + 1, 2)] {
            tokio::time::advance(Duration::from_secs(idle)).await;
            client.apiserver_version().await.expect("an answer");
            assert_eq!(
                accepted.load(Ordering::Relaxed),
                connections,
                "after {idle} s"
            );
        }
        server.abort();
    }
}
