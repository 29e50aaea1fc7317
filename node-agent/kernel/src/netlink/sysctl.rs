//! Sysctls of the node's network namespace, with the values found before kept
//! on disk until clean-up.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// What every device that pods' packets come by is set to, below `ipv4/conf`:
/// loose source validation, since what comes by another device than answers
/// would leave by is fine (the larger of `all` and the device's value counts), and
/// forwarding.
pub const DEVICE: [(&str, &str); 2] = [("rp_filter", "2"), ("forwarding", "1")];

/// What the device of a pod with hostPorts is set to besides: the node reaches them
/// by 127.0.0.1, with that as the source until the packet leaves by the device. What
/// pods send to such addresses is dropped by the programs.
pub const LOOPBACK: (&str, &str) = ("route_localnet", "1");

/// The switch of all of the node's forwarding of IPv6. Set, it makes the kernel forget the
/// default routes that routers told it of, except by devices with [`ACCEPT_RA`] of 2.
pub const FORWARDING: &str = "ipv6/conf/all/forwarding";

/// Whether routers' advertisements are heeded: 0 never, 1 unless the device forwards, 2
/// always.
pub const ACCEPT_RA: &str = "accept_ra";

/// What every device that pods' IPv6 packets come by is set to, below `ipv6/conf`: hosts
/// are configured to have no IPv6 on new devices, or on any.
pub const ENABLED: (&str, &str) = ("disable_ipv6", "0");

/// What the device in a pod with an IPv6 address is set to: no other device has its
/// addresses, and it follows no router.
const IN_POD: [(&str, &str); 3] = [(ACCEPT_RA, "0"), ("accept_dad", "0"), ENABLED];

/// Those that set others' values: they are restored before these.
const SWITCHES: [&str; 2] = ["ipv4/ip_forward", FORWARDING];

/// `/proc/sys/net` shows the namespace of whoever opens it; a container needs
/// the host's mount of it only because its own is read-only.
#[derive(Debug)]
pub struct Sysctls {
    root: PathBuf,
    /// Where old values are kept.
    memory: PathBuf,
    old: BTreeMap<String, String>,
}

impl Sysctls {
    /// `root` is a writable `/proc/sys/net`, `memory` the file of old values.
    pub fn open(root: &Path, memory: &Path) -> Self {
        let old = fs::read(memory)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            root: root.to_owned(),
            memory: memory.to_owned(),
            old,
        }
    }

    /// Sets `key` (a path below `net`) unless it has that value already.
    /// Returns whether it had to be changed. With `remember` the value found is
    /// put back at clean-up.
    pub fn set(&mut self, key: &str, value: &str, remember: bool) -> io::Result<bool> {
        let path = self.root.join(key);
        let found = fs::read_to_string(&path)?.trim().to_owned();
        if found == value {
            return Ok(false);
        }
        if remember && !self.old.contains_key(key) {
            self.old.insert(key.to_owned(), found);
            self.save()?;
        }
        fs::write(path, value)?;
        Ok(true)
    }

    /// What a key is set to; `None`: there is none.
    pub fn get(&self, key: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.root.join(key)) {
            Ok(found) => Ok(Some(found.trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether clean-up puts a value of the key back.
    pub fn remembers(&self, key: &str) -> bool {
        self.old.contains_key(key)
    }

    /// Whether the kernel has IPv6.
    pub fn has_ipv6(&self) -> bool {
        has_ipv6(&self.root)
    }

    /// Puts all old values back and forgets them.
    pub fn restore(&mut self) -> io::Result<()> {
        let switch = |(key, _): &(&String, _)| SWITCHES.contains(&key.as_str());
        let (switches, others): (Vec<_>, Vec<_>) = self.old.iter().partition(switch);
        for (key, value) in switches.into_iter().chain(others) {
            match fs::write(self.root.join(key), value) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.old.clear();
        match fs::remove_file(&self.memory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn save(&self) -> io::Result<()> {
        let bytes = serde_json::to_vec(&self.old)?;
        veer_agent_api::file::write(&self.memory, &bytes)
    }
}

fn has_ipv6(root: &Path) -> bool {
    root.join("ipv6").exists()
}

/// Sets [`DEVICE`], [`LOOPBACK`] for one with hostPorts and [`ENABLED`] for one with IPv6,
/// directly: for devices that go with their pod.
pub fn set_device(root: &Path, device: &str, host_ports: bool, ipv6: bool) -> io::Result<()> {
    let v4 = DEVICE.into_iter().chain(host_ports.then_some(LOOPBACK));
    set_all(root, "ipv4", device, v4)?;
    if ipv6 {
        set_all(root, "ipv6", device, [ENABLED])?;
    }
    Ok(())
}

/// Has a pod's device, and its `lo`, take IPv6 addresses. Called inside its namespace.
pub fn enable_in_pod(root: &Path, device: &str) -> io::Result<()> {
    if !has_ipv6(root) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, Error::NoIpv6));
    }
    set_all(root, "ipv6", device, IN_POD)?;
    set_all(root, "ipv6", "lo", [ENABLED])
}

fn set_all<'a>(
    root: &Path,
    family: &str,
    device: &str,
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> io::Result<()> {
    for (key, value) in settings {
        let path = root.join(family).join("conf").join(device).join(key);
        if fs::read_to_string(&path)?.trim() != value {
            fs::write(path, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_first_is_put_back_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rp_filter"), "1\n").unwrap();
        let memory = dir.path().join("sysctl.json");
        let mut first = Sysctls::open(dir.path(), &memory);
        assert!(first.set("rp_filter", "2", true).unwrap());
        assert!(!first.set("rp_filter", "2", true).unwrap());
        fs::write(dir.path().join("rp_filter"), "0\n").unwrap();
        let mut second = Sysctls::open(dir.path(), &memory);
        assert!(second.set("rp_filter", "2", true).unwrap());
        second.restore().unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("rp_filter")).unwrap(),
            "1"
        );
        assert!(!memory.exists());
    }
}
