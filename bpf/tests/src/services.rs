//! Services: their rows in the maps, packets to their frontends, and what tests ask of
//! translated packets and of their flows' entries.

use crate::{
    datapath::{Context, Datapath, Ran},
    family::Family,
    packet::{Headers, Packet, sum},
    world::{
        self, A, A_IFINDEX, A_MAC, A_NODE_MAC, B, B_IDENTITY, B_MAC, B_NODE_MAC, ID_2, from_a,
        headers, interface, name, octets_v6, remote,
    },
};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};
use veer_bpf_common::{
    outcome::{FIRST_REASON, Program},
    tables::{
        Affinities, Backend, BackendKey, Backends, End, FORM_NATIVE, FlowEntry, FlowKey, Flows,
        Frontend, Interface, Member, Members, Service, Services, Tuple,
    },
};
use veer_bpf_net::ip::{TCP, UDP};

/// A Service's address, in nobody's prefix.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The port of [`serve`]'s frontends.
pub const VIP_PORT: u16 = 53;
/// The port of their clients in [`ask`].
pub const CLIENT_PORT: u16 = 1111;
/// The port of their backends.
pub const BACKEND_PORT: u16 = 2222;

/// An address and a port.
pub type Socket = (IpAddr, u16);

impl Datapath {
    /// Makes a frontend (address, port, protocol) lead to this version of Service `id`,
    /// which has these backends. `affinity`: seconds; 0: none. What were members of
    /// it before are still.
    pub fn set_service(
        &mut self,
        frontend: (IpAddr, u16, u8),
        id: u32,
        version: u32,
        backends: &[Socket],
        affinity: u32,
    ) -> Result<()> {
        for (slot, socket) in (0..).zip(backends) {
            let backend = Backend::at((*socket).into());
            let key = BackendKey {
                service: id,
                version,
                slot,
            };
            self.hash::<Backends>()?.insert(key, backend, 0)?;
            self.set_member(id, *socket, Members::CHOSEN)?;
        }
        let service = Service {
            id,
            version,
            backends: backends.len() as u32,
            affinity,
        };
        Ok(self.hash::<Services>()?.insert(
            Frontend::new(frontend.0, frontend.1, frontend.2),
            service,
            0,
        )?)
    }

    /// Removes a frontend (address, port, protocol).
    pub fn remove_service(&mut self, frontend: (IpAddr, u16, u8)) -> Result<()> {
        Ok(self
            .hash::<Services>()?
            .remove(&Frontend::new(frontend.0, frontend.1, frontend.2))?)
    }

    /// Says what a backend of Service `id` is, as values of [`Members`] say it.
    pub fn set_member(&mut self, id: u32, socket: Socket, value: u32) -> Result<()> {
        let backend = Backend::at(socket.into());
        let member = Member::new(id, backend.address, backend.port);
        Ok(self.hash::<Members>()?.insert(member, value, 0)?)
    }

    /// Makes a backend of Service `id` none.
    pub fn remove_member(&mut self, id: u32, socket: Socket) -> Result<()> {
        let backend = Backend::at(socket.into());
        let member = Member::new(id, backend.address, backend.port);
        Ok(self.hash::<Members>()?.remove(&member)?)
    }

    /// Makes all clients with affinity silent for so many more seconds.
    pub fn age_affinities(&mut self, seconds: u32) -> Result<()> {
        let mut clients = self.hash::<Affinities>()?;
        let all = clients.iter().collect::<Result<Vec<_>, _>>()?;
        for (client, mut last) in all {
            // Before the clock's zero, too, as far as the programs see.
            last.since = last.since.wrapping_sub(u64::from(seconds) * 1_000_000_000);
            clients.insert(client, last, 0)?;
        }
        Ok(())
    }

    /// Whose packets `pod_egress` sees from now on: those of B, or else of A.
    pub fn set_sender(&mut self, pod: Ipv4Addr) -> Result<()> {
        let sender = if pod == B {
            Interface {
                identity: B_IDENTITY.get(),
                endpoint_id: 2,
                mac: B_MAC,
                node_mac: B_NODE_MAC,
                v4: B.octets(),
                v6: octets_v6(B),
                ..Interface::default()
            }
        } else {
            interface()
        };
        self.set_interface(A_IFINDEX, sender)
    }

    /// Removes the entry of a flow that opens with this tuple, and nothing else.
    pub fn remove_flow(&mut self, tuple: &Tuple) -> Result<()> {
        Ok(self.hash::<Flows>()?.remove(&tuple.canonical().0)?)
    }

    /// All entries of flows.
    pub fn flows(&mut self) -> Result<Vec<(FlowKey, FlowEntry)>> {
        let flows = self.hash::<Flows>()?;
        Ok(flows.iter().collect::<Result<Vec<_>, _>>()?)
    }

    /// The two entries of a translated flow, found by what the client's packets say before
    /// and after: they must name each other.
    pub fn pair(&mut self, front: &Tuple, back: &Tuple) -> Result<(FlowEntry, FlowEntry)> {
        let one = self.flow(front)?.context("no entry with the frontend")?;
        let other = self.flow(back)?.context("no entry with the backend")?;
        let kind = FlowEntry::TRANSLATED | FlowEntry::FRONT;
        ensure!(
            one.state & kind == kind && other.state & kind == FlowEntry::TRANSLATED,
            "states {:#x} and {:#x}",
            one.state,
            other.state
        );
        let places = (one.place(), other.place());
        let partners = (other.partner(), one.partner());
        ensure!(
            places == partners,
            "places {places:?} and partners {partners:?}"
        );
        ensure!(
            one.partner_opener() == opener(back) && other.partner_opener() == opener(front),
            "one has the client at another end"
        );
        Ok((one, other))
    }

    /// Fails where an entry of a translated flow has no partner, or one that names another.
    pub fn check_partners(&mut self) -> Result<()> {
        let flows = self.flows()?;
        let by_place: BTreeMap<u32, FlowEntry> =
            flows.iter().map(|(_, e)| (e.place(), *e)).collect();
        for (_, entry) in flows.iter().filter(|(_, entry)| entry.is_translated()) {
            let is_paired = by_place.get(&entry.partner()).is_some_and(|partner| {
                partner.is_translated()
                    && partner.partner() == entry.place()
                    && (partner.state ^ entry.state) & FlowEntry::FRONT != 0
            });
            ensure!(is_paired, "an entry without its partner: {entry:?}");
        }
        Ok(())
    }
}

fn opener(tuple: &Tuple) -> End {
    tuple.canonical().1
}

/// The frontend of [`serve`] for this protocol.
pub fn frontend(family: Family, protocol: u8) -> (IpAddr, u16, u8) {
    (family.of(VIP), VIP_PORT, protocol)
}

/// A backend of [`serve`].
pub fn socket(family: Family, backend: Ipv4Addr) -> Socket {
    (family.of(backend), BACKEND_PORT)
}

/// Makes [`VIP_PORT`] of [`VIP`], UDP and TCP, lead to this version with [`BACKEND_PORT`]
/// of these. The numbers of the two Services are those of the protocols.
pub fn serve(
    node: &mut Datapath,
    family: Family,
    version: u32,
    backends: &[Ipv4Addr],
) -> Result<()> {
    let backends: Vec<Socket> = backends.iter().map(|b| socket(family, *b)).collect();
    for protocol in [UDP, TCP] {
        let to = frontend(family, protocol);
        node.set_service(to, protocol.into(), version, &backends, 0)?;
    }
    Ok(())
}

/// A packet of TCP with these flags, or of UDP.
pub fn packet(
    protocol: u8,
    source: (impl Into<IpAddr>, u16),
    destination: (impl Into<IpAddr>, u16),
    flags: u8,
) -> Packet {
    if protocol == TCP {
        Packet::tcp(source, destination, flags)
    } else {
        Packet::udp(source, destination)
    }
}

/// A's packet to the frontend.
pub fn ask(protocol: u8, flags: u8) -> Packet {
    packet(protocol, (A, CLIENT_PORT), (VIP, VIP_PORT), flags).macs(A_MAC, A_NODE_MAC)
}

/// What B answers to [`ask`], as it leaves B.
pub fn answer(protocol: u8, flags: u8) -> Packet {
    packet(protocol, (B, BACKEND_PORT), (A, CLIENT_PORT), flags).macs(B_MAC, B_NODE_MAC)
}

/// What the client's packets of [`ask`] say before translation.
pub fn front(family: Family, protocol: u8) -> Tuple {
    family.flow(protocol, (A, CLIENT_PORT), (VIP, VIP_PORT))
}

/// What they say after it, where `backend` serves.
pub fn back(family: Family, protocol: u8, backend: Ipv4Addr) -> Tuple {
    family.flow(protocol, (A, CLIENT_PORT), (backend, BACKEND_PORT))
}

/// Runs `pod_egress` on a packet.
pub fn egress(node: &mut Datapath, family: Family, packet: &Packet) -> Result<Ran> {
    node.run(
        Program::PodEgress,
        &packet.frame_of(family),
        Context::default(),
    )
}

/// The two ends that a frame says: source and destination.
pub fn ends(frame: &[u8]) -> [Socket; 2] {
    let seen = headers(frame);
    [
        (seen.source, seen.source_port),
        (seen.destination, seen.destination_port),
    ]
}

/// Whether the checksums of a frame are right: IPv4's, and that of TCP or UDP. IPv4 allows
/// UDP to have none.
pub fn checksums_ok(frame: &[u8]) -> bool {
    let Some(seen) = Headers::of(frame).filter(|seen| seen.checksum_ok) else {
        return false;
    };
    if seen.is_later_fragment() || !matches!(seen.protocol, TCP | UDP) {
        return true;
    }
    let segment = &frame[seen.transport_at..];
    if seen.protocol == UDP && matches!(segment.get(6..8), Some([0, 0])) {
        return seen.family() == Family::V4;
    }
    let mut summed = Vec::new();
    for address in [seen.source, seen.destination] {
        match address {
            IpAddr::V4(address) => summed.extend(address.octets()),
            IpAddr::V6(address) => summed.extend(address.octets()),
        }
    }
    summed.extend([0, seen.protocol]);
    summed.extend((segment.len() as u16).to_be_bytes());
    summed.extend(segment);
    sum(&summed) == 0xffff
}

/// Where a packet of A that goes on is sent.
pub fn sent_to(node: &mut Datapath, family: Family, packet: &Packet) -> Result<Socket> {
    let ran = egress(node, family, packet)?;
    ensure!(
        ran.decision.outcome < FIRST_REASON,
        "dropped: {}",
        name(ran.decision.outcome)
    );
    Ok(ends(&ran.packet)[1])
}

/// UDP from this port of A to the frontend.
pub fn udp_from(port: u16) -> Packet {
    from_a(Packet::udp((A, port), (VIP, VIP_PORT)))
}

/// A node with the programs that translate, and that deliver what a backend here, on
/// another node in the native form, or behind the stack answers.
pub fn answering() -> Result<Datapath> {
    let mut node = world::load(&[
        Program::PodEgress,
        Program::PodIngress,
        Program::UplinkIngress,
    ])?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    Ok(node)
}
