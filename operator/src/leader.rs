//! Leadership by a Lease.
//!
//! One replica holds it and leads; the others try to take it. A silent leader's
//! Lease is taken when it has not *changed* for its whole duration by the
//! taker's own clock, so clocks need not agree; the leader gives up after two
//! thirds of that. A leader cut off between the two can still write for a
//! moment, which is why nothing relies on there being one leader only: blocks
//! and identities are claimed by creating objects.
//!
//! The Lease changes with every renewal. If its resourceVersion is lower than one
//! seen before, etcd was restored from a backup and the caches are from another time.
//! Then the term ends, so that the next one begins with new lists and with new
//! reports of all agents.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, api, code, found};
use crate::health::Health;

/// A candidate for one Lease.
pub(crate) struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    /// The last content of the Lease, and the time since when.
    seen: Option<(LeaseSpec, Instant)>,
    /// The highest resourceVersion of the Lease seen.
    version: u64,
}

/// What one look at the Lease gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Held,
    Others,
}

impl Candidate {
    /// A candidate named `identity`.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        duration: Duration,
    ) -> Self {
        let api = Api::namespaced(client, namespace);
        Self {
            api,
            name: name.to_owned(),
            identity,
            duration,
            seen: None,
            version: 0,
        }
    }

    /// Returns once this candidate leads. It is ready with the first answer of the
    /// API server.
    pub(crate) async fn acquire(&mut self, health: &Health) {
        loop {
            health.beat();
            match timeout(self.duration, self.look()).await {
                Ok(Ok(Look::Held)) => {
                    health.set_ready();
                    return;
                }
                Ok(Ok(Look::Others)) => health.set_ready(),
                Ok(Err(Error::Conflict { .. })) => {}
                Ok(Err(error)) => tracing::warn!("{}", error.chain()),
                Err(_) => tracing::warn!(
                    "the API server did not answer for {} s: check that it is up",
                    self.duration.as_secs()
                ),
            }
            sleep(self.duration / 7).await;
        }
    }

    /// Renews the Lease; returns once it is lost.
    pub(crate) async fn hold(&mut self, health: &Health) {
        let patience = self.duration * 2 / 3;
        let mut renewed = Instant::now();
        loop {
            health.beat();
            sleep(self.duration / 6).await;
            let began = Instant::now();
            let left = patience.saturating_sub(renewed.elapsed());
            match timeout(left, self.look()).await {
                Ok(Ok(Look::Held)) => renewed = began,
                Ok(Ok(Look::Others)) | Err(_) => return,
                Ok(Err(error)) => tracing::warn!("{}", error.chain()),
            }
            if renewed.elapsed() >= patience {
                return;
            }
        }
    }

    /// Gives the Lease back, so that another need not wait for it to run out.
    pub(crate) async fn release(&mut self) -> Result<(), Error> {
        let what = || format!("give back lease {}", self.name);
        let Some(mut lease) = found(self.api.get(&self.name).await).map_err(api(what()))? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await
            .map_err(api(what()))?;
        Ok(())
    }

    /// Reads the Lease, and takes or renews it if that is ours to do.
    async fn look(&mut self) -> Result<Look, Error> {
        let text = format!("take lease {}", self.name);
        let what = || text.clone();
        let Some(mut lease) = found(self.api.get(&self.name).await).map_err(api(what()))? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.renewed(LeaseSpec::default())),
            };
            let made = self.api.create(&PostParams::default(), &lease).await;
            return match made {
                // Gone though it was seen: restored from before it, or deleted.
                Ok(_) if self.version > 0 => {
                    self.version = 0;
                    Ok(Look::Others)
                }
                Ok(_) => Ok(Look::Held),
                Err(error) if code(&error) == Some(409) => Ok(Look::Others),
                Err(error) => Err(api(what())(error)),
            };
        };
        if self.is_restored(&lease) {
            tracing::warn!("etcd was restored from a backup: this term ends");
            return Ok(Look::Others);
        }
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.may_take(&spec) {
            return Ok(Look::Others);
        }
        lease.spec = Some(self.renewed(spec));
        // The resourceVersion read above makes this fail if someone was faster.
        let put = self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await;
        let put = put.map_err(api(what()))?;
        self.is_restored(&put);
        Ok(Look::Held)
    }

    /// Whether this Lease is older than one seen before; remembers its version.
    fn is_restored(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.as_deref();
        let version = version
            .and_then(|text| text.parse().ok())
            .unwrap_or(self.version);
        let before = std::mem::replace(&mut self.version, version);
        version < before
    }

    fn may_take(&mut self, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let now = Instant::now();
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec.lease_duration_seconds.unwrap_or_default();
                let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
                now.duration_since(*since) > duration
            }
            Some(_) | None => {
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }

    fn renewed(&self, old: LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = old.holder_identity.as_deref() == Some(&self.identity);
        let terms = old.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            lease_transitions: Some(if mine { terms } else { terms + 1 }),
            acquire_time: if mine {
                old.acquire_time
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            ..old
        }
    }
}
