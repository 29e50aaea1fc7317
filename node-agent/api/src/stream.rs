//! The stream behind the answer to [`crate::Request::Monitor`]: frames of a kind (one
//! byte), a length (four bytes, little-endian) and as many bytes.

use std::io::{self, Read};

/// Longest content of a frame, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

const EVENTS: u8 = 1;
const LOST: u8 = 2;
const HEADER: usize = 5;

/// What the agent tells a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Events of the programs one behind the other, each of
    /// [`crate::MonitorStart::event_bytes`].
    Events(Vec<u8>),
    /// As many events more were lost: the listener or the agent was too slow.
    Lost(u64),
}

/// Appends a frame of events, which must be at most [`MAX_FRAME`] bytes.
pub fn put_events(events: &[u8], to: &mut Vec<u8>) {
    put(EVENTS, events, to);
}

/// Appends a frame that says how many events were lost.
pub fn put_lost(lost: u64, to: &mut Vec<u8>) {
    put(LOST, &lost.to_le_bytes(), to);
}

fn put(kind: u8, content: &[u8], to: &mut Vec<u8>) {
    // Of a longer one the reader would refuse the rest anyway.
    let content = content.get(..MAX_FRAME).unwrap_or(content);
    let length = u32::try_from(content.len()).unwrap_or(0);
    to.push(kind);
    to.extend(length.to_le_bytes());
    to.extend(content);
}

/// Reads the next frame; `None`: the stream ended behind the last one. An error of kind
/// `InvalidData` is a stream that is not this one.
pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER];
    if from.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let [kind, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    let mut content = vec![0; length];
    from.read_exact(&mut content)?;
    match kind {
        EVENTS => Ok(Some(Frame::Events(content))),
        LOST => {
            let lost = <[u8; 8]>::try_from(content);
            let lost = lost.map_err(|_| invalid(format!("{length} bytes of a number")))?;
            Ok(Some(Frame::Lost(u64::from_le_bytes(lost))))
        }
        other => Err(invalid(format!("a frame of kind {other}"))),
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_put() {
        let mut bytes = Vec::new();
        put_events(&[7; 300], &mut bytes);
        put_lost(u64::MAX, &mut bytes);
        put_events(&[], &mut bytes);
        let mut from = &*bytes;
        assert_eq!(read(&mut from).unwrap(), Some(Frame::Events(vec![7; 300])));
        assert_eq!(read(&mut from).unwrap(), Some(Frame::Lost(u64::MAX)));
        assert_eq!(read(&mut from).unwrap(), Some(Frame::Events(vec![])));
        assert_eq!(read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_stream_cut_off_within_a_frame_is_an_error() {
        let mut bytes = Vec::new();
        put_events(&[7; 20], &mut bytes);
        for length in 1..bytes.len() {
            let error = read(&mut &bytes[..length]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_takes_memory() {
        for bytes in [
            [EVENTS, 1, 0, 16, 0].as_slice(),
            &[EVENTS, 255, 255, 255, 255],
            &[LOST, 2, 0, 0, 0, 1, 1],
            &[9, 0, 0, 0, 0],
        ] {
            let error = read(&mut &*bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
