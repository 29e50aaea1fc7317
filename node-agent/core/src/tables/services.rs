//! The maps of Services.

use std::{collections::HashSet, net::SocketAddr};

use veer_bpf_common::{
    address::{FAMILY_V4, FAMILY_V6, to_ip},
    tables::{Backend, BackendKey, Frontend, Member, Service},
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
    /// after. If not everything can be written, what nothing leads to goes nevertheless: a
    /// full map takes rows again only when others have gone.
    pub fn apply_services(&mut self, step: &Step) -> Result<(), Error> {
        let written = self.write_services(step);
        let removed = self.remove_services(step, written.is_err());
        written.and(removed)
    }

    fn write_services(&mut self, step: &Step) -> Result<(), Error> {
        self.backends.write(step.backends.clone())?;
        self.members.write(step.members.clone())?;
        self.services.write(step.services.clone())
    }

    /// `failed`: not everything was written.
    fn remove_services(&mut self, step: &Step, failed: bool) -> Result<(), Error> {
        self.services.remove(step.gone_services.clone())?;
        let kept = if failed {
            self.led_to_before(&step.services)?
        } else {
            HashSet::new()
        };
        let members = step.gone_members.iter().copied();
        let members = members.filter(|member| !kept.contains(&member.service));
        self.members.remove(members.collect())?;
        let backends = step.gone_backends.iter().copied();
        let backends = backends.filter(|key| !kept.contains(&key.service));
        self.backends.remove(backends.collect())
    }

    /// The numbers to which frontends lead that do not have these rows yet.
    fn led_to_before(&self, wanted: &[(Frontend, Service)]) -> Result<HashSet<u32>, Error> {
        let mut numbers = HashSet::new();
        for (frontend, row) in wanted {
            let present = self.services.known(frontend)?;
            numbers.extend(present.filter(|p| p != row).map(|p| p.id));
        }
        Ok(numbers)
    }

    /// Whether a flow to a frontend may stay with a backend; `None`: there is no such
    /// frontend.
    pub fn leads_to(&self, frontend: &Frontend, backend: &Backend) -> Result<Option<bool>, Error> {
        let Some(service) = self.services.known(frontend)? else {
            return Ok(None);
        };
        let member = Member::new(service.id, backend.address, backend.port);
        Ok(Some(self.members.known(&member)?.is_some()))
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
        let step = Step {
            backends: backends.write,
            members: members.write,
            services: services.write,
            gone_services: services.remove,
            gone_members: members.remove,
            gone_datagrams: false,
            gone_backends: backends.remove,
            unserved: false,
        };
        // What the first try removed may be the room that the second needs.
        self.apply_services(&step)
            .or_else(|_| self.apply_services(&step))
    }
}
