//! The tables of iptables before `nf_tables`, which a node may have besides: `nf_tables`
//! does not show them. veer reads chain FORWARD of table `filter` and says what it
//! drops. It writes nothing there: whoever does replaces the whole table, with what
//! others have written meanwhile.
//!
//! Layouts: `include/uapi/linux/netfilter_ipv4/ip_tables.h` and
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

/// The tables that are there.
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";
const FILTER: &str = "filter";
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of `struct ipt_getinfo`, and of `struct ipt_get_entries` before its entries.
const INFO: usize = 84;
const HEAD: usize = 40;
/// Bytes of `struct ipt_entry`; its matches and its target follow.
const ENTRY: usize = 112;
/// Bytes of `struct ipt_ip`, with which it begins.
const CONDITION: usize = 84;
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
    looked: Option<Instant>,
    drops: bool,
}

impl Legacy {
    /// Looks, if the last time is long enough ago. What cannot be read here keeps no
    /// other chain from its repair.
    pub(super) fn look(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        self.looked = Some(Instant::now());
        self.drops = drops().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read iptables' legacy tables");
            false
        });
    }

    /// What is dropped although it should not be, and what to do.
    pub(super) fn concern(&self) -> Option<String> {
        let add = |way| format!("iptables-legacy -I FORWARD {way} veer+ -j ACCEPT");
        self.drops.then(|| {
            format!(
                "chain FORWARD of table filter, in iptables' legacy tables, drops what it does \
                 not know, and veer does not write there: pods lose Services, NodePorts and \
                 everything outside the cluster that passes the node's stack. Run {} and {}",
                add("-i"),
                add("-o")
            )
        })
    }
}

/// Whether the chain drops what comes from or goes to pods.
fn drops() -> io::Result<bool> {
    // Asking for a table makes it.
    let names = match fs::read_to_string(NAMES) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !names.lines().any(|name| name == FILTER) {
        return Ok(false);
    }
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut info = vec![0; INFO];
    info[..FILTER.len()].copy_from_slice(FILTER.as_bytes());
    ask(&socket, GET_INFO, &mut info)?;
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
    ask(&socket, GET_ENTRIES, &mut table)?;
    judge(&table[HEAD..], begin, end).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn ask(socket: &impl AsRawFd, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
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
fn judge(table: &[u8], begin: usize, end: usize) -> Option<bool> {
    let (mut from, mut to) = (false, false);
    let mut at = begin;
    loop {
        let entry = table.get(at..)?;
        let condition = entry.get(..CONDITION)?;
        let (target, next) = (u16_at(entry, 88)?, u16_at(entry, 90)?);
        let (target, next) = (usize::from(target), usize::from(next));
        if target < ENTRY || next < target + TARGET {
            return None;
        }
        let what = entry.get(target..next)?;
        let name = what.get(2..31)?;
        let verdict = u32_at(what, TARGET).map(u32::cast_signed);
        let verdict = verdict.filter(|_| name[0] == 0);
        let plain = target == ENTRY;
        let all = plain && condition.iter().all(|b| *b == 0);
        if at == end || (all && (verdict == Some(ACCEPT) || verdict == Some(DROP))) {
            return Some(verdict == Some(DROP) && !(from && to));
        }
        if all && name.starts_with(b"REJECT\0") {
            return Some(!(from && to));
        }
        if plain && verdict == Some(ACCEPT) {
            from |= is_own(condition, 16);
            to |= is_own(condition, 32);
        }
        at = at.checked_add(next)?;
    }
}

/// Whether a condition is `-i veer+` (name at 16) or `-o veer+` (at 32) and nothing else.
fn is_own(condition: &[u8], name: usize) -> bool {
    let mut wanted = [0; CONDITION];
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
        let node = lab::namespace();
        let seen = || node.run(|| drops().unwrap());
        let iptables = |rule: &str| node.command("iptables-legacy", rule);
        assert!(!seen());
        let names = || node.run(|| fs::read_to_string(NAMES).unwrap_or_default());
        assert_eq!(names(), "", "looking makes no table");
        iptables("-A FORWARD -d 169.254.169.254/32 -j DROP");
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
        let mut legacy = Legacy::default();
        node.run(|| legacy.look());
        let told = legacy.concern().unwrap();
        assert!(
            told.contains("iptables-legacy -I FORWARD -o veer+ -j ACCEPT"),
            "{told}"
        );
    }

    #[test]
    fn bytes_that_are_no_table_are_refused() {
        let mut entry = vec![0; ENTRY + TARGET + 8];
        entry[88] = u8::try_from(ENTRY).unwrap();
        entry[90] = u8::try_from(entry.len()).unwrap();
        let verdict = ENTRY + TARGET;
        entry[verdict..verdict + 4].copy_from_slice(&DROP.to_ne_bytes());
        assert_eq!(judge(&entry, 0, 0), Some(true));
        for cut in 0..entry.len() {
            assert_eq!(judge(&entry[..cut], 0, 0), None, "{cut}");
        }
        assert_eq!(judge(&entry, 7, 7), None);
        assert_eq!(judge(&entry, usize::MAX, usize::MAX), None);
        for (at, wrong) in [(88, 0), (88, 255), (90, 0), (90, 112), (90, 255)] {
            let mut bytes = entry.clone();
            bytes[at] = wrong;
            assert_eq!(judge(&bytes, 0, 0), None, "{at}: {wrong}");
        }
        // An entry that never ends at the policy.
        entry[verdict] = 3;
        assert_eq!(judge(&entry, 0, 1), None);
    }
}
