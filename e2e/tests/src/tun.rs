//! A network without Ethernet between machines, as `WireGuard` makes it: a TUN device on
//! each, and whole IP packets carried from one to another.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use etherparse::Ipv4HeaderSlice;
use nix::libc;

use crate::site::Site;

/// `TUNSETIFF` (`include/uapi/linux/if_tun.h`).
const SET_DEVICE: libc::c_ulong = 0x4004_54ca;
/// `IFF_TUN`, and `IFF_NO_PI`: IP packets and nothing before them.
const PLAIN: libc::c_short = 0x1001;
/// The longest IP packet.
const LONGEST: usize = 65_535;

/// The network; its devices go when this is dropped.
#[derive(Debug)]
pub struct Network {
    sites: Vec<Site>,
    device: &'static str,
    carriers: Vec<JoinHandle<()>>,
    carried: Arc<AtomicU64>,
}

impl Network {
    /// Gives every site a device of that name and MTU, its address unless it has that
    /// elsewhere, and by the device a route to each other's address, with its own as
    /// the source.
    pub fn between(device: &'static str, mtu: u32, members: &[(Site, Ipv4Addr)]) -> Result<Self> {
        let mut network = Self {
            sites: Vec::new(),
            device,
            carriers: Vec::new(),
            carried: Arc::default(),
        };
        let mut ends = HashMap::new();
        for (site, address) in members {
            let end = site.within(|| open(device))?;
            ends.insert(*address, end);
            network.sites.push(site.clone());
            let (own, mtu) = (address.to_string(), mtu.to_string());
            site.exec(&["ip", "link", "set", device, "mtu", &mtu, "up"])?;
            let there = site.exec(&["ip", "-oneline", "address", "show", "to", &own])?;
            if there.stdout.trim().is_empty() {
                site.exec(&["ip", "address", "add", &own, "dev", device])?;
            }
            for (_, other) in members.iter().filter(|(_, other)| other != address) {
                let to = other.to_string();
                site.exec(&["ip", "route", "add", &to, "dev", device, "src", &own])?;
            }
        }
        let ends = Arc::new(ends);
        for address in ends.keys().copied() {
            let (ends, count) = (Arc::clone(&ends), Arc::clone(&network.carried));
            let carrying = thread::spawn(move || carry(address, &ends, &count));
            network.carriers.push(carrying);
        }
        Ok(network)
    }

    /// How many packets were carried until now.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for site in &self.sites {
            // Whoever reads it gets an error then, and ends.
            let _gone = site.exec_any(&["ip", "link", "del", self.device]);
        }
        for carrier in self.carriers.drain(..) {
            let _ended = carrier.join();
        }
    }
}

/// Makes a device in the calling thread's network. It goes with the file.
fn open(device: &str) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: integers and a union of such, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, octet) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *place = libc::c_char::from_ne_bytes([octet]);
    }
    request.ifr_ifru.ifru_flags = PLAIN;
    // SAFETY: the kernel reads and writes a request of the size that the number says.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), SET_DEVICE, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("make {device}"));
    }
    Ok(file)
}

/// Hands what one end sends to the end that has its destination, until the device is
/// gone.
fn carry(from: Ipv4Addr, ends: &HashMap<Ipv4Addr, File>, count: &AtomicU64) {
    let mut packet = vec![0; LONGEST];
    let Some(mut own) = ends.get(&from) else {
        return;
    };
    while let Ok(length) = own.read(&mut packet) {
        let Ok(header) = Ipv4HeaderSlice::from_slice(&packet[..length]) else {
            continue;
        };
        // A packet without a receiver is lost, as is one to a device that is being
        // removed.
        if let Some(mut end) = ends.get(&header.destination_addr())
            && end.write_all(&packet[..length]).is_ok()
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
