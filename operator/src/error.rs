//! Errors of the controllers.

use std::time::Duration;

/// An error of a reconciliation. Its category is a fixed string, for metrics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused or did not answer.
    #[error("cannot {what}")]
    Api {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// Another writer was first; the next round sees its result.
    #[error("{what}: another writer was first, trying again")]
    Conflict {
        /// What was tried.
        what: String,
    },
    /// A watch was interrupted, and what it missed is not known yet.
    #[error("{what}: what the API server has is being listed again, trying again")]
    Outdated {
        /// What was tried.
        what: String,
    },
    /// Building a request failed.
    #[error("cannot write {what} as JSON")]
    Json {
        /// What was to be written.
        what: &'static str,
        /// Why it failed.
        source: serde_json::Error,
    },
    /// All numbers of identities are taken.
    #[error(
        "no identity number is free: narrow spec.identityLabels of the ClusterNetwork, \
         so that fewer label sets count"
    )]
    NumbersExhausted,
}

impl Error {
    /// A fixed name for metrics and events.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api",
            Self::Conflict { .. } => "conflict",
            Self::Outdated { .. } => "outdated",
            Self::Json { .. } => "json",
            Self::NumbersExhausted => "numbers_exhausted",
        }
    }

    /// How long to wait before the next try after `failures` in a row.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let base = match self {
            Self::Conflict { .. } | Self::Outdated { .. } => Duration::from_millis(200),
            Self::Api { .. } | Self::Json { .. } | Self::NumbersExhausted => Duration::from_secs(1),
        };
        let wait = (base * 2u32.saturating_pow(failures.min(8))).min(Duration::from_mins(2));
        veer_api_client::jittered(wait)
    }

    /// The error with its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        veer_api_client::chain(self)
    }
}

/// Adds to an API error what was tried; a conflict becomes a case of its own.
pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |source| {
        if code(&source) == Some(409) {
            Error::Conflict { what }
        } else {
            Error::Api {
                what,
                source: Box::new(source),
            }
        }
    }
}

/// The HTTP status of an API error.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error {
        Some(status.code)
    } else {
        None
    }
}

/// `None` if the API server has no such object.
pub(crate) fn found<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}
