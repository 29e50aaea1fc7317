//! Who listens to the programs' decisions, and what they are told.
//!
//! Programs write the ring only while somebody listens. It is read at short intervals:
//! waking the agent would cost a program more than the event. Each listener is told the
//! outcomes that it asked for, and filters further by itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc},
    time::timeout,
};
use veer_agent_api::stream;
use veer_agent_kernel::{
    clock,
    datapath::{Error, Ring},
    lock::Lock,
};
use veer_api_client::chain;
use veer_bpf_common::tables::{Listen, Record};

/// How often the ring is read.
const TICK: Duration = Duration::from_millis(10);
/// How often the programs are told that somebody still listens, and lost events are
/// counted.
const RENEW: Duration = Duration::from_secs(1);
/// Listeners at once.
const LISTENERS: usize = 16;
/// Batches that wait for a listener: two thirds of a second.
const WAITING: usize = 64;
/// How long a listener may take for what it is told before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// Records of a batch. More than the ring holds, so a tick leaves nothing.
const BATCH: usize = stream::MAX_FRAME / Record::SIZE;

/// What a listener is told at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// [`Record`]s one behind the other.
    pub(crate) events: Arc<[u8]>,
    /// How many were lost before these.
    pub(crate) lost: u64,
}

struct Listener {
    wanted: Listen,
    told: mpsc::Sender<Told>,
    /// Lost since it was last told.
    lost: u64,
}

impl Listener {
    fn wants_all(&self, all: &Listen) -> bool {
        (self.wanted.verdicts, self.wanted.reasons) == (all.verdicts, all.reasons)
    }

    /// Those of these events that it asked for.
    fn of(&self, events: &[u8]) -> Arc<[u8]> {
        let wanted = |bytes: &&[u8]| {
            let record = Record::from_bytes(bytes);
            record.is_some_and(|r| self.wanted.wants_number(r.event.decision.outcome))
        };
        let wanted: Vec<&[u8]> = events.chunks(Record::SIZE).filter(wanted).collect();
        wanted.concat().into()
    }
}

/// There are as many listeners as there may be.
#[derive(Debug, thiserror::Error)]
#[error("{LISTENERS} listen already: end one (veer monitor) and ask again")]
pub(crate) struct TooMany;

/// The listeners of this agent.
#[derive(Default)]
pub(crate) struct Monitor {
    listeners: Lock<Vec<Listener>>,
    came: Notify,
}

impl Monitor {
    /// Serves listeners from this ring until the process ends.
    pub(crate) fn start(ring: Ring) -> Arc<Self> {
        let monitor = Arc::<Self>::default();
        tokio::spawn(Arc::clone(&monitor).run(ring));
        monitor
    }

    /// A listener, who is told until the receiver is dropped.
    pub(crate) fn subscribe(&self, wanted: Listen) -> Result<mpsc::Receiver<Told>, TooMany> {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| !listener.told.is_closed());
        if listeners.len() >= LISTENERS {
            return Err(TooMany);
        }
        let (told, receiver) = mpsc::channel(WAITING);
        listeners.push(Listener {
            wanted,
            told,
            lost: 0,
        });
        self.came.notify_one();
        Ok(receiver)
    }

    /// What all listeners together want; `None`: there are none.
    fn wanted(&self) -> Option<Listen> {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| !listener.told.is_closed());
        let mut wanted = listeners.first()?.wanted;
        listeners.iter().for_each(|l| wanted.join(&l.wanted));
        Some(wanted)
    }

    /// Tells each listener what it asked for of these events, of which `all` is the union;
    /// one who is behind loses them. `lost`: how many the ring lost before, whoever had
    /// asked for them.
    fn tell(&self, events: &[u8], all: &Listen, lost: u64) {
        let shared: Arc<[u8]> = events.into();
        for listener in self.listeners.lock().iter_mut() {
            listener.lost += lost;
            let events = if listener.wants_all(all) {
                Arc::clone(&shared)
            } else {
                listener.of(events)
            };
            if events.is_empty() && listener.lost == 0 {
                continue;
            }
            let count = (events.len() / Record::SIZE) as u64;
            let told = Told {
                events,
                lost: listener.lost,
            };
            match listener.told.try_send(told) {
                Ok(()) => listener.lost = 0,
                Err(_) => listener.lost += count,
            }
        }
    }

    /// Reads the ring while there are listeners, until the process ends.
    async fn run(self: Arc<Self>, mut ring: Ring) {
        loop {
            // One left by an agent that was killed ends by itself.
            if let Err(error) = ring.listen(Listen::default()) {
                tracing::warn!(error = chain(&error), "cannot end listening");
            }
            self.came.notified().await;
            if let Err(error) = self.listen(&mut ring).await {
                tracing::warn!(error = chain(&error), "cannot listen to the programs");
                self.listeners.lock().clear();
            }
        }
    }

    /// Until the last listener is gone.
    async fn listen(&self, ring: &mut Ring) -> Result<(), Error> {
        let mut reader = ring.read()?;
        let mut lost = ring.lost()?;
        let mut renewed: Option<(Instant, Listen)> = None;
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        while let Some(wanted) = self.wanted() {
            let due = renewed.is_none_or(|(at, said)| at.elapsed() >= RENEW || said != wanted);
            let mut more_lost = 0;
            if due {
                renewed = Some((Instant::now(), wanted));
                ring.listen(Listen {
                    until: clock::monotonic() + Listen::LASTS,
                    ..wanted
                })?;
                let now = ring.lost()?;
                more_lost = now.saturating_sub(lost);
                lost = now;
            }
            more_lost += reader.take(BATCH, &mut batch);
            if !batch.is_empty() || due || more_lost != 0 {
                self.tell(&batch, &wanted, more_lost);
                batch.clear();
            }
            tick.tick().await;
        }
        Ok(())
    }
}

/// Tells one who listens over a connection, until either end closes it.
pub(crate) async fn serve(
    mut told: mpsc::Receiver<Told>,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let told = tokio::select! {
            told = told.recv() => told,
            // Nothing more is asked: this is the end, or an error.
            _ = read.read_u8() => return Ok(()),
        };
        let Some(Told { events, lost }) = told else {
            return Ok(());
        };
        bytes.clear();
        if lost != 0 {
            stream::put_lost(lost, &mut bytes);
        }
        if !events.is_empty() {
            stream::put_events(&events, &mut bytes);
        }
        // It would keep the programs telling, and a place that others want.
        timeout(PATIENCE, write.write_all(&bytes)).await??;
    }
}

#[cfg(test)]
mod tests {
    use veer_bpf_common::outcome::{DropReason, Verdict};

    use super::*;

    fn events(count: usize) -> Vec<u8> {
        vec![7; count * Record::SIZE]
    }

    const ALL: Listen = Listen {
        until: 0,
        verdicts: u64::MAX,
        reasons: u32::MAX,
        pad: 0,
    };

    #[test]
    fn a_listener_who_is_behind_loses_events_and_learns_how_many() {
        let monitor = Monitor::default();
        let mut told = monitor.subscribe(ALL).unwrap();
        for _ in 0..WAITING + 2 {
            monitor.tell(&events(3), &ALL, 0);
        }
        for _ in 0..WAITING {
            assert_eq!(told.try_recv().unwrap().lost, 0);
        }
        assert!(told.try_recv().is_err());
        monitor.tell(&[], &ALL, 4);
        let last = told.try_recv().unwrap();
        assert_eq!((last.events.len(), last.lost), (0, 2 * 3 + 4));
        monitor.tell(&[], &ALL, 0);
        assert!(told.try_recv().is_err(), "nothing to tell");
    }

    #[test]
    fn a_listener_is_told_what_it_asked_for_and_not_what_another_did() {
        let monitor = Monitor::default();
        let mut drops = Listen::default();
        drops.add_reason(DropReason::Malformed);
        let mut told = monitor.subscribe(drops).unwrap();
        let event = |outcome: u32| {
            let mut record = Record::from_bytes(&events(1)).unwrap();
            record.event.decision.outcome = outcome;
            *record.as_bytes()
        };
        let (drop, delivery) = (
            event(DropReason::Malformed as u32),
            event(Verdict::Deliver as u32),
        );
        monitor.tell(&[delivery, drop, delivery].concat(), &ALL, 0);
        assert_eq!(&*told.try_recv().unwrap().events, drop);
        for _ in 0..2 * WAITING {
            monitor.tell(&delivery, &ALL, 0);
        }
        assert!(told.try_recv().is_err(), "and loses nothing of the other's");
    }

    #[test]
    fn what_all_listeners_want_is_asked_for_until_the_last_is_gone() {
        let monitor = Monitor::default();
        let wants = |verdicts, reasons| Listen {
            verdicts,
            reasons,
            ..Listen::default()
        };
        assert_eq!(monitor.wanted(), None);
        let first = monitor.subscribe(wants(1, 0)).unwrap();
        let second = monitor.subscribe(wants(2, 8)).unwrap();
        assert_eq!(monitor.wanted(), Some(wants(3, 8)));
        drop(second);
        assert_eq!(monitor.wanted(), Some(wants(1, 0)));
        drop(first);
        assert_eq!(monitor.wanted(), None);
    }

    #[test]
    fn one_listener_too_many_is_refused_until_another_leaves() {
        let monitor = Monitor::default();
        let subscribe = || monitor.subscribe(Listen::default());
        let mut all: Vec<_> = (0..LISTENERS).map(|_| subscribe().unwrap()).collect();
        assert!(subscribe().is_err());
        all.pop();
        assert!(subscribe().is_ok());
    }

    #[tokio::test]
    async fn a_connection_is_told_what_was_lost_before_what_came_and_ends_with_its_reader() {
        let (told, receiver) = mpsc::channel(2);
        let (mut theirs, ours) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(ours);
        let served = tokio::spawn(serve(receiver, read, write));
        let batch = Told {
            events: events(2).into(),
            lost: 5,
        };
        told.send(batch).await.unwrap();
        let mut expected = Vec::new();
        stream::put_lost(5, &mut expected);
        stream::put_events(&events(2), &mut expected);
        let mut bytes = vec![0; expected.len()];
        theirs.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, expected);
        drop(theirs);
        served.await.unwrap().unwrap();
        assert!(told.is_closed());
    }
}
