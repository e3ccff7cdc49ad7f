//! `watch`: a line for every event.

use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{Key, Kind, ResumeToken, WatchEvent, WatchRequest};

use super::{Client, Error, Output};
use crate::registry::DEFAULT_NAMESPACE;

/// What is watched.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// At least one.
    pub kinds: Vec<Kind>,
    /// `None`: `default`.
    pub namespace: Option<String>,
    /// In whatever namespace.
    pub all_namespaces: bool,
    /// Not `None`: go on from here.
    pub resume: Option<ResumeToken>,
}

/// Writes a line for every event until the server ends the watch.
pub async fn watch(client: &mut Client, options: WatchOptions, output: &mut Output<'_>) -> Result<bool, Error> {
    let WatchOptions { kinds, namespace, all_namespaces, resume } = options;
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let attempt = format!("watch {}", kinds.iter().map(|kind| kind.plural()).collect::<Vec<_>>().join(", "));
    let request = WatchRequest {
        kinds: kinds.into_iter().map(i32::from).collect(),
        resume,
        client: format!("tollgate-controlplane watch, process {}", std::process::id()),
    };
    let is_shown = |key: &Key| all_namespaces || !key.kind().is_namespaced() || key.namespace == namespace;
    let mut events = client.watch(request).await.map_err(Error::call(attempt.clone()))?.into_inner();
    loop {
        let event = match events.message().await {
            Ok(Some(WatchEvent { event: Some(event) })) => event,
            Ok(Some(WatchEvent { event: None })) => continue,
            Ok(None) => return Ok(true),
            Err(status) => return Err(Error::call(attempt)(status)),
        };
        if let Event::Relist(relist) = event {
            return Err(Error::Relist { message: relist.message });
        }
        if let Some(line) = line_of(&event, is_shown)? {
            writeln!(output.results, "{line}")?;
            // Each line when it comes, also into a pipe.
            output.results.flush()?;
        }
    }
}

fn line_of(event: &Event, is_shown: impl Fn(&Key) -> bool) -> Result<Option<String>, Error> {
    let at = |word: &str, token: &Option<ResumeToken>| -> Result<Option<String>, Error> {
        let token = token.as_ref().ok_or(Error::Incomplete { what: "token" })?;
        Ok(Some(format!("{word:<9}  {token}")))
    };
    let change = |word: &str, key: &Option<Key>, revision: u64| -> Result<Option<String>, Error> {
        let key = key.as_ref().ok_or(Error::Incomplete { what: "key" })?;
        Ok(is_shown(key).then(|| format!("{word:<9}  {revision:<8}  {key}")))
    };
    match event {
        Event::Init(init) => at("INIT", &init.at),
        Event::Apply(object) => change("APPLY", &object.key, object.revision),
        Event::Delete(deleted) => change("DELETE", &deleted.key, deleted.revision),
        Event::InitDone(done) => at("INIT-DONE", &done.at),
        Event::Progress(progress) => at("PROGRESS", &progress.at),
        Event::Relist(_) => Ok(None),
    }
}
