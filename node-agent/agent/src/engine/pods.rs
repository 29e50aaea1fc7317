//! Local pods: their identities, and their PodEndpoints.

use std::collections::HashSet;

use veer_agent_api::Attachment;

use super::{Engine, Error};
use crate::{
    cni,
    index::Resolution,
    publish::{self, Entry, Todo},
    repair::Kind,
};

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
        let node = &self.shared.options.node;
        let publisher = &self.shared.publisher;
        let put_back = |todo, (namespace, name): &(String, String), how| {
            if todo == Todo::PutBack {
                let what = format!("PodEndpoint {namespace}/{name} was {how}");
                self.shared.repaired(Kind::PodEndpoint, what);
            }
            todo != Todo::Nothing
        };
        let mut wanted: HashSet<(String, String)> = HashSet::new();
        {
            let store = self.shared.store();
            for endpoint in store.iter() {
                let key = publish::key(endpoint);
                let seen = index.endpoints.get(&format!("{}/{}", key.0, key.1));
                let todo = publisher.todo(&key, Some(&Entry::of(node, endpoint)), seen);
                let how = if seen.is_some() { "changed" } else { "removed" };
                if put_back(todo, &key, how) {
                    publisher.publish(node, endpoint);
                }
                wanted.insert(key);
            }
        }
        for row in index.endpoints.own() {
            let Some((namespace, name)) = row.key.split_once('/') else {
                continue;
            };
            let key = (namespace.to_owned(), name.to_owned());
            if !wanted.contains(&key)
                && put_back(publisher.todo(&key, None, Some(row)), &key, "made again")
            {
                publisher.withdraw(key);
            }
        }
        publisher.forget(|key| wanted.contains(key));
    }
}
