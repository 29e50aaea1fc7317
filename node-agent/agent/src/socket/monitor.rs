//! Who listens to the programs' decisions, and what they are told.
//!
//! Programs write the ring only while somebody listens. It is read at short intervals:
//! waking the agent would cost a program more than the event. All listeners are told the
//! same, and choose by themselves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc},
};
use veer_agent_api::stream;
use veer_agent_kernel::{clock, datapath::Ring, lock::Lock};
use veer_api_client::chain;
use veer_bpf_common::tables::{Event, Listen};

use crate::state::maps::Maps;

/// How often the ring is read.
const TICK: Duration = Duration::from_millis(10);
/// How often the programs are told that somebody still listens, and lost events are
/// counted.
const RENEW: Duration = Duration::from_secs(1);
/// Listeners at once.
const LISTENERS: usize = 16;
/// Batches that wait for a listener: two thirds of a second.
const WAITING: usize = 64;
/// Events of a batch. More than the ring holds, so a tick leaves nothing.
const BATCH: usize = stream::MAX_FRAME / Event::SIZE;

/// What a listener is told at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// [`Event`]s one behind the other.
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

    /// Tells all listeners; one who is behind loses these events.
    fn tell(&self, events: &Arc<[u8]>, lost: u64) {
        for listener in self.listeners.lock().iter_mut() {
            listener.lost += lost;
            if events.is_empty() && listener.lost == 0 {
                continue;
            }
            let told = Told {
                events: Arc::clone(events),
                lost: listener.lost,
            };
            match listener.told.try_send(told) {
                Ok(()) => listener.lost = 0,
                Err(_) => listener.lost += (events.len() / Event::SIZE) as u64,
            }
        }
    }

    /// Reads the ring while there are listeners, until the process ends.
    pub(crate) async fn run(self: Arc<Self>, mut ring: Ring, maps: Maps) {
        loop {
            // One left by an agent that was killed ends by itself.
            if let Err(error) = ring.listen(Listen::default()) {
                tracing::warn!(error = chain(&error), "cannot end listening");
            }
            self.came.notified().await;
            if let Err(error) = self.listen(&mut ring, &maps).await {
                tracing::warn!(error = chain(&error), "cannot listen to the programs");
                self.listeners.lock().clear();
            }
        }
    }

    /// Until the last listener is gone.
    async fn listen(
        &self,
        ring: &mut Ring,
        maps: &Maps,
    ) -> Result<(), veer_agent_kernel::datapath::Error> {
        // What nobody was there to hear.
        let mut batch = Vec::new();
        ring.take(usize::MAX, &mut batch);
        batch.clear();
        let mut lost = maps.lost_events()?;
        let mut renewed: Option<(Instant, Listen)> = None;
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
                let now = maps.lost_events()?;
                more_lost = now.saturating_sub(lost);
                lost = now;
            }
            ring.take(BATCH, &mut batch);
            self.tell(&batch.as_slice().into(), more_lost);
            batch.clear();
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
        write.write_all(&bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: usize) -> Arc<[u8]> {
        vec![7; count * Event::SIZE].into()
    }

    #[test]
    fn a_listener_who_is_behind_loses_events_and_learns_how_many() {
        let monitor = Monitor::default();
        let mut told = monitor.subscribe(Listen::default()).unwrap();
        for _ in 0..WAITING + 2 {
            monitor.tell(&events(3), 0);
        }
        for _ in 0..WAITING {
            assert_eq!(told.try_recv().unwrap().lost, 0);
        }
        assert!(told.try_recv().is_err());
        monitor.tell(&events(0), 4);
        let last = told.try_recv().unwrap();
        assert_eq!((last.events.len(), last.lost), (0, 2 * 3 + 4));
        monitor.tell(&events(0), 0);
        assert!(told.try_recv().is_err(), "nothing to tell");
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
            events: events(2),
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
