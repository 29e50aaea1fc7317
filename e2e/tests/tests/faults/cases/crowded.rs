//! Connections through a service that are established stay, whatever number of new flows
//! comes, and however fast.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
            setsockopt, socket,
            sockopt::{Linger, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike},
    },
};
use serde_json::json;
use veer_e2e_cluster::{Family, attempt, await_condition};
use veer_e2e_tests::{
    lab::Mode,
    pods::Pod,
    scene::{FIXED, Scene},
    site::Site,
    workloads::STARTED,
};

use super::{NODE, OTHER};
use crate::{
    fault::{Fault, Held},
    survive::{quick_or_full, seconds},
};

/// A node with neither the flooding pod nor the service's.
const THIRD: &str = "control";
/// The service.
const NAME: &str = "e2e-crowded";
/// Its port for the connections that must stay.
const KEPT: u16 = 9_100;
/// Its port for new connections that are answered.
const OPENED: u16 = 9_101;
/// Its port for new connections that are not.
const UNANSWERED: u16 = 9_102;
/// Its port for datagrams.
const DATAGRAMS: u16 = 9_103;
/// New flows of each kind, at most. A node's connection tracking has each of them for up
/// to two minutes, and 262,144 of all together (`nf_conntrack_max`): beyond that it would
/// drop packets of its own accord. Nothing slows them down up to there.
const MOST: u32 = 50_000;
/// And at least: fewer are no flood. In the long form those of all kinds are more than a
/// pod has places for (33,024), with its connections on top.
fn least() -> u32 {
    quick_or_full(1_000, 11_000)
}
/// Where their source ports begin: one for each flow, so none is another's again.
const FIRST_PORT: u16 = 1_024;
/// How long a new connection is waited for. A lost SYN comes again after a second, which
/// would hold the others up.
const ANSWERED: Duration = Duration::from_millis(100);

pub(super) fn faults() -> Vec<Fault> {
    [
        ("the_flooding_pod_itself", Place::Itself),
        ("another_pod_on_its_node", Place::SameNode),
        ("a_pod_on_another_node", Place::OtherNode),
    ]
    .into_iter()
    .map(|(whose, place)| {
        Fault::new(
            format!("crowded::ten_thousand_connections_of_{whose}"),
            "a pod sends datagrams and SYNs from ever new ports through the same service, as \
             fast as the machine can",
            Mode::Tunnel,
            move |scene| crowded(scene, place),
        )
    })
    .collect()
}

/// Whose connections must stay, as seen from the pod that floods.
#[derive(Debug, Clone, Copy)]
enum Place {
    Itself,
    SameNode,
    OtherNode,
}

impl Place {
    fn victim(self, scene: &Scene) -> Result<&Pod> {
        match self {
            Self::Itself => scene.demo_on(NODE),
            Self::SameNode => scene.fixed_on(NODE),
            Self::OtherNode => scene.demo_on(THIRD),
        }
    }
}

fn crowded(scene: &Scene, place: Place) -> Result<Held> {
    let kubectl = scene.lab.kubectl();
    // The flood may be too much for the pod's probes, and the service is to stay.
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": FIXED},
        "spec": {
            "selector": {"at": OTHER},
            "ipFamilies": [scene.family.to_string()],
            "publishNotReadyAddresses": true,
            "ports": [
                {"name": "kept", "port": KEPT},
                {"name": "opened", "port": OPENED},
                {"name": "unanswered", "port": UNANSWERED},
                {"name": "datagrams", "port": DATAGRAMS, "protocol": "UDP"},
            ],
        },
    })
    .to_string();
    kubectl.apply(&service)?;
    let outcome = crowd(scene, place);
    let deleted = kubectl.delete(&service);
    let forgotten = forget(scene);
    let held = outcome?;
    deleted?;
    forgotten?;
    Ok(held)
}

fn crowd(scene: &Scene, place: Place) -> Result<Held> {
    let count: u16 = quick_or_full(1_000, 10_000);
    allow_descriptors(libc::rlim_t::from(count) + 1_000)?;
    let words = ["-n", FIXED, "get", "service", NAME];
    let made = scene.lab.kubectl().json(&words)?;
    let address = made["spec"]["clusterIP"].as_str().unwrap_or_default();
    let address: IpAddr = address.parse().context("a service without address")?;
    let (flooder, victim) = (scene.demo_on(NODE)?, place.victim(scene)?);
    let server = Server::start(scene.fixed_on(OTHER)?)?;
    for from in [&flooder.site, &victim.site] {
        await_led(from, SocketAddr::new(address, OPENED))?;
    }
    let near = opened(&victim.site, SocketAddr::new(address, KEPT), count)?;
    let (flows, time) = flood(&flooder.site, address, &server)?;
    let time = seconds(time);
    let (lost, why) = lost(&near, &server.kept);
    ensure!(
        lost == 0,
        "{lost} of {count} connections lost, {flows} new flows in {time}, the first error: {why:?}"
    );
    Ok(Held::new(
        "every established connection carried data both ways afterwards",
        format!("{count} connections, {flows} new flows in {time}, {lost} lost"),
    ))
}

/// What the service's pod listens with.
struct Server {
    kept: TcpListener,
    opened: TcpListener,
    /// A listener whose queue is full: it answers nobody.
    _full: (TcpListener, TcpStream),
    /// Nobody reads from it, and no ICMP error says that.
    _deaf: UdpSocket,
}

impl Server {
    fn start(pod: &Pod) -> Result<Self> {
        // The connections wait in the listener's queue to the end: as descriptors of both
        // ends they would be more than a process may have on many machines.
        let queue = "net.core.somaxconn=16384";
        pod.site.exec(&["sysctl", "-q", "-w", queue])?;
        let any = Family::of(pod.address).unspecified();
        pod.site.within(|| {
            let kept = TcpListener::bind((any, KEPT))?;
            listen(&kept, Backlog::MAXALLOWABLE)?;
            kept.set_nonblocking(true)?;
            let opened = TcpListener::bind((any, OPENED))?;
            setsockopt(&opened, ReceiveTimeout, &TimeVal::seconds(1))?;
            // Room for one, which comes and stays.
            let full = TcpListener::bind((any, UNANSWERED))?;
            listen(&full, Backlog::new(0)?)?;
            let to = SocketAddr::new(pod.address, UNANSWERED);
            let first = TcpStream::connect_timeout(&to, attempt())?;
            Ok(Self {
                kept,
                opened,
                _full: (full, first),
                _deaf: UdpSocket::bind((any, DATAGRAMS))?,
            })
        })
    }
}

/// Lets this process have so many descriptors.
fn allow_descriptors(count: libc::rlim_t) -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes a limit, for which there is room.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(got == 0, "getrlimit: {}", io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_cur.max(count);
    limit.rlim_max = limit.rlim_max.max(count);
    // SAFETY: the call reads a limit.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(
        set == 0,
        "{count} descriptors: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

/// Waits until a service leads to its pod.
fn await_led(from: &Site, to: SocketAddr) -> Result<()> {
    let what = format!("the service leads {} to its pod", from.name);
    await_condition(&what, STARTED, || {
        let time = attempt();
        let open = from.within(|| Ok(TcpStream::connect_timeout(&to, time)?));
        open.map(|_| Some(())).map_err(|e| format!("{e:#}"))
    })?;
    Ok(())
}

/// The near ends of that many connections.
fn opened(from: &Site, to: SocketAddr, count: u16) -> Result<Vec<TcpStream>> {
    from.within(|| {
        (0..count)
            .map(|n| -> Result<TcpStream> {
                // With thousands of them, a few find all the places taken that they may
                // take: a SYN from another port has others.
                let what = format!("connection {n} is open");
                let open = await_condition(&what, STARTED, || {
                    let open = TcpStream::connect_timeout(&to, attempt());
                    open.map(Some).map_err(|e| e.to_string())
                })?;
                Ok(open)
            })
            .collect::<Result<Vec<_>>>()
    })
}

/// The kinds of new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A datagram, and no answer.
    Datagram,
    /// A connection that is opened and reset.
    Opened,
    /// A SYN, and no answer.
    Unanswered,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Datagram, Self::Opened, Self::Unanswered];

    fn port(self) -> u16 {
        match self {
            Self::Datagram => DATAGRAMS,
            Self::Opened => OPENED,
            Self::Unanswered => UNANSWERED,
        }
    }

    /// Begins one flow after the other until the time is over; returns how many.
    fn pour(self, from: &Site, service: IpAddr, end: Instant) -> Result<u32> {
        let to = SocketAddr::new(service, self.port());
        let any = Family::of(service).unspecified();
        from.within(|| {
            let (mut sent, mut failed) = (0, None);
            for port in FIRST_PORT..=u16::MAX {
                if sent == MOST || Instant::now() >= end {
                    break;
                }
                match self.begin(SocketAddr::new(any, port), to) {
                    Ok(()) => sent += 1,
                    // Somebody else's port, or a queue is full: enough get through.
                    Err(error) => failed = Some(error),
                }
            }
            ensure!(sent >= least(), "{self:?}: {sent} flows, {failed:?}");
            Ok(sent)
        })
    }

    fn begin(self, own: SocketAddr, to: SocketAddr) -> io::Result<()> {
        if self == Self::Datagram {
            UdpSocket::bind(own)?.send_to(b"x", to)?;
            return Ok(());
        }
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let stream = TcpStream::from(fd);
        stream.set_nonblocking(self == Self::Unanswered)?;
        // It is connect's time, too.
        stream.set_write_timeout(Some(ANSWERED))?;
        // It ends when it is dropped, and nothing of it stays.
        let reset = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, Linger, &reset)?;
        bind(stream.as_raw_fd(), &SockaddrStorage::from(own))?;
        match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
            // The SYN is sent in any case.
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// New flows of all kinds at once; returns how many there were and in what time.
fn flood(from: &Site, service: IpAddr, server: &Server) -> Result<(u32, Duration)> {
    let start = Instant::now();
    let end = start + Duration::from_secs(quick_or_full(10, 60));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let taking = scope.spawn(|| taken(&server.opened, &done));
        let pouring = Kind::ALL.map(|kind| scope.spawn(move || kind.pour(from, service, end)));
        let sent = pouring.map(joined);
        let time = start.elapsed();
        done.store(true, Ordering::Relaxed);
        let taken = joined(taking)?;
        let mut flows = 0;
        for sent in sent {
            flows += sent?;
        }
        ensure!(taken >= 1_000, "only {taken} connections were open");
        Ok((flows, time))
    })
}

/// What a thread returned.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// Takes connections out of a listener's queue and drops them; returns how many.
fn taken(listener: &TcpListener, done: &AtomicBool) -> Result<u32> {
    let mut count = 0;
    loop {
        match listener.accept() {
            Ok(_) => count += 1,
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(error).context("accept");
            }
            Err(_) if done.load(Ordering::Relaxed) => return Ok(count),
            Err(_) => {}
        }
    }
}

/// How many connections do not carry a byte there and one back, and the first error.
fn lost(near: &[TcpStream], listener: &TcpListener) -> (usize, Option<io::Error>) {
    // Each end sends before any is waited for: many that are lost take as long as one.
    let sent = near.iter().map(|mut end| end.write_all(b"x"));
    let mut seen: Vec<io::Error> = sent.filter_map(Result::err).collect();
    let deadline = Instant::now() + attempt();
    let echoed = near.iter().map(|_| echo(listener, deadline));
    seen.extend(echoed.filter_map(Result::err));
    let deadline = Instant::now() + attempt();
    let got = near.iter().map(|end| receive(end, deadline));
    let lost: Vec<io::Error> = got.filter_map(Result::err).collect();
    (lost.len(), seen.into_iter().chain(lost).next())
}

/// Answers on the far end of the next connection.
fn echo(listener: &TcpListener, deadline: Instant) -> io::Result<()> {
    let (mut far, _) = listener.accept()?;
    receive(&far, deadline)?;
    far.write_all(b"x")
}

/// One byte.
fn receive(mut end: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Zero would be for ever. What has arrived already is read in any case.
    end.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    end.read_exact(&mut [0])
}

/// Has the flooding pod's node forget its flows. Connection tracking would have them for
/// two minutes, together with those of the next flood.
fn forget(scene: &Scene) -> Result<()> {
    let source = scene.demo_on(NODE)?.address;
    let script = format!("conntrack -D -s {source} >/dev/null 2>&1");
    // It fails where there are none.
    scene.lab.node(NODE)?.exec_any(&["sh", "-c", &script])?;
    Ok(())
}
