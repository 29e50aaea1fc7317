//! DELs that found no agent, kept as files until it is back.
//!
//! One file per attachment, so that a DEL repeated is kept once. A file appears
//! whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use veer_agent_api::{Attachment, Request, file};

use crate::error::Error;

/// Whether a DEL was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It was; the agent will carry it out.
    Queued,
    /// veer is uninstalled, and nothing of the sandbox is left to remove.
    Uninstalled,
}

/// Keeps `request`, the DEL of `attachment`, in the directory `queue`.
pub(crate) fn keep(
    queue: &Path,
    attachment: &Attachment,
    request: &Request,
) -> Result<Kept, Error> {
    let failed = |source| Error::Queue {
        path: queue.to_owned(),
        source,
    };
    if is_uninstalled(queue) {
        return Ok(Kept::Uninstalled);
    }
    match fs::create_dir(queue) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let name = format!("{}-{}.json", attachment.container_id, attachment.ifname);
    let body = serde_json::to_vec(request).map_err(Error::Encode)?;
    // A second DEL of the same sandbox may come at the same time.
    let writer = std::process::id().to_string();
    file::replace(&queue.join(name), &writer, |file| file.write_all(&body)).map_err(failed)?;
    Ok(Kept::Queued)
}

/// Whether the agent has removed all it had: then its state directory, above the
/// queue, is empty (it cannot remove what is mounted into its container) or gone.
/// An agent that is only away has state.
fn is_uninstalled(queue: &Path) -> bool {
    match queue.parent().map(fs::read_dir) {
        Some(Ok(mut entries)) => entries.next().is_none(),
        Some(Err(error)) => error.kind() == io::ErrorKind::NotFound,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_agent_api::Del;

    fn del() -> (Attachment, Request) {
        let attachment = Attachment {
            container_id: "ab12".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let request = Request::Del(Del {
            attachment: attachment.clone(),
            netns: None,
        });
        (attachment, request)
    }

    #[test]
    fn repeated_del_is_kept_once_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("held.json"), "{}").unwrap();
        let queue = directory.path().join("queue");
        let (attachment, request) = del();
        for _ in 0..2 {
            assert_eq!(keep(&queue, &attachment, &request).unwrap(), Kept::Queued);
        }
        let files: Vec<_> = fs::read_dir(&queue)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(files, ["ab12-eth0.json"]);
        let kept = fs::read(queue.join("ab12-eth0.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&kept).unwrap(), request);
    }

    #[test]
    fn without_state_veer_is_uninstalled_and_nothing_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (attachment, request) = del();
        for queue in [
            directory.path().join("gone/queue"),
            directory.path().join("queue"),
        ] {
            assert_eq!(
                keep(&queue, &attachment, &request).unwrap(),
                Kept::Uninstalled
            );
            assert!(!queue.exists());
        }
    }

    #[test]
    fn queue_that_is_a_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let (attachment, request) = del();
        let queue = directory.path().join("queue");
        fs::write(&queue, "").unwrap();
        let error = keep(&queue, &attachment, &request).unwrap_err();
        assert!(
            error.to_string().contains(queue.to_str().unwrap()),
            "{error}"
        );
    }
}
