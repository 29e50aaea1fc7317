//! What goes over the wire: ports, datagrams, the head of a connection, and
//! the content of a bulk stream. Integers are in network byte order.

/// UDP port of datagrams.
pub const DATAGRAMS: u16 = 7101;
/// TCP port of echoes.
pub const ECHO: u16 = 7102;
/// TCP port of bulk streams.
pub const BULK: u16 = 7103;

/// Octets of a message on an echo connection, and of the first message on
/// every connection.
pub const MESSAGE: usize = 16;
/// Octets of a datagram's head.
pub const HEAD: usize = 20;

/// First octets of everything, so that a stray packet is no traffic.
const MAGIC: [u8; 3] = *b"vld";

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// "Are you there?" It carries the rate in the number's place.
    Hello,
    /// "I am."
    Welcome,
    /// One of the numbered.
    Data,
}

impl Purpose {
    fn octet(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Welcome => 2,
            Self::Data => 3,
        }
    }

    fn of(octet: u8) -> Option<Self> {
        [Self::Hello, Self::Welcome, Self::Data]
            .into_iter()
            .find(|p| p.octet() == octet)
    }
}

/// A datagram's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub purpose: Purpose,
    /// Of which flow.
    pub flow: u32,
    /// Its number, from 0.
    pub number: u64,
    /// Length of the flow's datagrams in octets.
    pub size: u16,
}

impl Head {
    /// Writes it to the start of a datagram.
    pub fn write(self, datagram: &mut [u8]) {
        let mut head = [0; HEAD];
        head[..3].copy_from_slice(&MAGIC);
        head[3] = self.purpose.octet();
        head[4..8].copy_from_slice(&self.flow.to_be_bytes());
        head[8..16].copy_from_slice(&self.number.to_be_bytes());
        head[16..18].copy_from_slice(&self.size.to_be_bytes());
        if let Some(place) = datagram.get_mut(..HEAD) {
            place.copy_from_slice(&head);
        }
    }

    /// Reads it; `None` of what is no datagram of ours.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        if datagram.len() < HEAD || !datagram.starts_with(&MAGIC) {
            return None;
        }
        Some(Self {
            purpose: Purpose::of(datagram[3])?,
            flow: u32::from_be_bytes(datagram[4..8].try_into().ok()?),
            number: u64::from_be_bytes(datagram[8..16].try_into().ok()?),
            size: u16::from_be_bytes(datagram[16..18].try_into().ok()?),
        })
    }
}

/// A message on a connection: the first says flow and rate, those of an echo
/// say flow and number.
pub fn message(flow: u32, number: u64) -> [u8; MESSAGE] {
    let mut out = [0; MESSAGE];
    out[..3].copy_from_slice(&MAGIC);
    out[4..8].copy_from_slice(&flow.to_be_bytes());
    out[8..].copy_from_slice(&number.to_be_bytes());
    out
}

/// Flow and number of a message.
pub fn read_message(message: &[u8; MESSAGE]) -> Option<(u32, u64)> {
    if !message.starts_with(&MAGIC) {
        return None;
    }
    Some((
        u32::from_be_bytes(message[4..8].try_into().ok()?),
        u64::from_be_bytes(message[8..].try_into().ok()?),
    ))
}

/// The octet at `offset` of a flow's bulk stream. No two flows and no two
/// places of a stream look alike, so a piece that is missing, doubled or of
/// another flow is seen.
pub fn content(flow: u32, offset: u64) -> u8 {
    let word = (offset / 8 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(flow % 64)
        ^ u64::from(flow);
    word.to_be_bytes()[usize::try_from(offset % 8).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_says_what_was_written() {
        let head = Head {
            purpose: Purpose::Data,
            flow: 7,
            number: 1 << 40,
            size: 100,
        };
        let mut datagram = [0xff; 100];
        head.write(&mut datagram);
        assert_eq!(Head::read(&datagram), Some(head));
        assert_eq!(Head::read(&datagram[..HEAD - 1]), None);
        datagram[0] = 0;
        assert_eq!(Head::read(&datagram), None);
    }

    #[test]
    fn a_shifted_or_foreign_piece_of_a_stream_is_seen() {
        let piece = |flow, from: u64| {
            (from..from + 64)
                .map(|o| content(flow, o))
                .collect::<Vec<_>>()
        };
        assert_ne!(piece(1, 0), piece(1, 8));
        assert_ne!(piece(1, 0), piece(1, 1448));
        assert_ne!(piece(1, 0), piece(2, 0));
    }
}
