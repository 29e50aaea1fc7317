//! Reading what tcpdump writes: the classic pcap file format
//! (draft-ietf-opsawg-pcap), also while it is being written.
//!
//! Invariant: no input makes this panic; a record that is not complete yet is
//! left for the next reading.

use std::time::Duration;

use crate::{
    decode::Packet,
    error::{Error, Result},
};

/// Octets of the file header.
const FILE_HEADER: usize = 24;
/// Octets before each packet.
const RECORD_HEADER: usize = 16;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// A packet as it was on the device.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Since the epoch.
    pub time: Duration,
    /// The frame, possibly cut.
    pub bytes: Vec<u8>,
    /// Its length on the device, in octets.
    pub length: u32,
    /// What it is.
    pub packet: Packet,
}

/// The packets of a capture file, in order.
///
/// # Errors
/// It is no capture file of Ethernet frames. An empty or short file (tcpdump
/// has not written its header yet) has no packets.
pub fn parse(file: &[u8]) -> Result<Vec<Captured>> {
    let Some(header) = file.get(..FILE_HEADER) else {
        return Ok(Vec::new());
    };
    let order = match word(header, 0, Order::Little) {
        Some(0xa1b2_c3d4) => (Order::Little, 1_000),
        Some(0xa1b2_3c4d) => (Order::Little, 1),
        Some(0xd4c3_b2a1) => (Order::Big, 1_000),
        Some(0x4d3c_b2a1) => (Order::Big, 1),
        _ => {
            return Err(Error::State(
                "no capture file: its magic number is unknown".to_owned(),
            ));
        }
    };
    let (order, nanoseconds) = order;
    let link = word(header, 20, order).unwrap_or_default();
    if link != ETHERNET {
        return Err(Error::State(format!(
            "a capture of link type {link}; only Ethernet is read"
        )));
    }
    let mut packets = Vec::new();
    let mut rest = &file[FILE_HEADER..];
    while let Some((captured, left)) = record(rest, order, nanoseconds) {
        packets.push(captured);
        rest = left;
    }
    Ok(packets)
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

/// One record and what follows it; `None` if it is not whole.
fn record(rest: &[u8], order: Order, nanoseconds: u32) -> Option<(Captured, &[u8])> {
    let seconds = word(rest, 0, order)?;
    let fraction = word(rest, 4, order)?;
    let kept = usize::try_from(word(rest, 8, order)?).ok()?;
    let length = word(rest, 12, order)?;
    let end = RECORD_HEADER.checked_add(kept)?;
    let bytes = rest.get(RECORD_HEADER..end)?.to_vec();
    let time = Duration::from_secs(u64::from(seconds))
        + Duration::from_nanos(u64::from(fraction) * u64::from(nanoseconds));
    let packet = Packet::decode(&bytes);
    Some((
        Captured {
            time,
            bytes,
            length,
            packet,
        },
        rest.get(end..)?,
    ))
}

fn word(bytes: &[u8], at: usize, order: Order) -> Option<u32> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(match order {
        Order::Little => u32::from_le_bytes(four),
        Order::Big => u32::from_be_bytes(four),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(packets: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
            bytes.extend(word.to_le_bytes());
        }
        for packet in packets {
            let length = u32::try_from(packet.len()).expect("short");
            for word in [7, 500_000, length, length] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(*packet);
        }
        bytes
    }

    #[test]
    fn a_file_that_is_being_written_gives_its_whole_records() {
        let whole = file(&[&[1; 20], &[2; 30]]);
        for cut in 0..whole.len() {
            let packets = parse(&whole[..cut]).expect("a capture");
            let expected = usize::from(cut >= 24 + 16 + 20);
            assert_eq!(packets.len(), expected, "cut at {cut}");
        }
        let packets = parse(&whole).expect("a capture");
        assert_eq!(packets.len(), 2);
        assert_eq!(packets[1].time, Duration::from_millis(7_500));
        assert_eq!(packets[1].bytes, [2; 30]);
    }

    #[test]
    fn other_files_and_links_are_refused() {
        let mut loopback = file(&[]);
        loopback[20] = 113;
        assert!(
            parse(&loopback)
                .expect_err("no Ethernet")
                .to_string()
                .contains("113")
        );
        assert!(parse(&[0; 24]).is_err());
    }
}
