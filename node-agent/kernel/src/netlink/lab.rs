//! Network namespaces for tests: as root, gone with their last descriptor.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use ipnet::IpNet;
use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use veer_agent_core::mtu::Mtu;
use veer_bpf_common::device::IfIndex;

use super::{
    address,
    link::{self, Mac, VethEnd},
    message::Socket,
    netns::{self, Netns},
    route::{self, Route},
};

/// A namespace that holds nothing but `lo`, up.
pub fn namespace() -> Netns {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (as root)");
        let mut socket = Socket::route().expect("a socket");
        link::set_up(&mut socket, link::LOOPBACK).expect("lo up");
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // Also of `lo`, whatever the machine's are.
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            fs::write(format!("/proc/sys/net/{key}"), value).expect("a sysctl");
        }
        netns::open("/proc/thread-self/ns/net").expect("the namespace")
    });
    made.join().expect("a namespace")
}

impl Netns {
    /// Does something inside, in a thread of its own; so do programs it starts.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            inside.join().expect("the thread inside")
        })
    }

    /// Runs a program inside; what it printed.
    pub fn command(&self, program: &str, arguments: &str) -> String {
        self.run(|| {
            let output = std::process::Command::new(program)
                .args(arguments.split(' '))
                .output()
                .unwrap_or_else(|e| panic!("{program}: {e}"));
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {arguments}: {error}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Writes a sysctl below `net` inside.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/net/{key}"), value).expect("a sysctl"));
    }

    /// Reads a sysctl below `net` inside.
    pub fn sysctl_of(&self, key: &str) -> String {
        let found = self.run(|| fs::read_to_string(format!("/proc/sys/net/{key}")));
        found.expect("a sysctl").trim().to_owned()
    }

    /// Gives a device an address, sets it up, and routes a block to it. Returns its
    /// index.
    pub fn device(&self, name: &str, ip: &str, block: &str) -> IfIndex {
        let mut socket = self.socket().expect("a socket");
        let found = link::by_name(&mut socket, name).expect("links");
        let index = found.unwrap_or_else(|| panic!("{name}")).index;
        address::add(&mut socket, index, ip.parse().expect("an address")).expect("address");
        link::set_up(&mut socket, index).expect("up");
        let block: IpNet = block.parse().expect("a block");
        route::replace(&mut socket, &Route::link(block, index)).expect("a route");
        index
    }
}

/// MAC of the first end of every pair.
pub const NEAR: Mac = [2, 0, 0, 0, 0, 1];
/// MAC of the other.
pub const FAR: Mac = [2, 0, 0, 0, 0, 2];

/// A veth pair of the same name in both namespaces.
pub fn pair(near: &Netns, far: &Netns, name: &str) {
    let end = |mac| VethEnd { name, mac };
    let mut socket = near.socket().expect("a socket");
    link::add_veth(
        &mut socket,
        end(NEAR),
        end(FAR),
        Mtu::ETHERNET,
        far.file.as_fd(),
    )
    .expect("a veth pair");
}

/// Sends frames as they are from a device inside.
pub fn send_frames<'a>(
    from: &Netns,
    device: IfIndex,
    frames: impl IntoIterator<Item = &'a [u8]> + Send,
) {
    from.run(|| {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a packet socket");
        // SAFETY: of integers and arrays of them.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET).expect("a family");
        to.sll_ifindex = device.get().cast_signed();
        let length = libc::socklen_t::try_from(size_of_val(&to)).expect("a length");
        for frame in frames {
            // SAFETY: the kernel reads a frame and an address of these lengths.
            let sent = unsafe {
                libc::sendto(
                    fd.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    std::ptr::from_ref(&to).cast(),
                    length,
                )
            };
            assert_eq!(usize::try_from(sent).ok(), Some(frame.len()));
        }
    });
}
