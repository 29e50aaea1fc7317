//! Decisions of this node's programs, from its agent.

use std::{io::Read as _, thread};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use veer_agent_api::{
    MonitorStart, Request, client,
    stream::{self, Frame},
};
use veer_bpf_common::{
    LAYOUT_VERSION,
    outcome::{DropReason, Verdict},
    tables::{Event, Listen},
};

use super::{
    Options, Printer,
    names::Names,
    row::{Decision, Row},
    sink::Next,
};
use crate::{DEADLINE, arguments::Arguments, explain};

/// Prints this node's decisions.
pub(super) fn run(
    arguments: &Arguments,
    options: &Options,
    mut printer: Printer,
) -> anyhow::Result<()> {
    let listen = options.listen();
    let request = Request::Monitor {
        verdicts: listen.verdicts,
        reasons: listen.reasons,
    };
    let opened = client::open::<MonitorStart>(&arguments.socket, &request, DEADLINE);
    let (start, mut stream) = opened.map_err(|error| explain(arguments, error))?;
    ensure!(
        (start.layout, start.event_bytes) == (LAYOUT_VERSION, Event::SIZE),
        "the agent is of another version than this command: name the node (veer --node {} monitor), \
         and the command in the agent's pod is used",
        start.node
    );
    if options.until_stdin_ends {
        end_with_stdin()?;
    }
    let ask = |request: &Request| crate::ask(arguments, request);
    let mut names = Names::new(start.node.clone());
    loop {
        let frame = stream::read(&mut stream).context("the agent's stream is not understood")?;
        let Some(frame) = frame else {
            bail!("the agent on {} has ended; ask again", start.node);
        };
        let rows = match frame {
            Frame::Lost(count) => vec![Row::Lost {
                node: start.node.clone(),
                count,
            }],
            Frame::Events(bytes) => {
                let events = events(&bytes, &listen);
                names.refresh(&ask)?;
                let mut rows = rows(&events, start.clock_zero_ns, options, &mut names);
                if names.refresh(&ask)? {
                    rows = self::rows(&events, start.clock_zero_ns, options, &mut names);
                }
                rows
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

/// Events of a frame that this listener asked for: others may have asked for more.
fn events(bytes: &[u8], listen: &Listen) -> Vec<Event> {
    let wanted = |event: &Event| {
        let outcome = event.decision.outcome;
        let verdict = Verdict::ALL.iter().find(|v| **v as u32 == outcome);
        let reason = DropReason::ALL.iter().find(|r| **r as u32 == outcome);
        match (verdict, reason) {
            (Some(verdict), _) => listen.wants(Ok(*verdict)),
            (None, Some(reason)) => listen.wants(Err(*reason)),
            (None, None) => true,
        }
    };
    let events = bytes.chunks(Event::SIZE).filter_map(Event::from_bytes);
    events.filter(wanted).collect()
}

fn rows(events: &[Event], zero: i64, options: &Options, names: &mut Names) -> Vec<Row> {
    let row = |event: &Event| {
        let at = i128::from(zero) + i128::from(event.at);
        let time = Timestamp::from_nanosecond(at).unwrap_or_default();
        // Nine digits always, so that times sort as text.
        let decision = Decision::of(event, format!("{time:.9}"), names);
        let wanted = options.wants(&decision);
        wanted.then(|| Row::Decision(Box::new(decision)))
    };
    events.iter().filter_map(row).collect()
}

/// Ends the process when nobody holds its standard input any more. What `kubectl exec`
/// started is not ended with it, and would listen on where nothing is to be told.
fn end_with_stdin() -> anyhow::Result<()> {
    let wait = || {
        let mut rest = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut rest).is_ok_and(|read| read != 0) {}
        std::process::exit(0);
    };
    thread::Builder::new()
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_events_that_were_asked_for_are_taken_out_of_a_frame() {
        let event = |outcome: u32| {
            let mut event = Event::from_bytes(&[0; Event::SIZE]).unwrap();
            event.decision.outcome = outcome;
            event
        };
        let outcomes = [
            Verdict::Deliver as u32,
            DropReason::Malformed as u32,
            Verdict::Overlay as u32,
            // Of a later version.
            60,
        ];
        let mut bytes: Vec<u8> = Vec::new();
        for outcome in outcomes {
            bytes.extend(event(outcome).as_bytes());
        }
        bytes.extend([0; Event::SIZE - 1]);
        let mut listen = Listen::default();
        listen.add_verdict(Verdict::Overlay);
        listen.add_reason(DropReason::Malformed);
        let taken = events(&bytes, &listen);
        let taken: Vec<u32> = taken.iter().map(|e| e.decision.outcome).collect();
        assert_eq!(taken, [outcomes[1], outcomes[2], outcomes[3]]);
    }
}
