//! `delete`: removes objects by name, or those that manifests describe.

use std::path::PathBuf;

use tollgate_api::v1::{DeleteRequest, Key};
use tonic::Code;

use super::{Client, Error, Output, documents, parse_target, reason_of, slashed};
use crate::registry::DEFAULT_NAMESPACE;

/// Removes the named objects: `kind` may be `KIND/NAME` where `names` is empty.
pub async fn delete_named(
    client: &mut Client,
    kind: &str,
    names: &[String],
    namespace: Option<&str>,
    output: &mut Output<'_>,
) -> Result<bool, Error> {
    let (kind, names) = parse_target(kind, names)?;
    if names.is_empty() {
        return Err(Error::Usage(format!("name the {kind} to delete")));
    }
    let mut is_done = true;
    for name in names {
        is_done &= delete(client, Key::new(kind, namespace.unwrap_or(DEFAULT_NAMESPACE), name), output).await?;
    }
    Ok(is_done)
}

/// Removes the objects in the sources, the last one first: so a Namespace goes after what is in it.
pub async fn delete_files(
    client: &mut Client,
    sources: &[PathBuf],
    namespace: Option<&str>,
    output: &mut Output<'_>,
) -> Result<bool, Error> {
    let mut is_done = true;
    for document in documents::read(sources)?.into_iter().rev() {
        match document.content.and_then(|value| documents::address(value, namespace)) {
            Ok((key, _)) => is_done &= delete(client, key, output).await?,
            Err(reason) => {
                is_done = false;
                writeln!(output.complaints, "error: {}: {reason}", document.place)?;
            }
        }
    }
    Ok(is_done)
}

async fn delete(client: &mut Client, key: Key, output: &mut Output<'_>) -> Result<bool, Error> {
    match client.delete(DeleteRequest { key: Some(key.clone()), revision: 0 }).await {
        Ok(_) => writeln!(output.results, "{} deleted", slashed(&key))?,
        Err(status) if status.code() == Code::Unavailable => return Err(Error::call(format!("delete {key}"))(status)),
        Err(status) => {
            writeln!(output.complaints, "error: {}", reason_of(&status))?;
            return Ok(false);
        }
    }
    Ok(true)
}
