//! Decisions of this node's programs, from its agent.

use std::{io, time::Duration};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use veer_agent_api::{
    MonitorStart, Request, client,
    packet::Packet,
    stream::{self, Frame},
};
use veer_bpf_common::{LAYOUT_VERSION, tables::Record};

use super::{
    Options, Printer,
    names::Names,
    row::{Decision, Row, ends_before},
    sink::warn,
};
use crate::{DEADLINE, arguments::Arguments, explain, output::Next, remote::end_with_stdin};

/// Prints this node's decisions.
pub(super) fn run(arguments: &Arguments, options: &Options) -> anyhow::Result<()> {
    let listen = options.listen();
    let request = Request::Monitor {
        verdicts: listen.verdicts,
        reasons: listen.reasons,
    };
    let opened = client::open::<MonitorStart>(&arguments.socket, &request, DEADLINE);
    let (start, mut stream) = opened.map_err(|error| explain(arguments, error))?;
    ensure!(
        (start.layout, start.event_bytes) == (LAYOUT_VERSION, Record::SIZE),
        "the agent is of another version than this command: name the node (veer --node {} monitor), \
         and the command in the agent's pod is used",
        start.node
    );
    // Not before there is something to write: it may replace an earlier capture.
    let mut printer = Printer::open(arguments, options)?;
    if options.until_stdin_ends {
        end_with_stdin()?;
    }
    let ask = |request: &Request| crate::ask(arguments, request);
    let mut names = Names::new(start.node.clone());
    let mut refresh = {
        let mut warned = false;
        move |names: &mut Names| {
            names.refresh(&ask).unwrap_or_else(|error| {
                if !std::mem::replace(&mut warned, true) {
                    warn(&format!("some names are missing: {error:#}"));
                }
                false
            })
        }
    };
    refresh(&mut names);
    let node = || start.node.clone();
    printer.put(&Row::Started { node: node() })?;
    printer.flush()?;
    loop {
        let frame = match stream::read(&mut stream) {
            Ok(frame) => frame,
            // It was killed.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error).context("the agent's stream is not understood"),
        };
        let Some(frame) = frame else {
            bail!("the agent on {} has ended; ask again", node());
        };
        let rows = match frame {
            Frame::Lost(count) => vec![Row::Lost {
                node: node(),
                count,
            }],
            Frame::Events(bytes) => {
                let records = records(&bytes, options);
                refresh(&mut names);
                let rows = rows(&records, options, &mut names);
                if refresh(&mut names) {
                    self::rows(&records, options, &mut names)
                } else {
                    rows
                }
            }
        };
        for row in &rows {
            if printer.put(row)? == Next::Unwanted {
                return Ok(());
            }
        }
        if printer.flush()? == Next::Unwanted {
            return Ok(());
        }
    }
}

/// Records of a frame whose packets are wanted.
fn records(bytes: &[u8], options: &Options) -> Vec<(Record, Packet)> {
    let records = bytes.chunks(Record::SIZE).filter_map(Record::from_bytes);
    records
        .map(|record| (record, Packet::of(record.event.frame())))
        .filter(|(record, packet)| {
            let before = record.before().map(ends_before);
            options.wants_packet(packet, before.as_ref())
        })
        .collect()
}

fn rows(records: &[(Record, Packet)], options: &Options, names: &mut Names) -> Vec<Row> {
    let zero = clock_zero();
    let row = |(record, packet): &(Record, Packet)| {
        let at = i128::from(record.event.at);
        let time = Timestamp::from_nanosecond(zero + at).unwrap_or_default();
        // Nine digits always, so that times sort as text.
        let decision = Decision::of(record, packet.clone(), format!("{time:.9}"), names);
        let wanted = options.wants(&decision);
        wanted.then(|| Row::Decision(Box::new(decision)))
    };
    records.iter().filter_map(row).collect()
}

/// When the clock of events (`CLOCK_MONOTONIC`) had zero, in nanoseconds since 1970, by
/// the wall's clock as it is set now. It may be set anew at any time.
fn clock_zero() -> i128 {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC);
    let monotonic = monotonic.map_or(Duration::ZERO, Duration::from);
    Timestamp::now().as_nanosecond() - i128::try_from(monotonic.as_nanos()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;

    #[test]
    fn only_whole_records_of_wanted_packets_are_taken_out_of_a_frame() {
        let mut record = Record::from_bytes(&[0; Record::SIZE]).unwrap();
        let mut bytes: Vec<u8> = Vec::new();
        for (number, ether_type) in [(1, [0x08, 0x06]), (2, [0x88, 0xcc]), (3, [0x08, 0x06])] {
            record.event.length = number;
            record.event.captured = 14;
            record.event.head[12..14].copy_from_slice(&ether_type);
            bytes.extend(record.as_bytes());
        }
        bytes.extend([0; Record::SIZE - 1]);
        let lengths = |options: &Options| -> Vec<u32> {
            let taken = records(&bytes, options);
            taken.iter().map(|(r, _)| r.event.length).collect()
        };
        assert_eq!(lengths(&Options::default()), [1, 2, 3]);
        let filter = Filter {
            protocol: vec!["0x88cc".into()],
            ..Filter::default()
        };
        let options = Options {
            filter,
            ..Options::default()
        };
        assert_eq!(lengths(&options), [2]);
    }
}
