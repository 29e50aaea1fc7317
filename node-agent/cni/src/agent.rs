//! One question to the agent: a JSON line out, a JSON line back, with one
//! deadline over connecting, asking and answering.
//!
//! The exchange runs on a thread of its own, because the connect of a Unix socket
//! whose backlog is full waits without a limit of its own (`unix(7)`), and read
//! timeouts begin anew with every byte. The process ends soon after, and with it a
//! thread that is stuck.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use veer_agent_api::{Answer, MAX_MESSAGE, Request};

use crate::error::Error;

/// Asks the agent that listens on `socket`; `subject` is what errors name.
pub(crate) fn ask<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    subject: &str,
    deadline: Duration,
) -> Result<T, Error> {
    let mut question = serde_json::to_vec(request).map_err(Error::Encode)?;
    question.push(b'\n');
    let line =
        within(deadline, socket.to_owned(), question).map_err(|source| Error::AgentAbsent {
            subject: subject.to_owned(),
            socket: socket.to_owned(),
            source,
        })?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(failure)) => Err(Error::Refused(failure)),
        Err(source) => Err(Error::DecodeAnswer {
            subject: subject.to_owned(),
            source,
        }),
    }
}

fn within(
    deadline: Duration,
    socket: std::path::PathBuf,
    question: Vec<u8>,
) -> io::Result<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        // Nobody receives once the deadline has passed.
        let _ = sender.send(exchange(&socket, &question));
    })?;
    receiver.recv_timeout(deadline).unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", deadline.as_secs_f32()),
        ))
    })
}

fn exchange(socket: &Path, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(question)?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_MESSAGE as u64)).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        return Ok(line);
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("connection ended after {} bytes of an answer", line.len()),
    ))
}
