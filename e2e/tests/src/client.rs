//! Clients of netexec (the test image's server) and ping, run at a [`Site`].
//!
//! Every wait has an end, and an error says from where to where.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use veer_e2e_cluster::{Family, attempt, await_condition, patience};

use crate::site::Site;

/// Datagrams are not retransmitted; one may be lost while a service rule is being
/// written.
const UDP_ATTEMPTS: u32 = 3;

/// How long one of [`UDP_ATTEMPTS`] and the last of some pings may take: a loss
/// costs as much.
fn lost() -> Duration {
    attempt() / UDP_ATTEMPTS
}

/// One HTTP/1.0 GET; returns the body.
pub fn http_get(from: &Site, to: SocketAddr, path: &str) -> Result<String> {
    let time = attempt();
    from.within(|| get(to, path, time))
        .with_context(|| format!("{} → http://{to}{path}", from.name))
}

fn get(to: SocketAddr, path: &str, time: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, time).context("connect")?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(time))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: e2e\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .context("send the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| anyhow!("no HTTP answer: {answer:?}"))?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200"), "answered {status:?}: {body}");
    Ok(body.to_owned())
}

/// A UDP socket of the calling thread's network, for packets to `to`.
pub fn udp_socket(to: IpAddr) -> Result<UdpSocket> {
    Ok(UdpSocket::bind((Family::of(to).unspecified(), 0))?)
}

/// One datagram and its answer (netexec's commands: `hostname`, `clientip`,
/// `echo TEXT`).
pub fn udp_ask(from: &Site, to: SocketAddr, text: &str) -> Result<String> {
    let time = lost();
    from.within(|| ask(to, text, time))
        .with_context(|| format!("{} → udp {to} ({} octets)", from.name, text.len()))
}

fn ask(to: SocketAddr, text: &str, time: Duration) -> Result<String> {
    let socket = udp_socket(to.ip())?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(time))?;
    let mut last = None;
    for _ in 0..UDP_ATTEMPTS {
        let mut answer = vec![0; 65_535];
        match socket
            .send(text.as_bytes())
            .and_then(|_| socket.recv(&mut answer))
        {
            Ok(length) => {
                return Ok(String::from_utf8_lossy(&answer[..length]).into_owned());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow!("not sent"), Into::into))
}

/// What happened to a datagram to a closed port: the error of the socket,
/// `ConnectionRefused` if an ICMP error came back to it.
pub fn udp_error(from: &Site, to: SocketAddr) -> Result<ErrorKind> {
    let time = attempt();
    from.within(|| {
        let socket = udp_socket(to.ip())?;
        socket.set_read_timeout(Some(time))?;
        // A node's own socket may be refused before it has sent anything.
        let connected = socket.connect(to);
        let sent = connected.and_then(|()| socket.send(b"hostname"));
        match sent.and_then(|_| socket.recv(&mut [0; 64])) {
            Ok(_) => bail!("somebody answered {to}; nobody was to listen there"),
            Err(error) => Ok(error.kind()),
        }
    })
}

/// Asks for the name of the pod that answers, by a port called `http` or `udp`.
pub fn who_answers(from: &Site, to: SocketAddr, port: &str) -> Result<String> {
    let answer = if port == "udp" {
        udp_ask(from, to, "hostname")?
    } else {
        http_get(from, to, "/hostname")?
    };
    Ok(answer.trim().to_owned())
}

/// A TCP connection must be refused, and at once.
pub fn refused_at_once(from: &Site, to: SocketAddr) -> Result<()> {
    /// Linux tells an address once a second that a port is unreachable over IPv6
    /// (`net.ipv6.icmp.ratelimit`), and the client asks again after a second.
    const AT_ONCE: Duration = Duration::from_secs(3);
    let time = attempt();
    let start = Instant::now();
    let outcome = from.within(|| {
        let stream = TcpStream::connect_timeout(&to, time);
        Ok(stream.map(drop).map_err(|e| e.kind()))
    })?;
    let took = start.elapsed();
    ensure!(
        outcome == Err(ErrorKind::ConnectionRefused) && took < AT_ONCE * patience(),
        "{} → {to}, which nobody serves: {outcome:?} after {took:?}",
        from.name
    );
    Ok(())
}

/// Asks the API server by its service, which is of the cluster's primary family.
pub fn api_server(from: &Site, primary: Family) -> Result<()> {
    let url = SocketAddr::from((primary.api_service(), 443));
    let url = format!("https://{url}/version");
    let out = from
        .exec(&["curl", "-sk", "--max-time", "30", &url])?
        .stdout;
    ensure!(
        out.contains("gitVersion"),
        "the API server answered {} with {out:?}",
        from.name
    );
    Ok(())
}

/// Asks the cluster's DNS, whose service is of its primary family, for the API server's
/// name, with further options of dig's.
pub fn dns(from: &Site, primary: Family, options: &[&str]) -> Result<()> {
    let server = format!("@{}", primary.dns_service());
    let kind = match primary {
        Family::V4 => "A",
        Family::V6 => "AAAA",
    };
    let words = [
        "dig",
        &server,
        "kubernetes.default.svc.cluster.local",
        kind,
        "+short",
        "+time=10",
        "+tries=3",
    ];
    let out = from.exec(&[&words, options].concat())?.stdout;
    ensure!(
        out.trim().parse() == Ok(primary.api_service()),
        "DNS said {out:?} to {}",
        from.name
    );
    Ok(())
}

/// A TCP connection that asks again and again over the same socket.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Conversation {
    /// Connects from `from`; the socket stays there wherever it is used.
    pub fn open(from: &Site, to: SocketAddr) -> Result<Self> {
        let time = attempt();
        let stream = from
            .within(|| Ok(TcpStream::connect_timeout(&to, time)?))
            .with_context(|| format!("{} → tcp {to}: connect", from.name))?;
        stream.set_read_timeout(Some(time))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Where its socket says that it leads.
    pub fn peer(&self) -> Result<SocketAddr> {
        Ok(self.stream.peer_addr()?)
    }

    /// One request on the open connection; returns the body.
    pub fn ask(&mut self, path: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: e2e\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            self.more()?;
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_lowercase();
        let length: usize = text
            .lines()
            .find_map(|l| l.strip_prefix("content-length:"))
            .and_then(|l| l.trim().parse().ok())
            .ok_or_else(|| anyhow!("an answer without a length: {text}"))?;
        while self.buffer.len() < head + length {
            self.more()?;
        }
        Ok(String::from_utf8_lossy(&self.buffer[head..head + length]).into_owned())
    }

    fn more(&mut self) -> Result<()> {
        let mut part = [0; 4096];
        let read = self.stream.read(&mut part).context("read the answer")?;
        ensure!(read > 0, "the other end closed the connection");
        self.buffer.extend_from_slice(&part[..read]);
        Ok(())
    }
}

/// What ping saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pings {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// TTL of the replies; `None` without one, or when they differ.
    pub ttl: Option<u8>,
    /// Median round trip in milliseconds.
    pub median_ms: f64,
    /// All it printed.
    pub text: String,
}

impl Pings {
    /// Whether every request was answered, once.
    pub fn complete(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

/// The octets of a ping to an address that are not its payload: of IP and of the echo.
pub fn ping_headers(to: IpAddr) -> u32 {
    match Family::of(to) {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// `ping -c count`, a tenth of a second apart, with further options.
pub fn ping_with(from: &Site, to: IpAddr, count: u32, options: &[&str]) -> Result<Pings> {
    let (count_text, to_text) = (count.to_string(), to.to_string());
    let mut words = vec!["ping", "-n", "-c", &count_text, "-i", "0.1", "-W", "1"];
    words.extend(options);
    words.push(&to_text);
    let out = from.exec_any(&words)?;
    Ok(parse_ping(&(out.stdout + &out.stderr), count))
}

/// [`ping_with`] without further options.
pub fn ping(from: &Site, to: IpAddr, count: u32) -> Result<Pings> {
    ping_with(from, to, count, &[])
}

/// Pings that must all be answered. The last one gets as much time as any on a busy
/// machine: without `-w` ping waits a tenth of a second for it when others were
/// answered. One that was lost is not made good by those sent meanwhile.
pub fn reaches(from: &Site, to: impl Into<IpAddr>, count: u32) -> Result<()> {
    let to = to.into();
    let time = Duration::from_secs(u64::from(count / 10)) + lost();
    let pings = ping_with(from, to, count, &["-w", &time.as_secs().to_string()])?;
    ensure!(pings.complete(), "{} → {to}: {}", from.name, pings.text);
    Ok(())
}

/// Waits until that many pings in a row are all answered.
pub fn await_reaches(
    from: &Site,
    to: impl Into<IpAddr>,
    count: u32,
    within: Duration,
) -> Result<()> {
    let to = to.into();
    let what = format!("{} reaches {to}", from.name);
    await_condition(&what, within, || {
        let pings = ping(from, to, count).map_err(|e| format!("{e:#}"))?;
        if pings.complete() {
            Ok(Some(()))
        } else {
            Err(pings.text)
        }
    })?;
    Ok(())
}

/// What pings came to that were sent steadily.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steady {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub answered: u32,
    /// Requests refused with a word: by the sender's own stack, or by ICMP.
    pub errors: u32,
}

/// Pings of `payload` octets without fragmentation, fifty a second, until
/// `change` is done.
pub fn ping_during<T>(
    from: &Site,
    to: IpAddr,
    payload: u32,
    change: impl FnOnce() -> Result<T>,
) -> Result<(T, Steady)> {
    let (to, payload) = (to.to_string(), payload.to_string());
    let words = [
        "ping", "-n", "-M", "do", "-i", "0.02", "-W", "2", "-s", &payload, &to,
    ];
    let child = from
        .command(&words)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start ping")?;
    // Read beside: a full pipe would stop it.
    let id = child.id();
    let reader = thread::spawn(move || child.wait_with_output());
    let changed = change();
    // Its summary comes at SIGINT. nsenter has become ping.
    let ended = Command::new("kill")
        .args(["-INT", &id.to_string()])
        .status();
    let out = reader.join().map_err(|_| anyhow!("a reader panicked"))?;
    let value = changed?;
    ended.context("end ping")?;
    let text = String::from_utf8_lossy(&out.context("wait for ping")?.stdout).into_owned();
    let steady = parse_summary(&text).with_context(|| format!("ping printed {text}"))?;
    Ok((value, steady))
}

/// "190 packets transmitted, 100 received, +90 errors, 47% packet loss".
fn parse_summary(text: &str) -> Option<Steady> {
    let line = text.lines().find(|l| l.contains("packets transmitted"))?;
    let number = |word: &str| {
        let part = line.split(", ").find(|p| p.contains(word))?;
        let first = part.trim_start_matches('+').split(' ').next()?;
        first.parse().ok()
    };
    Some(Steady {
        sent: number("transmitted")?,
        answered: number("received")?,
        errors: number("errors").unwrap_or(0),
    })
}

fn parse_ping(text: &str, sent: u32) -> Pings {
    let field = |line: &str, name: &str| -> Option<f64> {
        let rest = line.split(name).nth(1)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let asked = |line: &str| field(line, "icmp_seq=").is_some_and(|n| n <= f64::from(sent));
    let replies: Vec<&str> = text
        .lines()
        .filter(|l| l.contains(" bytes from ") && !l.contains("DUP!") && asked(l))
        .collect();
    let mut ttls: Vec<u8> = replies
        .iter()
        .filter_map(|l| {
            l.split("ttl=")
                .nth(1)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    ttls.dedup();
    let mut times: Vec<f64> = replies.iter().filter_map(|l| field(l, "time=")).collect();
    times.sort_by(f64::total_cmp);
    Pings {
        sent,
        received: u32::try_from(replies.len()).unwrap_or(u32::MAX),
        ttl: if let [one] = ttls[..] {
            Some(one)
        } else {
            None
        },
        median_ms: times.get(times.len() / 2).copied().unwrap_or_default(),
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_read_as_iputils_prints_them() {
        let text = "PING 10.244.1.2 (10.244.1.2) 56(84) bytes of data.\n\
            64 bytes from 10.244.1.2: icmp_seq=1 ttl=63 time=0.120 ms\n\
            64 bytes from 10.244.1.2: icmp_seq=2 ttl=63 time=0.050 ms\n\n\
            --- 10.244.1.2 ping statistics ---\n\
            3 packets transmitted, 2 received, 33.3333% packet loss, time 204ms\n";
        let pings = parse_ping(text, 3);
        assert_eq!((pings.sent, pings.received, pings.ttl), (3, 2, Some(63)));
        assert!((pings.median_ms - 0.120).abs() < 1e-9);
        assert!(!pings.complete());
    }

    #[test]
    fn a_ping_that_was_lost_is_not_made_good_by_one_sent_while_waiting_for_it() {
        let line = |seq: u32| format!("64 bytes from 1.1.1.1: icmp_seq={seq} ttl=63 time=1 ms\n");
        assert!(parse_ping(&(line(1) + &line(2)), 2).complete());
        assert!(!parse_ping(&(line(1) + &line(3)), 2).complete());
    }

    #[test]
    fn the_summary_of_steady_pings_is_read_with_and_without_errors() {
        let with = "190 packets transmitted, 100 received, +90 errors, 47.3684% packet loss";
        let read = parse_summary(with).expect("a summary");
        assert_eq!((read.sent, read.answered, read.errors), (190, 100, 90));
        let without = "3 packets transmitted, 3 received, 0% packet loss, time 2ms";
        assert_eq!(parse_summary(without).expect("a summary").errors, 0);
    }

    #[test]
    fn two_different_ttls_are_no_ttl() {
        let line = |ttl: u8| format!("64 bytes from 1.1.1.1: icmp_seq=1 ttl={ttl} time=1 ms\n");
        assert_eq!(parse_ping(&(line(63) + &line(62)), 2).ttl, None);
    }
}
