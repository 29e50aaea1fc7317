//! Decisions of other nodes, in the order of time: the same command in each agent's pod,
//! by `kubectl exec`.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{Options, Printer, row::Row, sink::warn};
use crate::{
    arguments::Arguments,
    output::Next,
    remote::{self, Agent},
};

/// How long a decision waits for earlier ones of other nodes.
const WAIT: Duration = Duration::from_millis(400);
/// How long one waits at most behind others: those of a node whose clock is behind, or
/// that is slow to tell.
const LONGEST: Duration = Duration::from_secs(2);
/// How many wait at most.
const MOST: usize = 16_384;
/// How often those that have waited are looked for.
const TICK: Duration = Duration::from_millis(50);
/// Rows on the way from all nodes at once.
const ON_THE_WAY: usize = 1024;

/// What comes from a node.
enum Said {
    Row(Row),
    /// Nothing more: why, if it says so.
    Ended(String),
}

/// The command in an agent's pod. It ends with its standard input.
struct Listening {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stdin.take();
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints the decisions of the node that is named, or of all.
pub(super) fn run(arguments: &Arguments, options: &Options) -> anyhow::Result<()> {
    let agents = remote::agents(arguments.node.as_deref(), arguments)?;
    let wait = if agents.len() > 1 {
        WAIT
    } else {
        Duration::ZERO
    };
    let (sender, said) = mpsc::sync_channel(ON_THE_WAY);
    let mut listening = Vec::new();
    for agent in &agents {
        listening.push(listen(agent, arguments, options, sender.clone())?);
    }
    drop(sender);
    let mut printer = Printer::open(arguments, options)?;
    let mut order = Order::default();
    loop {
        let ended = match said.recv_timeout(TICK) {
            Ok(first) => {
                let now = Instant::now();
                for said in [first].into_iter().chain(said.try_iter().take(ON_THE_WAY)) {
                    match said {
                        Said::Row(row) => order.put(row, now),
                        Said::Ended(why) => warn(&why),
                    }
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        let wait = if ended { Duration::ZERO } else { wait };
        while let Some(row) = order.next(Instant::now(), wait) {
            if printer.put(&row)? == Next::Unwanted {
                return Ok(());
            }
        }
        if printer.flush()? == Next::Unwanted {
            return Ok(());
        }
        if ended {
            bail!("no node is listened to any more");
        }
    }
}

/// Starts the command in an agent's pod, and a thread that reads what it prints.
fn listen(
    agent: &Agent,
    arguments: &Arguments,
    options: &Options,
    sender: SyncSender<Said>,
) -> anyhow::Result<Listening> {
    let mut child = remote::command(agent, arguments, &["--stdin"])
        .args(["monitor", "--output", "json", "--until-stdin-ends"])
        .args(options.words())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(remote::NO_KUBECTL)?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().context("kubectl has no output")?;
    let node = agent.node.clone();
    let read = move || {
        for line in BufReader::new(stdout).lines() {
            let row = line
                .map_err(|e| e.to_string())
                .and_then(|line| serde_json::from_str(&line).map_err(|e| e.to_string()));
            let said = match row {
                Ok(row) => Said::Row(row),
                Err(why) => {
                    Said::Ended(format!("{node}: what it prints is not understood ({why})"))
                }
            };
            let ends = matches!(said, Said::Ended(_));
            if sender.send(said).is_err() || ends {
                return;
            }
        }
        // Nobody to tell where the reader is gone.
        let _ = sender.send(Said::Ended(format!("{node}: the command there has ended")));
    };
    let started = thread::Builder::new().spawn(read);
    let listening = Listening { child, stdin };
    started.context("cannot start a thread")?;
    Ok(listening)
}

/// Rows of several nodes on their way into one order: by time, and of one time in the
/// order in which they came. What has no time goes first.
#[derive(Debug, Default)]
struct Order {
    waiting: BTreeMap<Place, (Row, Instant)>,
    /// Since when each waits, in the order in which they came; also of some that have
    /// gone.
    came: VecDeque<(Place, Instant)>,
    count: u64,
}

type Place = (String, u64);

impl Order {
    fn put(&mut self, row: Row, now: Instant) {
        let time = match &row {
            Row::Decision(decision) => decision.time.clone(),
            Row::Started { .. } | Row::Lost { .. } | Row::Unknown => String::new(),
        };
        self.count += 1;
        let place = (time, self.count);
        self.came.push_back((place.clone(), now));
        self.waiting.insert(place, (row, now));
    }

    /// The earliest row, if it has waited long enough for earlier ones, or another one too
    /// long behind it.
    fn next(&mut self, now: Instant, wait: Duration) -> Option<Row> {
        let (_, (_, since)) = self.waiting.first_key_value()?;
        let waited = |since: Instant| now.saturating_duration_since(since);
        let own = waited(*since) >= wait;
        while let Some((place, _)) = self.came.front()
            && !self.waiting.contains_key(place)
        {
            self.came.pop_front();
        }
        let longest = self.came.front().map(|(_, since)| waited(*since));
        let others = longest.is_some_and(|longest| longest >= LONGEST);
        if !own && !others && self.waiting.len() <= MOST {
            return None;
        }
        self.waiting.pop_first().map(|(_, (row, _))| row)
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Decision;
    use super::*;

    fn row(time: &str, node: &str) -> Row {
        Row::Decision(Box::new(Decision {
            time: time.into(),
            node: node.into(),
            ..Decision::default()
        }))
    }

    #[test]
    fn decisions_of_several_nodes_come_in_the_order_of_time() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut order = Order::default();
        order.put(row("12:00:02", "a"), after(0));
        order.put(row("12:00:04", "a"), after(100));
        assert_eq!(order.next(after(399), WAIT), None);
        order.put(row("12:00:01", "b"), after(399));
        // The earliest waits for its own time, and with it all behind it.
        assert_eq!(order.next(after(798), WAIT), None);
        for (time, node) in [("12:00:01", "b"), ("12:00:02", "a"), ("12:00:04", "a")] {
            assert_eq!(order.next(after(799), WAIT), Some(row(time, node)));
        }
        assert_eq!(order.next(after(9000), WAIT), None);
    }

    #[test]
    fn a_node_whose_clock_is_behind_holds_the_others_up_for_two_seconds() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut order = Order::default();
        order.put(row("12:00:00", "a"), after(0));
        // Always just come, and always the earliest.
        for ms in (0..2000).step_by(100) {
            order.put(row("11:00:00", "b"), after(ms));
            while let Some(next) = order.next(after(ms), WAIT) {
                assert_eq!(next, row("11:00:00", "b"));
            }
        }
        let left: Vec<Row> = std::iter::from_fn(|| order.next(after(2000), WAIT)).collect();
        assert_eq!(left.last(), Some(&row("12:00:00", "a")));
    }

    #[test]
    fn of_one_time_the_first_to_come_is_first_and_losses_go_before() {
        let now = Instant::now();
        let lost = Row::Lost {
            node: "a".into(),
            count: 3,
        };
        let mut order = Order::default();
        let rows = [row("1", "b"), row("1", "a"), lost.clone()];
        for row in &rows {
            order.put(row.clone(), now);
        }
        let next = |order: &mut Order| order.next(now, Duration::ZERO);
        assert_eq!(next(&mut order), Some(lost));
        assert_eq!(next(&mut order), Some(row("1", "b")));
        assert_eq!(next(&mut order), Some(row("1", "a")));
    }
}
