//! Hostile and slow clients, against a real listener.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Registry,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{Probed, listen, pages, server::Limits, server::serve_within};

/// A deadline that only a failing test reaches.
const LONG: Duration = Duration::from_mins(2);
/// Limits under which only number or size ends a client.
const PATIENT: Limits = Limits {
    patience: Duration::from_mins(10),
    clients: 8,
};
/// Limits under which a client's time is soon up.
const HASTY: Limits = Limits {
    patience: Duration::from_millis(300),
    clients: 8,
};

#[derive(Debug, Default)]
struct Program {
    sick: AtomicBool,
    busy: AtomicBool,
}

impl Probed for Program {
    fn healthy(&self) -> Result<(), String> {
        let said = self
            .sick
            .load(Ordering::Relaxed)
            .then(|| "the loop is stuck".to_owned());
        said.map_or(Ok(()), Err)
    }

    fn ready(&self) -> Result<(), String> {
        let said = self
            .busy
            .load(Ordering::Relaxed)
            .then(|| "it is starting".to_owned());
        said.map_or(Ok(()), Err)
    }
}

/// Serves a program and a registry within limits.
async fn serving(limits: Limits, registry: Registry) -> (SocketAddr, Arc<Program>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let program = Arc::new(Program::default());
    let pages = pages(program.clone(), registry);
    tokio::spawn(serve_within(listener, pages, limits));
    (address, program)
}

async fn connect(address: SocketAddr) -> TcpStream {
    timeout(LONG, TcpStream::connect(address))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn every_address_is_one_of_both_families() {
    for (at, reached) in [
        ("[::]:0", &["127.0.0.1", "::1"][..]),
        ("0.0.0.0:0", &["127.0.0.1"]),
        ("[::1]:0", &["::1"]),
    ] {
        let listener = listen(at.parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for of in ["127.0.0.1", "::1"] {
            let found = TcpStream::connect((of, port)).await;
            assert_eq!(found.is_ok(), reached.contains(&of), "{at} by {of}");
        }
    }
}

/// Sends a request.
async fn ask(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = connect(address).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// All that comes until the server ends the connection, in whatever way.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer))
        .await
        .expect("the server keeps it");
    String::from_utf8(answer).unwrap()
}

/// Status and body of a page.
async fn page(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    let answer = rest(&mut stream).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// A value that waits until it may be read, and counts who reads.
#[derive(Debug)]
struct Slow {
    may: Mutex<mpsc::Receiver<()>>,
    reading: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    begun: tokio::sync::mpsc::UnboundedSender<()>,
}

impl Collector for Slow {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> std::fmt::Result {
        let reading = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(reading, Ordering::SeqCst);
        self.begun.send(()).unwrap();
        self.may.lock().unwrap().recv_timeout(LONG).unwrap();
        self.reading.fetch_sub(1, Ordering::SeqCst);
        let family = to.encode_descriptor("read", "Reads.", None, MetricType::Counter)?;
        ConstCounter::new(1u64).encode(family)
    }
}

/// More than the sockets' buffers hold.
#[derive(Debug)]
struct Huge;

impl Collector for Huge {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "x".repeat(32 << 20);
        let family = to.encode_descriptor("huge", &help, None, MetricType::Counter)?;
        ConstCounter::new(1u64).encode(family)
    }
}

fn with(collector: impl Collector) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    registry
}

#[tokio::test]
async fn probes_answer_what_the_program_says_and_other_paths_are_unknown() {
    let (address, program) = serving(PATIENT, Registry::default()).await;
    let ok = (200, "ok\n".to_owned());
    assert_eq!(page(address, "/healthz").await, ok);
    assert_eq!(page(address, "/readyz").await, ok);
    program.busy.store(true, Ordering::Relaxed);
    assert_eq!(page(address, "/healthz").await, ok);
    assert_eq!(
        page(address, "/readyz").await,
        (503, "it is starting\n".into())
    );
    program.sick.store(true, Ordering::Relaxed);
    assert_eq!(
        page(address, "/healthz").await,
        (503, "the loop is stuck\n".into())
    );
    let (status, text) = page(address, "/").await;
    assert_eq!((status, text.contains("/metrics")), (404, true), "{text}");
}

#[tokio::test]
async fn page_of_metrics_names_its_format_and_the_connection_ends_with_it() {
    let (address, _) = serving(PATIENT, Registry::default()).await;
    let mut stream = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = rest(&mut stream).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(answer.ends_with("# eof\n"), "{answer}");
}

#[tokio::test]
async fn client_of_http_1_0_that_ends_its_side_is_answered() {
    let (address, _) = serving(PATIENT, Registry::default()).await;
    let mut stream = ask(address, "GET /readyz HTTP/1.0\r\n\r\n").await;
    stream.shutdown().await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(
        answer.contains(" 200 ") && answer.ends_with("\r\n\r\nok\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn endless_headers_are_refused_after_eight_kibibytes() {
    for header in ["a: b\r\n".repeat(1000), "a".repeat(6000)] {
        let (address, _) = serving(PATIENT, Registry::default()).await;
        let mut stream = ask(address, "GET /metrics HTTP/1.1\r\n").await;
        // Ends only when the server ends it: there is no limit of time here.
        let endless = async { while stream.write_all(header.as_bytes()).await.is_ok() {} };
        timeout(LONG, endless)
            .await
            .expect("the server takes all of it");
        assert_eq!(page(address, "/healthz").await.0, 200);
    }
    let (address, _) = serving(PATIENT, Registry::default()).await;
    let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(8192));
    let answer = rest(&mut ask(address, &long).await).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

#[tokio::test]
async fn client_without_a_request_is_left_when_its_time_is_up() {
    let (address, _) = serving(HASTY, Registry::default()).await;
    assert_eq!(rest(&mut connect(address).await).await, "");
}

#[tokio::test]
async fn client_that_sends_a_byte_now_and_then_is_left_when_its_time_is_up() {
    let (address, _) = serving(HASTY, Registry::default()).await;
    let mut stream = ask(address, "GET /metrics HTTP/1.1\r\n").await;
    let drip = async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        while stream.write_all(b"a").await.is_ok() {
            pause.tick().await;
        }
    };
    timeout(LONG, drip)
        .await
        .expect("each byte wins it more time");
}

#[tokio::test]
async fn client_that_reads_nothing_is_left_when_its_time_is_up() {
    let (address, _) = serving(HASTY, with(Huge)).await;
    let mut stream = ask(address, "GET /metrics HTTP/1.1\r\n\r\n").await;
    // The answer has begun, and the server has given up: what it had not sent is lost.
    timeout(LONG, stream.readable()).await.unwrap().unwrap();
    let mut left = connect(address).await;
    assert_eq!(
        rest(&mut left).await,
        "",
        "a later client was left, so the first was"
    );
    assert!(rest(&mut stream).await.len() < 32 << 20);
}

#[tokio::test]
async fn probe_is_answered_however_many_clients_are_connected() {
    let (address, _) = serving(PATIENT, Registry::default()).await;
    let mut first = connect(address).await;
    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(ask(address, "GET /metrics HTTP/1.1\r\n").await);
    }
    assert_eq!(page(address, "/healthz").await, (200, "ok\n".into()));
    // Each new one took the place of the oldest.
    assert_eq!(rest(&mut first).await, "");
    for mut gone in others.drain(..100 - PATIENT.clients) {
        assert_eq!(rest(&mut gone).await, "");
    }
    let mut newest = others.pop().unwrap();
    newest.write_all(b"\r\n").await.unwrap();
    assert!(rest(&mut newest).await.ends_with("# EOF\n"));
}

#[tokio::test]
async fn scrapes_take_turns_and_probes_do_not_wait_for_them() {
    let (go, may) = mpsc::channel();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let most = Arc::new(AtomicUsize::new(0));
    let slow = Slow {
        may: may.into(),
        reading: Arc::default(),
        most: most.clone(),
        begun,
    };
    let (address, _) = serving(PATIENT, with(slow)).await;
    // The first begins, waits for what the kernel does not give, and loses its client.
    let request = "GET /metrics HTTP/1.1\r\n\r\n";
    let first = ask(address, request).await;
    timeout(LONG, begins.recv()).await.unwrap().unwrap();
    drop(first);
    let (mut second, mut third) = (ask(address, request).await, ask(address, request).await);
    for _ in 0..20 {
        assert_eq!(page(address, "/healthz").await.0, 200);
        assert_eq!(page(address, "/readyz").await.0, 200);
    }
    assert!(
        begins.try_recv().is_err(),
        "a second one reads beside the first"
    );
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    for client in [&mut second, &mut third] {
        let answer = rest(client).await;
        assert!(answer.contains("\nread_total 1\n"), "{answer}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}
