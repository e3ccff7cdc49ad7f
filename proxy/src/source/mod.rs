//! Where Services, EndpointSlices and the node's addresses come from, and their way into snapshots.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tollgate_model::store::{Event, Store};

use crate::health::Health;
use crate::metrics::Metrics;
use crate::sync::Desired;

pub mod address;
pub mod grpc;
mod list;
mod object;

/// How many updates are taken in before a snapshot is handed on: a burst becomes few snapshots, a single change waits for
/// nothing.
const BATCH: usize = 1024;

/// How far a source's changes go. Numbers of different stores say nothing of each other: one that was restored from a backup
/// may be at a lower number, or at the same one with other objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// The store's identity; empty where nothing was said yet.
    pub store: Arc<str>,
    /// Its number there.
    pub number: u64,
}

/// One thing that a source says.
#[derive(Debug)]
pub struct Update {
    /// What happened, at one moment: no snapshot shows a part of it. Nothing, if the source only says how far it is.
    pub events: Vec<Event>,
    /// The revision up to which the source has now said everything, if it has.
    pub revision: Option<Revision>,
    /// When the change was made, where the object says so.
    pub triggered: Option<Timestamp>,
}

/// Owns the store: applies what the sources say, in order, and hands on the newest snapshot. Ends when they all do.
pub async fn feed(
    mut store: Store,
    mut updates: mpsc::Receiver<Update>,
    desired: watch::Sender<Option<Desired>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
) {
    let mut revision = Revision::default();
    let mut batch = Vec::with_capacity(BATCH);
    while updates.recv_many(&mut batch, BATCH).await > 0 {
        for update in batch.drain(..) {
            revision = update.revision.unwrap_or(revision);
            metrics.queued(&revision, update.triggered);
            for event in update.events {
                store.apply(event);
            }
        }
        health.set_node_is_being_deleted(store.node_is_being_deleted());
        if let Some(snapshot) = store.snapshot() {
            health.queued();
            desired.send_replace(Some(Desired { snapshot, revision: revision.clone() }));
        }
    }
}
