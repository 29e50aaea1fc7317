//! The maps of Services.

use std::net::SocketAddr;

use veer_bpf_common::{
    address::{FAMILY_V4, FAMILY_V6, to_ip},
    tables::{BackendKey, Frontend, Member},
};

use super::{Error, Key, Tables};
use crate::services::{ServiceRows, Step};

impl Key for Frontend {
    fn text(&self) -> String {
        let at = place(self.family, self.address, self.port);
        format!("{at} of protocol {}", self.protocol)
    }
}

impl Key for BackendKey {
    fn text(&self) -> String {
        let Self {
            service,
            version,
            slot,
        } = self;
        format!("{slot} of version {version} of Service {service}")
    }
}

impl Key for Member {
    fn text(&self) -> String {
        // Its family is that of the Service; of IPv4 the rest is zero.
        let family = if self.address[4..] == [0; 12] {
            FAMILY_V4
        } else {
            FAMILY_V6
        };
        let at = place(family, self.address, self.port);
        format!("{at} of Service {}", self.service)
    }
}

fn place(family: u8, address: [u8; 16], port: [u8; 2]) -> String {
    to_ip(family, address).map_or_else(
        || "of no family".into(),
        |ip| SocketAddr::new(ip, u16::from_be_bytes(port)).to_string(),
    )
}

impl Tables {
    /// Writes what changed of Services. What a frontend leads to comes before it, and goes
    /// after.
    pub fn apply_services(&mut self, step: &Step) -> Result<(), Error> {
        self.backends.write(step.backends.clone())?;
        let members = step.members.iter().map(|member| (*member, 1));
        self.members.write(members.collect())?;
        self.services.write(step.services.clone())?;
        self.services.remove(step.gone_services.clone())?;
        self.members.remove(step.gone_members.clone())?;
        self.backends.remove(step.gone_backends.clone())
    }

    /// Compares the maps of Services with all rows that they should hold, and writes what
    /// differs. `tell` is given each entry that somebody else changed. Only for when every
    /// Service and every slice is known: other rows go.
    pub fn converge_services(
        &mut self,
        wanted: &ServiceRows,
        mut tell: impl FnMut(String),
    ) -> Result<(), Error> {
        let (services, backends) = (self.services.read()?, self.backends.read()?);
        let members = self.members.read()?;
        let tell = &mut tell;
        let services = self.services.audit(services, &wanted.services, true, tell);
        let backends = self.backends.audit(backends, &wanted.backends, true, tell);
        let members = self.members.audit(members, &wanted.members, true, tell);

        self.backends.write(backends.write)?;
        self.members.write(members.write)?;
        self.services.write(services.write)?;
        self.services.remove(services.remove)?;
        self.members.remove(members.remove)?;
        self.backends.remove(backends.remove)
    }
}
