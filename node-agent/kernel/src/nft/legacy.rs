//! The tables of iptables and ip6tables before `nf_tables`, which a node may have
//! besides: `nf_tables` does not show them. veer reads chain FORWARD of table `filter`
//! and says what it drops. It writes nothing there: whoever does replaces the whole
//! table, with what others have written meanwhile.
//!
//! Layouts: `include/uapi/linux/netfilter_ipv4/ip_tables.h`,
//! `include/uapi/linux/netfilter_ipv6/ip6_tables.h` and
//! `include/uapi/linux/netfilter/x_tables.h`.

#![allow(
    unsafe_code,
    reason = "getsockopt with structures that no library knows"
)]

use std::{
    fs, io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::netlink::message::{u16_at, u32_at};

/// What differs between the families.
#[derive(Debug)]
struct Layout {
    /// The program that writes the tables.
    program: &'static str,
    /// The tables that are there.
    names: &'static str,
    family: AddressFamily,
    /// Of the socket's options.
    level: libc::c_int,
    /// Bytes of `struct ipt_ip` or `ip6t_ip6`, with which an entry begins.
    condition: usize,
    /// Where in that the name of the device is that a packet enters by; that of the one
    /// that it leaves by, and the masks of both, follow.
    devices: usize,
    /// Bytes of `struct ipt_entry` or `ip6t_entry`; its matches and its target follow.
    entry: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        program: "iptables-legacy",
        names: "/proc/thread-self/net/ip_tables_names",
        family: AddressFamily::Inet,
        level: libc::IPPROTO_IP,
        condition: 84,
        devices: 16,
        entry: 112,
    },
    Layout {
        program: "ip6tables-legacy",
        names: "/proc/thread-self/net/ip6_tables_names",
        family: AddressFamily::Inet6,
        level: libc::IPPROTO_IPV6,
        condition: 136,
        devices: 64,
        entry: 168,
    },
];

const FILTER: &str = "filter";
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, and `IP6T_*`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of `struct ipt_getinfo`, and of `struct ipt_get_entries` before its entries.
const INFO: usize = 84;
const HEAD: usize = 40;
/// Bytes of `struct xt_entry_target`; the verdict of a standard one follows.
const TARGET: usize = 32;
/// The largest table that is read, in bytes.
const MOST: usize = 64 << 20;
/// Verdicts of a standard target: `-NF_DROP - 1`, `-NF_ACCEPT - 1`.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
/// How often it is looked at: the kernel does not tell of changes.
const AGAIN: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    looked: Option<(Instant, bool)>,
    /// By family.
    drops: [bool; 2],
}

impl Legacy {
    /// Looks, if the last time is long enough ago. What cannot be read here keeps no
    /// other chain from its repair.
    pub(super) fn look(&mut self, ipv6: bool) {
        let lately = |(at, of): (Instant, bool)| of == ipv6 && at.elapsed() < AGAIN;
        if self.looked.is_some_and(lately) {
            return;
        }
        self.looked = Some((Instant::now(), ipv6));
        self.drops = [true, ipv6];
        for (drops, layout) in self.drops.iter_mut().zip(&LAYOUTS) {
            *drops &= layout.drops().unwrap_or_else(|error| {
                let program = layout.program;
                tracing::warn!(%error, program, "cannot read the legacy tables");
                false
            });
        }
    }

    /// What is dropped although it should not be, and what to do.
    pub(super) fn concerns(&self) -> impl Iterator<Item = String> {
        let drops = self.drops.into_iter().zip(&LAYOUTS).filter(|(d, _)| *d);
        drops.map(|(_, layout)| layout.concern())
    }
}

impl Layout {
    fn concern(&self) -> String {
        let add = |way| format!("{} -I FORWARD {way} veer+ -j ACCEPT", self.program);
        format!(
            "chain FORWARD of table filter, in the tables of {}, drops what it does not know, and \
             veer does not write there: pods lose Services, NodePorts and everything outside the \
             cluster that passes the node's stack. Run {} and {}",
            self.program,
            add("-i"),
            add("-o")
        )
    }

    /// Whether the chain drops what comes from or goes to pods.
    fn drops(&self) -> io::Result<bool> {
        // Asking for a table makes it.
        let names = match fs::read_to_string(self.names) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if !names.lines().any(|name| name == FILTER) {
            return Ok(false);
        }
        let socket = socket(
            self.family,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let mut info = vec![0; INFO];
        info[..FILTER.len()].copy_from_slice(FILTER.as_bytes());
        self.ask(&socket, GET_INFO, &mut info)?;
        let number = |at: usize| u32_at(&info, at).map(|n| n as usize);
        let (Some(begin), Some(end), Some(size)) = (
            number(36 + 4 * FORWARD),
            number(56 + 4 * FORWARD),
            number(80),
        ) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if size > MOST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a legacy table of {size} bytes"),
            ));
        }
        let mut table = vec![0; HEAD + size];
        table[..FILTER.len()].copy_from_slice(FILTER.as_bytes());
        table[32..36].copy_from_slice(&info[80..84]);
        self.ask(&socket, GET_ENTRIES, &mut table)?;
        self.judge(&table[HEAD..], begin, end)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn ask(&self, socket: &impl AsRawFd, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = libc::socklen_t::try_from(buffer.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the kernel reads and writes at most `length` bytes of the buffer.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                self.level,
                option,
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether a chain whose rules are in these bytes from `begin` to its policy at `end`
    /// drops what veer's devices carry. Jumps are not followed. `None`: the bytes are no
    /// table.
    fn judge(&self, table: &[u8], begin: usize, end: usize) -> Option<bool> {
        let (mut from, mut to) = (false, false);
        let mut at = begin;
        loop {
            let entry = table.get(at..)?;
            let condition = entry.get(..self.condition)?;
            let (target, next) = (
                u16_at(entry, self.condition + 4)?,
                u16_at(entry, self.condition + 6)?,
            );
            let (target, next) = (usize::from(target), usize::from(next));
            if target < self.entry || next < target + TARGET {
                return None;
            }
            let what = entry.get(target..next)?;
            let name = what.get(2..31)?;
            let verdict = u32_at(what, TARGET).map(u32::cast_signed);
            let verdict = verdict.filter(|_| name[0] == 0);
            let plain = target == self.entry;
            let all = plain && condition.iter().all(|b| *b == 0);
            if at == end || (all && (verdict == Some(ACCEPT) || verdict == Some(DROP))) {
                return Some(verdict == Some(DROP) && !(from && to));
            }
            if all && name.starts_with(b"REJECT\0") {
                return Some(!(from && to));
            }
            if plain && verdict == Some(ACCEPT) {
                from |= is_own(condition, self.devices);
                to |= is_own(condition, self.devices + 16);
            }
            at = at.checked_add(next)?;
        }
    }
}

/// Whether a condition is `-i veer+` or `-o veer+`, whose name it has at `name`, and nothing
/// else.
fn is_own(condition: &[u8], name: usize) -> bool {
    let mut wanted = vec![0; condition.len()];
    // iptables leaves the `+` in the name; the mask says how much of it counts.
    wanted[name..name + 5].copy_from_slice(b"veer+");
    wanted[name + 32..name + 36].fill(0xff);
    condition == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::lab;

    #[test]
    fn what_legacy_iptables_drops_is_told_until_it_accepts_veers_devices() {
        for (layout, one) in LAYOUTS
            .iter()
            .zip(["169.254.169.254/32", "fd00:ec2::254/128"])
        {
            let node = lab::namespace();
            let seen = || node.run(|| layout.drops().unwrap());
            let iptables = |rule: &str| node.command(layout.program, rule);
            assert!(!seen());
            let names = || node.run(|| fs::read_to_string(layout.names).unwrap_or_default());
            assert_eq!(names(), "", "looking makes no table");
            iptables(&format!("-A FORWARD -d {one} -j DROP"));
            assert!(!seen(), "one destination");
            iptables("-P FORWARD DROP");
            assert!(seen());
            iptables("-I FORWARD -i veer+ -j ACCEPT");
            assert!(seen(), "what goes to pods is still dropped");
            iptables("-I FORWARD -o veer+ -p tcp -j ACCEPT");
            assert!(seen(), "TCP alone");
            iptables("-I FORWARD -o veer+ -j ACCEPT");
            assert!(!seen());
            iptables("-F FORWARD");
            iptables("-P FORWARD ACCEPT");
            assert!(!seen());
            iptables("-A FORWARD -j REJECT");
            assert!(seen());
            let add = format!("{} -I FORWARD -o veer+ -j ACCEPT", layout.program);
            let mut legacy = Legacy::default();
            for ipv6 in [true, false] {
                node.run(|| legacy.look(ipv6));
                let told: Vec<String> = legacy.concerns().collect();
                let wanted = ipv6 || layout.family == AddressFamily::Inet;
                assert_eq!(told.len(), usize::from(wanted), "{told:?}");
                assert!(told.iter().all(|t| t.contains(&add)), "{told:?}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_table_are_refused() {
        for layout in &LAYOUTS {
            let judge = |table: &[u8], begin, end| layout.judge(table, begin, end);
            let [target, next] = [4, 6].map(|at| layout.condition + at);
            let mut entry = vec![0; layout.entry + TARGET + 8];
            entry[target] = u8::try_from(layout.entry).unwrap();
            entry[next] = u8::try_from(entry.len()).unwrap();
            let verdict = layout.entry + TARGET;
            entry[verdict..verdict + 4].copy_from_slice(&DROP.to_ne_bytes());
            assert_eq!(judge(&entry, 0, 0), Some(true));
            for cut in 0..entry.len() {
                assert_eq!(judge(&entry[..cut], 0, 0), None, "{cut}");
            }
            assert_eq!(judge(&entry, 7, 7), None);
            assert_eq!(judge(&entry, usize::MAX, usize::MAX), None);
            let short = u8::try_from(layout.entry).unwrap();
            for (at, wrong) in [
                (target, 0),
                (target, 255),
                (next, 0),
                (next, short),
                (next, 255),
            ] {
                let mut bytes = entry.clone();
                bytes[at] = wrong;
                assert_eq!(judge(&bytes, 0, 0), None, "{at}: {wrong}");
            }
            // An entry that never ends at the policy.
            entry[verdict] = 3;
            assert_eq!(judge(&entry, 0, 1), None);
        }
    }
}
