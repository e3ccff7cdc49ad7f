//! The calls of the contract, one function each: requests checked, the registry asked, answers in protobuf.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use tokio::sync::watch;
use tollgate_api::v1::control_plane_server::ControlPlane;
use tollgate_api::v1::{
    ApplyRequest, ApplyResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse, Key, Kind, ListRequest,
    ListResponse, Object, ResumeToken, StatusRequest, StatusResponse, WatchEvent, WatchRequest,
};
use tonic::{Code, Request, Response, Status};

use super::security::{Action, caller};
use super::status::refusal;
use super::until;
use super::watch::{Watch, Watchers};
use crate::registry::Registry;
use crate::store::{Position, Record};

/// The service over one registry.
pub(crate) struct Service {
    registry: Registry,
    watchers: Arc<Watchers>,
    progress_interval: Duration,
    stopping: watch::Receiver<bool>,
}

impl Service {
    pub(crate) fn new(
        registry: Registry,
        watchers: Arc<Watchers>,
        progress_interval: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Service { registry, watchers, progress_interval, stopping }
    }
}

#[tonic::async_trait]
impl ControlPlane for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let caller = caller(&request)?;
        let key = checked_key(request.into_inner().key)?;
        caller.may(Action::Get(&key))?;
        let record = self.registry.get(&key)?;
        Ok(Response::new(GetResponse { object: Some(object(&record)) }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let kind = checked_kind(request.kind)?;
        caller.may(Action::List(kind))?;
        if !request.namespace.is_empty() && !kind.is_namespaced() {
            let message =
                format!("namespace: {:?}: must be empty: {} lie in no namespace", request.namespace, kind.plural());
            return Err(refusal(Code::InvalidArgument, message));
        }
        let (records, position) = self.registry.list(kind, &request.namespace);
        let objects = records.iter().map(|record| object(record)).collect();
        Ok(Response::new(ListResponse { objects, at: Some(token(&position)) }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let caller = caller(&request)?;
        let manifest = self.registry.read(&request.into_inner().json)?;
        caller.may(Action::Apply(&manifest.key))?;
        let applied = self.registry.apply_manifest(manifest).await?;
        tracing::debug!(user = caller.user(), object = %applied.record.key, revision = applied.record.revision, outcome = ?applied.outcome, "apply");
        Ok(Response::new(ApplyResponse { object: Some(object(&applied.record)), outcome: applied.outcome.into() }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let key = checked_key(request.key)?;
        caller.may(Action::Delete(&key))?;
        let revision = self.registry.delete(key.clone(), request.revision).await?;
        tracing::debug!(user = caller.user(), object = %key, revision, "delete");
        Ok(Response::new(DeleteResponse { revision }))
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let WatchRequest { kinds, resume, client } = request.into_inner();
        let mut checked: Vec<Kind> = kinds.into_iter().map(checked_kind).collect::<Result<_, _>>()?;
        checked.sort_unstable();
        checked.dedup();
        if checked.is_empty() {
            return Err(Status::invalid_argument("kinds: at least one is required"));
        }
        checked.iter().try_for_each(|kind| caller.may(Action::Watch(*kind)))?;
        let cursor = self.watchers.add(self.registry.feed().position().revision);
        let (progress_interval, stopping) = (self.progress_interval, self.stopping.clone());
        let watch = Watch::new(self.registry.clone(), cursor, checked, resume, client, progress_interval, stopping);
        Ok(Response::new(caller.guard(watch.into_stream())))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        // For everyone who is someone.
        caller(&request)?;
        let wanted = request.into_inner().wait_for_revision;
        let mut head = self.registry.feed().subscribe();
        tokio::select! {
            biased;
            reached = head.wait_for(|revision| *revision >= wanted) => { reached.map_err(|_| stopping())?; }
            () = until(self.stopping.clone()) => return Err(stopping()),
        }
        let position = self.registry.feed().position();
        Ok(Response::new(StatusResponse {
            at: Some(token(&position)),
            compacted_revision: position.compacted,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}

/// What a request that the server's end cuts short is answered.
pub(super) fn stopping() -> Status {
    Status::unavailable("the server is stopping; retry")
}

/// A record on the wire.
pub(super) fn object(record: &Record) -> Object {
    Object { key: Some(record.key.clone()), revision: record.revision, json: record.json.to_vec() }
}

/// A position on the wire.
pub(super) fn token(position: &Position) -> ResumeToken {
    ResumeToken { store_id: position.store_id.to_string(), revision: position.revision }
}

fn checked_kind(kind: i32) -> Result<Kind, Status> {
    match Kind::try_from(kind) {
        Ok(Kind::Unspecified) | Err(_) => {
            Err(Status::invalid_argument(format!("kind: {kind}: is none of this version")))
        }
        Ok(kind) => Ok(kind),
    }
}

fn checked_key(key: Option<Key>) -> Result<Key, Status> {
    let key = key.ok_or_else(|| Status::invalid_argument("key: is required"))?;
    let kind = checked_kind(key.kind)?;
    if key.name.is_empty() {
        return Err(Status::invalid_argument("key.name: is required"));
    }
    if kind.is_namespaced() == key.namespace.is_empty() {
        let reason = if kind.is_namespaced() { "is required" } else { "must be empty" };
        return Err(Status::invalid_argument(format!("key.namespace: {reason} for a {kind}")));
    }
    Ok(key)
}
