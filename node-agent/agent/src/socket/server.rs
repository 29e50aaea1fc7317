//! The socket: one request per connection, a line in, a line out; behind it, to those
//! who listen, a stream.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{AcquireError, Semaphore},
    task::JoinError,
};
use veer_agent_api::{Answer, Failure, MAX_MESSAGE, MonitorStart, Request, code};
use veer_api_client::chain;
use veer_bpf_common::{
    LAYOUT_VERSION,
    tables::{Listen, Record},
};

use crate::{
    pods::{Pods, add, check, del, gc, internal},
    report::{counters::counters, sources::Sources},
    socket::{
        drops, flows,
        monitor::{self, Monitor},
        query, services, traffic,
    },
};
use veer_agent_core::repair::Kind;

/// Requests worked on at once: netlink is serial in the kernel anyway, and each
/// takes a thread.
const PARALLEL: usize = 8;
/// Time between looks whether the socket still has its name.
const LOOK: Duration = Duration::from_secs(1);

/// What requests work on.
pub(crate) struct Served {
    /// For the CNI verbs.
    pub(crate) pods: Arc<Pods>,
    /// For all others.
    pub(crate) sources: Sources,
    /// Who listens.
    pub(crate) monitor: Arc<Monitor>,
}

/// Listens at a path, mode 0600.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    veer_agent_api::file::remove(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the socket has no file. Another socket in its place belongs to the agent
/// that takes over.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).map_or_else(
        |error| error.kind() == io::ErrorKind::NotFound,
        |found| !found.file_type().is_socket(),
    )
}

/// Serves at `path`, where `listener` listens, until the process ends.
pub(crate) async fn run(served: Served, path: PathBuf, mut listener: UnixListener) {
    let served = Arc::new(served);
    let slots = Arc::new(Semaphore::new(PARALLEL));
    let mut look = tokio::time::interval(LOOK);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = look.tick() => {
                if is_missing(&path) {
                    match listen(&path) {
                        Ok(new) => {
                            listener = new;
                            let what = format!("the socket {} was removed", path.display());
                            served.sources.repairs.enter(Kind::Socket, what);
                        }
                        Err(error) => tracing::error!(%error, "cannot listen again"),
                    }
                }
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (served, slots) = (served.clone(), slots.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(served, slots, stream).await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

/// Why a connection ended without an answer.
#[derive(Debug, thiserror::Error)]
enum Cut {
    /// The other end is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The agent ends.
    #[error("the agent ends")]
    Slots(#[from] AcquireError),
    /// So does the thread that worked.
    #[error("the work was cut off")]
    Work(#[from] JoinError),
}

async fn serve(served: Arc<Served>, slots: Arc<Semaphore>, stream: UnixStream) -> Result<(), Cut> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read);
    (&mut read)
        .take(MAX_MESSAGE as u64)
        .read_line(&mut line)
        .await?;
    let request = serde_json::from_str::<Request>(&line);
    if let Ok(Request::Monitor { verdicts, reasons }) = request {
        let wanted = Listen {
            verdicts,
            reasons,
            ..Listen::default()
        };
        let (answer, told) = match served.monitor.subscribe(wanted) {
            Ok(told) => (encode(Ok(monitor_start(&served.sources))), Some(told)),
            Err(error) => {
                let failure = Failure {
                    code: code::TRY_AGAIN,
                    msg: error.to_string(),
                    details: String::new(),
                };
                (encode::<()>(Err(failure)), None)
            }
        };
        write.write_all(answer.as_bytes()).await?;
        if let Some(told) = told {
            monitor::serve(told, read, write).await?;
        }
        return Ok(());
    }
    if let Ok(Request::Add(add)) = &request {
        // Waits without a slot, so that pods whose identity is known go first.
        add::await_identity(&served.pods, add).await;
    }
    let slot = slots.acquire_owned().await?;
    let answer = tokio::task::spawn_blocking(move || answer(&served, request)).await?;
    drop(slot);
    write.write_all(answer.as_bytes()).await?;
    Ok(write.shutdown().await?)
}

fn monitor_start(sources: &Sources) -> MonitorStart {
    MonitorStart {
        node: sources.index.read().own().to_owned(),
        event_bytes: Record::SIZE,
        layout: LAYOUT_VERSION,
    }
}

fn encode<T: Serialize>(result: Result<T, Failure>) -> String {
    let answer = match result {
        Ok(value) => Answer::Ok(value),
        Err(failure) => Answer::Error(failure),
    };
    let mut text = serde_json::to_string(&answer).unwrap_or_else(|e| {
        format!(r#"{{"error":{{"code":999,"msg":"cannot encode the answer: {e}"}}}}"#)
    });
    text.push('\n');
    text
}

/// Works one request off.
fn answer(Served { pods, sources, .. }: &Served, request: serde_json::Result<Request>) -> String {
    let request = match request {
        Ok(request) => request,
        Err(e) => {
            return encode::<()>(Err(Failure {
                code: code::DECODE,
                msg: format!(
                    "the agent does not understand the request ({e}): veer-cni or veer may be of \
                     another version"
                ),
                details: String::new(),
            }));
        }
    };
    match request {
        Request::Add(request) => {
            let pod = format!("{}/{}", request.pod_namespace, request.pod_name);
            let result = add::add(pods, &request);
            match &result {
                Ok(added) => tracing::info!(pod, address = ?added.addresses, "wired"),
                Err(failure) => tracing::error!("{}", failure.msg),
            }
            encode(result)
        }
        Request::Del(request) => {
            let result = del::unwire(pods, &request.attachment).map_err(|e| {
                internal(format!(
                    "sandbox {} cannot be unwired: {e}",
                    request.attachment.container_id
                ))
            });
            match &result {
                Ok(()) => {
                    tracing::info!(container = request.attachment.container_id, "unwired");
                }
                Err(failure) => tracing::error!("{}", failure.msg),
            }
            if sources.plan.read().decommission {
                gc::collect_the_last(pods);
            }
            encode(result)
        }
        Request::Check(request) => encode(check::check(pods, &request)),
        Request::Gc { valid } => {
            gc::retain(pods, &valid);
            encode(Ok(()))
        }
        Request::Status => encode(status(sources)),
        Request::NodeStatus => encode(Ok(query::node_status(sources))),
        Request::Endpoints => encode(Ok(query::endpoints(sources))),
        Request::Identities => encode(Ok(query::identities(sources))),
        Request::Who { addresses } => encode(Ok(query::who(sources, &addresses))),
        Request::Frontends { frontends } => encode(Ok(services::frontends(sources, &frontends))),
        Request::Ipcache => encode(query::ipcache(sources).map_err(|e| unreadable(&e))),
        Request::Remotes => encode(query::remotes(sources).map_err(|e| unreadable(&e))),
        Request::Counters => encode(counters(&sources.maps).map_err(|e| unreadable(&e))),
        Request::Drops => encode(drops::drops(sources).map_err(|e| unreadable(&e))),
        Request::Flows => encode(flows::flows(sources).map_err(|e| unreadable(&e))),
        Request::Services => encode(services::services(sources).map_err(|e| unreadable(&e))),
        Request::Traffic => encode(traffic::traffic(sources).map_err(|e| unreadable(&e))),
        // Its answer is the beginning of a stream, which `serve` gives.
        Request::Monitor { .. } => encode(Ok(monitor_start(sources))),
    }
}

fn unreadable(error: &veer_agent_kernel::datapath::Error) -> Failure {
    internal(format!("cannot read a map: {}", chain(error)))
}

fn status(sources: &Sources) -> Result<(), Failure> {
    let reason = sources.plan.read().not_ready.clone();
    if reason.is_empty() {
        return Ok(());
    }
    Err(Failure {
        code: code::NOT_AVAILABLE,
        msg: format!("veer-agent cannot wire pods: {reason}"),
        details: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_removed_or_overwritten_is_missing_and_a_successors_is_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run/agent.sock");
        let first = listen(&path).unwrap();
        assert!(!is_missing(&path));
        fs::remove_dir_all(place.path().join("run")).unwrap();
        assert!(is_missing(&path));
        let _second = listen(&path).unwrap();
        drop(first);
        assert!(!is_missing(&path));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(is_missing(&path));
        listen(&path).unwrap();
    }
}
