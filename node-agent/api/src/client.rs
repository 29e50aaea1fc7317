//! Asks the agent one question: a JSON line out, a JSON line back, with one
//! deadline over connecting, asking and answering.
//!
//! The exchange runs on a separate thread, because the connect of a Unix socket
//! whose backlog is full waits without a limit (`unix(7)`), and read timeouts
//! restart with every byte. The asking process is short-lived; its end also ends a
//! stuck thread.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::{Answer, Failure, MAX_ANSWER, Request};

/// Why there is no value.
#[derive(Debug)]
pub enum AskError {
    /// No process listens, or the answer was incomplete or late.
    Absent(io::Error),
    /// The reply is not an answer to this question.
    NotUnderstood(serde_json::Error),
    /// The agent says why not.
    Refused(Failure),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(_) => f.write_str("veer-agent does not answer"),
            Self::NotUnderstood(_) => f.write_str("the answer of veer-agent is not understood"),
            Self::Refused(failure) => f.write_str(&failure.msg),
        }
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Absent(error) => Some(error),
            Self::NotUnderstood(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}

/// Asks the agent that listens on `socket`, and waits at most for `deadline`.
pub fn ask<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    deadline: Duration,
) -> Result<T, AskError> {
    open(socket, request, deadline).map(|(value, _)| value)
}

/// The same, and what follows the answer.
pub fn open<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    deadline: Duration,
) -> Result<(T, BufReader<UnixStream>), AskError> {
    let mut question = serde_json::to_vec(request).map_err(AskError::NotUnderstood)?;
    question.push(b'\n');
    let (line, rest) = within(deadline, socket.to_owned(), question).map_err(AskError::Absent)?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Ok(value)) => Ok((value, rest)),
        Ok(Answer::Error(failure)) => Err(AskError::Refused(failure)),
        Err(error) => Err(AskError::NotUnderstood(error)),
    }
}

/// An answer's line, and the connection behind it.
type Exchanged = (Vec<u8>, BufReader<UnixStream>);

fn within(deadline: Duration, socket: PathBuf, question: Vec<u8>) -> io::Result<Exchanged> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        // The receiver is gone once the deadline has passed.
        let _ = sender.send(exchange(&socket, &question));
    })?;
    receiver.recv_timeout(deadline).unwrap_or_else(|_| {
        let text = format!("no answer within {} s", deadline.as_secs_f32());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

fn exchange(socket: &Path, question: &[u8]) -> io::Result<Exchanged> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(question)?;
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    let mut bounded = (&mut stream).take(MAX_ANSWER as u64);
    bounded.read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        return Ok((line, stream));
    }
    let text = format!("connection ended after {} bytes of an answer", line.len());
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn listener_that_never_answers_is_given_up_at_the_deadline() {
        let path = std::env::temp_dir().join(format!("veer-api-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let asked = ask::<()>(&path, &Request::Status, Duration::from_millis(20));
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        match asked {
            Err(AskError::Absent(error)) => assert_eq!(error.kind(), io::ErrorKind::TimedOut),
            other => panic!("{other:?}"),
        }
    }
}
