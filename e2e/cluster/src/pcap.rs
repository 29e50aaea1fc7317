//! What tcpdump writes, read also while it is being written.
//!
//! Invariant: a record that is not complete yet is left for the next reading.

use std::time::Duration;

use pcap_file::{DataLink, PcapError, pcap::PcapParser};

use crate::{
    decode::Packet,
    error::{Error, Result},
};

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
    let (mut rest, parser) = match PcapParser::new(file) {
        Ok(opened) => opened,
        Err(PcapError::IncompleteBuffer) => return Ok(Vec::new()),
        Err(error) => return Err(Error::Capture(error)),
    };
    let link = parser.header().datalink;
    if link != DataLink::ETHERNET {
        return Err(Error::State(format!(
            "a capture of link type {}; only Ethernet is read",
            u32::from(link)
        )));
    }
    let mut packets = Vec::new();
    loop {
        match parser.next_packet(rest) {
            Ok((left, record)) => {
                packets.push(Captured {
                    time: record.timestamp,
                    length: record.orig_len,
                    packet: Packet::decode(&record.data),
                    bytes: record.data.into_owned(),
                });
                rest = left;
            }
            Err(PcapError::IncompleteBuffer) => return Ok(packets),
            Err(error) => return Err(Error::Capture(error)),
        }
    }
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
