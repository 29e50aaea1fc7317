//! Collection of what no longer has a sandbox: containerd 1.x never asks for
//! it, so the agent does it by itself.

use std::fs;

use veer_agent_api::{Attachment, Del, file};

use crate::{
    pods::{Pods, add::alive, del},
    runtime::conflist,
};

/// Unwires every pod whose network namespace is gone.
pub(crate) fn collect(pods: &Pods) {
    let dead: Vec<_> = {
        let all: Vec<_> = pods.local.store().iter().cloned().collect();
        all.into_iter().filter(|e| !alive(e)).collect()
    };
    for endpoint in dead {
        tracing::info!(pod = endpoint.pod(), "its sandbox is gone; unwiring it");
        if let Err(error) = del::unwire(pods, &endpoint.attachment) {
            tracing::warn!(pod = endpoint.pod(), %error, "cannot unwire it");
        }
    }
}

/// As [`collect`], on a node that is cleaned up: the files by which the runtime finds
/// veer go with the last pod. Until then it needs them for DEL.
pub(crate) fn collect_the_last(pods: &Pods) {
    collect(pods);
    if pods.local.store().is_empty() {
        conflist::remove(&pods.options.cni_conf_dir, &pods.options.cni_bin_dir);
    }
}

/// Unwires those that the runtime does not name and whose namespace is gone. One
/// that lives is another runtime's of the same node.
pub(crate) fn retain(pods: &Pods, valid: &[Attachment]) {
    let extra: Vec<_> = {
        let adding = pods.local.adding().clone();
        pods.local
            .store()
            .iter()
            .filter(|e| !valid.contains(&e.attachment) && !adding.contains(&e.host_ifname))
            .cloned()
            .collect()
    };
    let dead = extra.iter().filter(|e| !alive(e)).map(|e| &e.attachment);
    for attachment in dead {
        if let Err(error) = del::unwire(pods, attachment) {
            tracing::warn!(container = attachment.container_id, %error, "cannot collect it");
        }
    }
}

/// Works off the DELs that found no agent.
pub(crate) fn work_queue(pods: &Pods) {
    let Ok(entries) = fs::read_dir(pods.options.state.join("queue")) else {
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
        match del::unwire(pods, &queued.attachment) {
            Ok(()) => {
                let _ = file::remove(&path);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a queued DEL failed; kept");
            }
        }
    }
}
