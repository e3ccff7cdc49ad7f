//! The objects of a list, decoded beside their receiving: in their order, by several threads.
//!
//! A list comes as fast as the network brings it, and Kubernetes JSON takes longer to decode than to receive (10 us for an
//! EndpointSlice of ten endpoints). A single change is decoded where it is received: it has nothing to wait for.

use std::collections::VecDeque;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tollgate_api::v1::Object;
use tollgate_model::store::Event;

use super::object;

/// Objects decoded at one time: enough that handing them over costs nothing, few enough that the first are soon there.
const BATCH: usize = 128;
/// Batches that are being decoded, or wait to be taken: what bounds threads and memory.
const BATCHES: usize = 4;

/// A list on its way.
#[derive(Debug, Default)]
pub(super) struct List {
    received: Vec<Object>,
    decoding: VecDeque<JoinHandle<Vec<Event>>>,
}

impl List {
    /// Takes an object in; returns what earlier ones mean, when it is time to hand that on.
    pub(super) async fn add(&mut self, object: Object) -> Result<Vec<Event>, JoinError> {
        self.received.push(object);
        if self.received.len() < BATCH {
            return Ok(Vec::new());
        }
        self.decode();
        match self.decoding.len() > BATCHES {
            true => self.next().await,
            false => Ok(Vec::new()),
        }
    }

    /// What the next ones mean that were taken in and not handed on; nothing where there are no more.
    pub(super) async fn rest(&mut self) -> Result<Vec<Event>, JoinError> {
        if !self.received.is_empty() {
            self.decode();
        }
        self.next().await
    }

    fn decode(&mut self) {
        let batch = std::mem::take(&mut self.received);
        let decode = move || batch.iter().filter_map(|object| object::applied(object).0).collect();
        self.decoding.push_back(spawn_blocking(decode));
    }

    async fn next(&mut self) -> Result<Vec<Event>, JoinError> {
        match self.decoding.pop_front() {
            Some(batch) => batch.await,
            None => Ok(Vec::new()),
        }
    }

    /// Whether all was handed on.
    pub(super) fn is_empty(&self) -> bool {
        self.received.is_empty() && self.decoding.is_empty()
    }
}
