//! IPv6 extension headers (RFC 8200, section 4).

/// An extension header.
#[derive(Clone, Debug)]
pub struct Extension {
    /// The number by which the header before names it.
    pub number: u8,
    /// Its bytes; the first, which names what follows, is filled in later.
    pub bytes: Vec<u8>,
}

impl Extension {
    /// Options for every node on the way: nothing but padding, `units` of eight bytes.
    pub fn hop_by_hop(units: usize) -> Self {
        Self::options(0, units)
    }

    /// Options for the destination: nothing but padding, `units` of eight bytes.
    pub fn destination(units: usize) -> Self {
        Self::options(60, units)
    }

    /// A header with a length in units of eight bytes, the first one not counted.
    pub fn options(number: u8, units: usize) -> Self {
        let mut bytes = vec![0; units * 8];
        bytes[1] = (units - 1) as u8;
        // One option, PadN, is all there is to it.
        bytes[2] = 1;
        bytes[3] = (units * 8 - 4) as u8;
        Self { number, bytes }
    }

    /// A routing header of this type by way of one more address.
    pub fn routing(kind: u8, segments_left: u8) -> Self {
        let mut bytes = vec![0, 2, kind, segments_left, 0, 0, 0, 0];
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 1, 11]);
        Self { number: 43, bytes }
    }

    /// A fragment header: an offset in units of eight bytes, whether more follow, and
    /// the datagram.
    pub fn fragment(offset: u16, more: bool, identification: u32) -> Self {
        let mut bytes = vec![0, 0];
        bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
        bytes.extend(identification.to_be_bytes());
        Self { number: 44, bytes }
    }

    /// An authentication header without a value to check: twelve bytes, and four more
    /// that keep it aligned.
    pub fn authentication() -> Self {
        let mut bytes = vec![0; 16];
        bytes[1] = 2;
        Self { number: 51, bytes }
    }

    /// One of every kind that has another header behind it, by name.
    pub fn all() -> [(&'static str, Self); 8] {
        [
            ("hop-by-hop options", Self::hop_by_hop(1)),
            ("routing", Self::routing(0, 1)),
            ("fragment", Self::fragment(0, false, 7)),
            ("authentication", Self::authentication()),
            ("destination options", Self::destination(2)),
            ("mobility", Self::options(135, 1)),
            ("HIP", Self::options(139, 1)),
            ("Shim6", Self::options(140, 1)),
        ]
    }
}
