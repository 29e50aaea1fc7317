//! Collection of what no longer has a sandbox: containerd 1.x never asks for
//! it, so the agent does it by itself.

use std::{fs, sync::Arc};

use veer_agent_api::{Attachment, Del, file};

use crate::{
    pods::{add::alive, del},
    shared::Shared,
};

/// Unwires every pod whose network namespace is gone.
pub(crate) fn collect(shared: &Shared) {
    let dead: Vec<_> = {
        let all: Vec<_> = shared.store().iter().cloned().collect();
        all.into_iter().filter(|e| !alive(e)).collect()
    };
    for endpoint in dead {
        tracing::info!(pod = endpoint.pod(), "its sandbox is gone; unwiring it");
        if let Err(error) = del::unwire(shared, &endpoint.attachment) {
            tracing::warn!(pod = endpoint.pod(), %error, "cannot unwire it");
        }
    }
}

/// Unwires those that the runtime does not name and whose namespace is gone. One
/// that lives is another runtime's of the same node.
pub(crate) fn retain(shared: &Arc<Shared>, valid: &[Attachment]) {
    let extra: Vec<_> = {
        let adding = shared.adding().clone();
        shared
            .store()
            .iter()
            .filter(|e| !valid.contains(&e.attachment) && !adding.contains(&e.host_ifname))
            .cloned()
            .collect()
    };
    let dead = extra.iter().filter(|e| !alive(e)).map(|e| &e.attachment);
    for attachment in dead {
        if let Err(error) = del::unwire(shared, attachment) {
            tracing::warn!(container = attachment.container_id, %error, "cannot collect it");
        }
    }
}

/// Works off the DELs that found no agent.
pub(crate) fn work_queue(shared: &Arc<Shared>) {
    let Ok(entries) = fs::read_dir(shared.options.state.join("queue")) else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let queued = fs::read(&path)
            .ok()
            .and_then(|b| serde_json::from_slice::<Del>(&b).ok());
        let Some(queued) = queued else {
            tracing::warn!(path = %path.display(), "not a DEL; removing it");
            let _ = file::remove(&path);
            continue;
        };
        match del::unwire(shared, &queued.attachment) {
            Ok(()) => {
                let _ = file::remove(&path);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a queued DEL failed; kept");
            }
        }
    }
}
