//! Identities of local pods, and the names of those whose record was rebuilt.

use std::io;

use veer_agent_api::Attachment;
use veer_agent_core::index::Resolution;
use veer_agent_kernel::error;
use veer_api_client::chain;
use veer_bpf_common::identity::Identity;

use super::Pods;

/// Why a pod does not have its identity.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Kernel(#[from] error::Error),
    #[error("cannot write below the state folder")]
    State(#[source] io::Error),
}

/// Says of rebuilt records whose they are, by their pods' status.
pub(crate) fn name_the_nameless(pods: &Pods) {
    let named: Vec<(Attachment, String, String, String)> = {
        let index = pods.index.read();
        let store = pods.local.store();
        store
            .iter()
            .filter(|e| e.is_nameless())
            .filter_map(|e| {
                let pod = e.addresses().find_map(|a| index.pod_at(a.address))?;
                let uid = pod.config_hash.as_ref().unwrap_or(&pod.uid);
                let names = (pod.namespace.clone(), pod.name.clone(), uid.clone());
                Some((e.attachment.clone(), names.0, names.1, names.2))
            })
            .collect()
    };
    for (attachment, namespace, name, uid) in named {
        pods.local
            .store()
            .name(&attachment, &namespace, &name, &uid);
        if let Err(error) = pods.local.persist(&attachment) {
            tracing::error!(%error, "cannot write a rebuilt record");
        }
        tracing::info!(
            pod = format!("{namespace}/{name}"),
            "a rebuilt record has its pod"
        );
    }
}

/// Gives local pods the identities that their labels have now.
pub(crate) fn converge(pods: &Pods) {
    let changes: Vec<(Attachment, Identity, String)> = {
        let index = pods.index.read();
        let store = pods.local.store();
        store
            .iter()
            .filter_map(
                |e| match index.resolve(&e.namespace, &e.pod_name, &e.pod_uid) {
                    Resolution::Known(number, uid)
                        if number != e.identity || e.object_uid.as_ref() != Some(&uid) =>
                    {
                        Some((e.attachment.clone(), number, uid))
                    }
                    Resolution::NoNumber(uid) if e.object_uid.as_ref() != Some(&uid) => {
                        Some((e.attachment.clone(), e.identity, uid))
                    }
                    Resolution::Known(..) | Resolution::NoNumber(_) | Resolution::NoPod => None,
                },
            )
            .collect()
    };
    for (attachment, number, uid) in changes {
        if let Err(error) = set(pods, &attachment, number, uid) {
            tracing::error!(error = %chain(&error), "cannot change a pod's identity");
        }
    }
}

fn set(pods: &Pods, attachment: &Attachment, number: Identity, uid: String) -> Result<(), Error> {
    let mut datapath = pods.datapath.lock();
    let changed = pods
        .local
        .store()
        .set_identity(attachment, number, Some(uid));
    let Some(endpoint) = changed else {
        return Ok(());
    };
    pods.converge_pod(&mut datapath, &endpoint, None)
        .map_err(error::Error::from)?;
    drop(datapath);
    pods.local.persist(attachment).map_err(Error::State)?;
    tracing::info!(pod = endpoint.pod(), identity = number.get(), "identity");
    pods.publisher
        .publish(&pods.index.read().endpoints, &endpoint);
    Ok(())
}
