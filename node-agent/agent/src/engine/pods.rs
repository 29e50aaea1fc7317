//! Local pods: their identities, and their PodEndpoints.

use std::collections::HashSet;

use veer_agent_api::Attachment;

use super::{Engine, Error};
use crate::{cni, index::Resolution, publish};

impl Engine {
    /// Gives local pods the identities that their labels have now.
    pub(super) fn identities(&self) {
        let changes: Vec<(Attachment, u32, String)> = {
            let index = self.shared.index();
            let store = self.shared.store();
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
            if let Err(error) = self.set_identity(&attachment, number, uid) {
                tracing::error!(error = %crate::chain(&error), "cannot change a pod's identity");
            }
        }
    }

    pub(super) fn set_identity(
        &self,
        attachment: &Attachment,
        number: u32,
        uid: String,
    ) -> Result<(), Error> {
        let mut datapath = self.shared.datapath();
        let changed = self
            .shared
            .store()
            .set_identity(attachment, number, Some(uid))
            .map_err(Error::State)?;
        let Some(endpoint) = changed else {
            return Ok(());
        };
        cni::write_rows(&mut datapath, &endpoint)?;
        drop(datapath);
        tracing::info!(pod = endpoint.pod(), identity = number, "identity");
        self.shared
            .publisher
            .publish(&self.shared.options.node, &endpoint);
        Ok(())
    }

    /// Compares this node's PodEndpoint objects with its wired pods.
    pub(super) fn sync_objects(&self) {
        let index = self.shared.index();
        if !index.complete.endpoints_listed {
            return;
        }
        let store = self.shared.store();
        let mut wanted: HashSet<String> = HashSet::new();
        let node = &self.shared.options.node;
        for endpoint in store.iter() {
            let (namespace, name) = publish::key(endpoint);
            let key = format!("{namespace}/{name}");
            let there = index.endpoints.of_node(node).any(|row| {
                row.key == key
                    && row.identity == i64::from(endpoint.identity)
                    && row.serial == endpoint.serial
                    && row.addresses == [endpoint.address]
            });
            if !there {
                self.shared.publisher.publish(node, endpoint);
            }
            wanted.insert(key);
        }
        for row in index.endpoints.of_node(node) {
            if !wanted.contains(&row.key)
                && let Some((namespace, name)) = row.key.split_once('/')
            {
                self.shared
                    .publisher
                    .withdraw((namespace.to_owned(), name.to_owned()));
            }
        }
    }
}
