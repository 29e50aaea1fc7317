//! VERSION: which CNI versions are spoken.

use serde::Serialize;

use crate::config::Config;
use crate::error::Error;
use crate::version::{NEWEST, SUPPORTED};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    cni_version: &'a str,
    supported_versions: [&'static str; 4],
}

/// The versions, in a result of the version that was asked with.
pub(super) fn run(config: &Config) -> Result<String, Error> {
    let asked = config.cni_version.as_str();
    let versions = Versions {
        cni_version: if asked.is_empty() { NEWEST } else { asked },
        supported_versions: SUPPORTED,
    };
    serde_json::to_string(&versions).map_err(Error::Encode)
}
