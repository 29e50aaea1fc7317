//! Where decisions go: lines of text or JSON, or a capture.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::{
    row::{Decision, Row},
    text,
};
use crate::{
    arguments::Format,
    output::{Next, printed},
};

/// Where decisions go.
pub(crate) enum Sink {
    /// Lines on standard output.
    Lines {
        to: BufWriter<io::Stdout>,
        /// JSON or text.
        json: bool,
        /// More lines of text.
        verbose: bool,
    },
    /// A capture.
    Capture(Capture<BufWriter<File>>),
}

impl Sink {
    /// A sink for these options.
    pub(crate) fn open(pcap: Option<&Path>, output: Format, verbose: bool) -> anyhow::Result<Self> {
        if let Some(path) = pcap {
            let file = File::create(path)
                .with_context(|| format!("cannot write the capture {}", path.display()))?;
            return Ok(Self::Capture(Capture::new(BufWriter::new(file))?));
        }
        anyhow::ensure!(
            output != Format::Yaml,
            "veer monitor prints text, or JSON lines (-o json)"
        );
        Ok(Self::Lines {
            to: BufWriter::new(io::stdout()),
            json: output == Format::Json,
            verbose,
        })
    }

    /// Takes a row.
    pub(crate) fn put(&mut self, row: &Row) -> anyhow::Result<Next> {
        match self {
            Self::Lines { to, json: true, .. } => {
                let line = serde_json::to_string(row).context("cannot write JSON")?;
                printed(writeln!(to, "{line}"))
            }
            Self::Lines { to, verbose, .. } => match row {
                Row::Decision(decision) => {
                    printed(writeln!(to, "{}", text::decision(decision, *verbose)))
                }
                // Not among the lines that others read.
                Row::Started { .. } | Row::Lost { .. } | Row::Unknown => {
                    aside(row);
                    Ok(Next::Wanted)
                }
            },
            Self::Capture(capture) => {
                aside(row);
                capture.put(row)?;
                Ok(Next::Wanted)
            }
        }
    }

    /// Writes what is not written yet.
    pub(crate) fn flush(&mut self) -> anyhow::Result<Next> {
        match self {
            Self::Lines { to, .. } => printed(to.flush()),
            Self::Capture(capture) => {
                capture
                    .writer
                    .get_mut()
                    .flush()
                    .context("cannot write the capture")?;
                Ok(Next::Wanted)
            }
        }
    }
}

/// Says what is no decision.
fn aside(row: &Row) {
    match row {
        Row::Started { node } => warn(&format!("listening on {node}")),
        Row::Lost { node, count } => warn(&text::lost(node, *count)),
        Row::Decision(_) | Row::Unknown => {}
    }
}

/// Says something beside the decisions.
pub(super) fn warn(line: &str) {
    // The last way to say something; a failure here cannot be reported.
    let _ = writeln!(io::stderr().lock(), "veer: {line}");
}

/// A capture in pcapng (draft-ietf-opsawg-pcapng): an interface per node and device, and
/// the decision as comment of each packet.
pub(crate) struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: HashMap<String, u32>,
    /// Decisions lost before the next packet.
    lost: u64,
}

/// `if_tsresol` of nanoseconds.
const NANOSECONDS: u8 = 9;
/// Of a frame that is not captured whole.
const SNAP_LENGTH: u32 = 65_535;

impl<W: Write> Capture<W> {
    fn new(to: W) -> anyhow::Result<Self> {
        let writer = PcapNgWriter::new(to).context("cannot write the capture")?;
        Ok(Self {
            writer,
            interfaces: HashMap::new(),
            lost: 0,
        })
    }

    fn put(&mut self, row: &Row) -> anyhow::Result<()> {
        match row {
            Row::Lost { count, .. } => {
                self.lost += count;
                Ok(())
            }
            Row::Decision(decision) => self.packet(decision),
            Row::Started { .. } | Row::Unknown => Ok(()),
        }
    }

    fn packet(&mut self, decision: &Decision) -> anyhow::Result<()> {
        let time: jiff::Timestamp = decision.time.parse().context("a time that is none")?;
        let interface_id = self.interface(decision)?;
        let mut options = vec![EnhancedPacketOption::Comment(Cow::Owned(text::decision(
            decision, true,
        )))];
        if self.lost != 0 {
            options.push(EnhancedPacketOption::DropCount(self.lost));
            self.lost = 0;
        }
        let since = u64::try_from(time.as_nanosecond()).context("a time before 1970")?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(since),
            original_len: decision.bytes,
            data: Cow::Borrowed(&decision.frame),
            options,
        };
        let written = self.writer.write_pcapng_block(block);
        written.context("cannot write the capture")?;
        Ok(())
    }

    fn interface(&mut self, decision: &Decision) -> anyhow::Result<u32> {
        let name = format!("{}:{}", decision.node, decision.device);
        if let Some(id) = self.interfaces.get(&name) {
            return Ok(*id);
        }
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAP_LENGTH,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name.clone())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        let written = self.writer.write_pcapng_block(block);
        written.context("cannot write the capture")?;
        let id = u32::try_from(self.interfaces.len()).context("too many devices")?;
        self.interfaces.insert(name, id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn a_capture_holds_frames_times_and_decisions_and_counts_what_was_lost() {
        let decision = |device: &str| {
            Row::Decision(Box::new(Decision {
                time: "2026-11-30T12:00:01.123456789Z".into(),
                node: "worker-1".into(),
                device: device.into(),
                delivery: "dropped: spoofed-address".into(),
                bytes: 98,
                frame: vec![1, 2, 255],
                ..Decision::default()
            }))
        };
        let mut capture = Capture::new(Vec::new()).unwrap();
        capture.put(&decision("veer1")).unwrap();
        let lost = Row::Lost {
            node: "worker-1".into(),
            count: 7,
        };
        capture.put(&lost).unwrap();
        capture.put(&decision("eth0")).unwrap();
        capture.put(&decision("veer1")).unwrap();
        let file = capture.writer.into_inner();
        let mut reader = PcapNgReader::new(&*file).unwrap();
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.unwrap() {
                packets.push(packet.into_owned());
            }
        }
        let interfaces: Vec<u32> = packets.iter().map(|p| p.interface_id).collect();
        assert_eq!(interfaces, [0, 1, 0]);
        for packet in &packets {
            assert_eq!(packet.timestamp.as_nanos(), 1_796_040_001_123_456_789);
            assert_eq!((&*packet.data, packet.original_len), (&[1, 2, 255][..], 98));
            let says = |option: &EnhancedPacketOption<'_>| matches!(option, EnhancedPacketOption::Comment(text) if text.contains("dropped: spoofed-address"));
            assert!(packet.options.iter().any(says), "{packet:?}");
        }
        let lost = |i: usize| {
            let options = &packets[i].options;
            options.contains(&EnhancedPacketOption::DropCount(7))
        };
        assert_eq!([lost(0), lost(1), lost(2)], [false, true, false]);
    }
}
