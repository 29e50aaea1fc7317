//! Network namespaces of the tests, work inside them, and captures.
//!
//! A namespace is named `veer-t-<pid>-<n>-<role>` and removed when dropped;
//! those of processes that are gone are swept when the first one is made.

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
};
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use veer_bpf_common::device::IfIndex;

/// Where `ip netns` keeps namespaces.
const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "veer-t-";

static SWEPT: Once = Once::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback up and forwarding. Addresses are there at once, with
    /// no question whether somebody else has them.
    pub fn new(role: &str) -> Result<Self> {
        SWEPT.call_once(sweep);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{n}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        for (key, value) in [
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            namespace.sysctl(key, value)?;
        }
        Ok(namespace)
    }

    /// Its name for `ip`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in a thread of its own inside the namespace. Sockets made
    /// there stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let handle = scope.spawn(|| {
                self.enter()?;
                work()
            });
            match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace.
    fn enter(&self) -> Result<()> {
        let path = Path::new(DIRECTORY).join(&self.name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        setns(file, CloneFlags::CLONE_NEWNET).context("setns")
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        ip(&all)
    }

    /// Runs a command inside; what it printed.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(arguments);
        let output = Command::new("ip").args(&all).output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {arguments:?} in {}: {error}", self.name);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes a `net` sysctl inside.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| fs::write(&path, value).with_context(|| path.clone()))
    }

    /// Index of a device inside.
    pub fn ifindex(&self, device: &str) -> Result<IfIndex> {
        let index = self.run(|| if_nametoindex(device).with_context(|| device.to_owned()))?;
        Ok(IfIndex::from_kernel(index))
    }

    /// How many packets its stack has forwarded, of both families.
    pub fn forwarded(&self) -> Result<u64> {
        let (v4, v6) = self.run(|| {
            let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            Ok((read("snmp")?, read("snmp6")?))
        })?;
        let mut rows = v4.lines().filter(|l| l.starts_with("Ip:"));
        let (Some(names), Some(values)) = (rows.next(), rows.next()) else {
            bail!("no Ip rows in /proc/net/snmp");
        };
        let at = names.split(' ').position(|n| n == "ForwDatagrams");
        let v4: u64 = at
            .and_then(|i| values.split(' ').nth(i))
            .unwrap_or("")
            .parse()?;
        let v6 = v6
            .lines()
            .find_map(|l| l.strip_prefix("Ip6OutForwDatagrams"));
        Ok(v4 + v6.unwrap_or("").trim().parse::<u64>()?)
    }

    /// Lets its stack count the UDP packets that it receives. Others tell of groups and
    /// neighbours, without being asked.
    pub fn count_datagrams(&self) -> Result<()> {
        let rules = "table inet received {
           counter datagrams {}
           chain in { type filter hook prerouting priority raw;
           meta l4proto udp counter name \"datagrams\"; }
         }";
        self.command("nft", &[rules])?;
        Ok(())
    }

    /// How many it has received.
    pub fn datagrams(&self) -> Result<u64> {
        let counter = self.command("nft", &["list counter inet received datagrams"])?;
        let mut words = counter.split_whitespace().skip_while(|w| *w != "packets");
        Ok(words.nth(1).context("no packets in a counter")?.parse()?)
    }

    /// MAC of a device inside.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        let shown = self.command("cat", &[&format!("/sys/class/net/{device}/address")])?;
        let bytes = shown
            .trim()
            .split(':')
            .map(|b| u8::from_str_radix(b, 16))
            .collect::<Result<Vec<_>, _>>()?;
        bytes
            .try_into()
            .map_err(|b| anyhow::anyhow!("{device} has MAC {b:?}"))
    }

    /// Begins to capture on a device inside, both directions.
    pub fn capture(&self, device: &str) -> Result<Capture> {
        let index = self.ifindex(device)?;
        let socket = self.run(|| packet_socket(index))?;
        Ok(Capture {
            socket,
            what: format!("{device} in {}", self.name),
            frames: Vec::new(),
        })
    }

    /// Sends frames as they are from a device inside.
    pub fn raw(&self, device: &str) -> Result<Raw> {
        let index = self.ifindex(device)?;
        let socket = self.run(|| packet_socket(index))?;
        Ok(Raw { socket })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing to do about a failure; the next run's sweep tries again.
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Removes the namespaces of test processes that are gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

/// Runs `ip`.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("run ip; iproute2 is missing, `make setup` installs it")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), error.trim());
    }
    Ok(())
}

/// A packet socket on one device.
fn packet_socket(ifindex: IfIndex) -> Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("packet socket");
    }
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: integers only, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = ifindex.get().cast_signed();
    // SAFETY: an initialised address of the size given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    Errno::result(bound).context("bind a packet socket")?;
    Ok(socket)
}

/// Sends frames.
pub struct Raw {
    socket: OwnedFd,
}

impl Raw {
    /// Sends one frame that says to be of another protocol than its `EtherType`: as its
    /// `skb->protocol` says on the way out.
    pub fn send_as(&self, protocol: u16, frame: &[u8]) -> Result<()> {
        // SAFETY: integers only, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&address) as u32;
        // SAFETY: a descriptor and a writable address of the size given.
        let bound = unsafe {
            libc::getsockname(
                self.socket.as_raw_fd(),
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        Errno::result(bound).context("the device of a packet socket")?;
        address.sll_protocol = protocol.to_be();
        // SAFETY: a descriptor, readable bytes, and an initialised address of the size
        // given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        Errno::result(sent).with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: a descriptor and readable bytes.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        Errno::result(sent).with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// Sends many frames with as few calls as may be.
    pub fn send_all(&self, frames: &[&[u8]]) -> Result<()> {
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: integers and pointers, for which zero is a value.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut sent = 0;
        while let Some(rest) = messages.get_mut(sent..).filter(|rest| !rest.is_empty()) {
            let count = u32::try_from(rest.len())?;
            // SAFETY: a descriptor and as many initialised messages, which point to
            // frames that outlive the call and that it only reads.
            let n = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            let n = Errno::result(n).context("send frames")?;
            sent += usize::try_from(n)?;
        }
        Ok(())
    }
}

/// Frames seen on a device since the capture began.
pub struct Capture {
    socket: OwnedFd,
    what: String,
    frames: Vec<Vec<u8>>,
}

impl Capture {
    /// All frames so far.
    pub fn frames(&mut self) -> Result<&[Vec<u8>]> {
        while let Some(frame) = self.receive(Duration::ZERO)? {
            self.frames.push(frame);
        }
        Ok(&self.frames)
    }

    /// The first frame, now or within the deadline, that `wanted` makes
    /// something of.
    pub fn wait<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + DEADLINE;
        let mut looked_at = 0;
        loop {
            for frame in &self.frames[looked_at..] {
                if let Some(found) = wanted(frame) {
                    return Ok(found);
                }
            }
            looked_at = self.frames.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("not seen on {}; seen: {:?}", self.what, self.summary());
            }
            if let Some(frame) = self.receive(left)? {
                self.frames.push(frame);
            }
        }
    }

    /// The headers of what was seen, for messages.
    pub fn summary(&self) -> Vec<crate::packet::Headers> {
        let seen = self.frames.iter();
        seen.filter_map(|f| crate::packet::Headers::of(f)).collect()
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let mut poll = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let milliseconds = i32::try_from(timeout.as_millis())?;
        // SAFETY: one initialised structure.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        if Errno::result(ready).context("poll")? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 65_536 + 64];
        // SAFETY: a descriptor and writable bytes.
        let n = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let n = Errno::result(n).context("receive a frame")?;
        frame.truncate(usize::try_from(n)?);
        Ok(Some(frame))
    }
}

/// How long a test waits for what must come. A busy machine is slow, not wrong.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks again until `condition` gives something, or says after [`DEADLINE`]
/// what it was waiting for and `seen` then.
pub fn await_condition<T>(
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>>,
    seen: impl FnOnce() -> String,
) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {DEADLINE:?}; {}", seen());
        }
        thread::yield_now();
    }
}
