//! Server-side apply with one field manager per controller, and creation of objects
//! that must not exist yet.

use std::fmt::Debug;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, api, found};

/// Applies an object's `spec`, or parts of it. With a `version` the object must
/// exist and be of that resourceVersion.
pub(crate) async fn spec<K>(
    to: &Api<K>,
    name: &str,
    manager: &str,
    spec: impl Serialize,
    version: Option<&str>,
) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let body = body::<K>(name, "spec", spec, version)?;
    let params = PatchParams::apply(manager).force();
    let what = format!("apply {} {name}", K::kind(&()));
    to.patch(name, &params, &Patch::Apply(body))
        .await
        .map_err(api(what))
}

/// Applies an object's `status`, or parts of it.
pub(crate) async fn status<K>(
    to: &Api<K>,
    name: &str,
    manager: &str,
    status: impl Serialize,
    version: Option<&str>,
) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let body = body::<K>(name, "status", status, version)?;
    let params = PatchParams::apply(manager).force();
    let what = format!("apply the status of {} {name}", K::kind(&()));
    to.patch_status(name, &params, &Patch::Apply(body))
        .await
        .map_err(api(what))
}

fn body<K: Resource<DynamicType = ()>>(
    name: &str,
    part: &str,
    content: impl Serialize,
    version: Option<&str>,
) -> Result<Value, Error> {
    let content = serde_json::to_value(content).map_err(|source| Error::Json {
        what: "an object to apply",
        source,
    })?;
    let mut metadata = json!({ "name": name });
    if let Some(version) = version {
        metadata["resourceVersion"] = json!(version);
    }
    Ok(json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": metadata,
        part: content,
    }))
}

/// Creates an object. If it exists already, that is a conflict, which an apply would
/// not report.
pub(crate) async fn create<K>(to: &Api<K>, manager: &str, object: &K) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Serialize,
{
    let params = PostParams {
        field_manager: Some(manager.to_owned()),
        ..PostParams::default()
    };
    let what = format!("create {} {}", K::kind(&()), object.name_any());
    to.create(&params, object).await.map_err(api(what))
}

/// Deletes exactly this object in exactly this version.
pub(crate) async fn delete<K>(from: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let name = object.name_any();
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: object.resource_version(),
        }),
        ..DeleteParams::default()
    };
    let what = format!("delete {} {name}", K::kind(&()));
    found(from.delete(&name, &params).await).map_err(api(what))?;
    Ok(())
}
