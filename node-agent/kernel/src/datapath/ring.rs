//! The programs' decisions, for those who listen.

use aya::maps::{Array, MapData, RingBuf};
use veer_bpf_common::tables::{Event, Listen, Listening};

use super::{Error, maps::error};

/// The ring of events, and the switch that makes the programs fill it. There is one
/// reader: what it takes is gone.
pub struct Ring {
    pub(super) events: RingBuf<MapData>,
    pub(super) listening: Array<MapData, Listen>,
}

impl Ring {
    /// Says which decisions are wanted, and until when.
    pub fn listen(&mut self, listen: Listen) -> Result<(), Error> {
        let set = self.listening.set(0, listen, 0);
        set.map_err(error::<Listening>)
    }

    /// Takes out what is there, at most `most` events, and appends it to `to` as
    /// [`Event`]s one behind the other. Returns how many.
    pub fn take(&mut self, most: usize, to: &mut Vec<u8>) -> usize {
        let mut taken = 0;
        while taken < most {
            let Some(event) = self.events.next() else {
                break;
            };
            // An agent of another layout has another ring.
            if event.len() == Event::SIZE {
                to.extend_from_slice(&event);
                taken += 1;
            }
        }
        taken
    }
}
