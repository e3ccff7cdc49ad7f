//! The bundled control plane as source: one watch, kept up for ever.
//!
//! It reconnects with backoff and jitter, resumes where it was, and where that can't be done watches anew; the store turns
//! such a relist into the changes that it implies. While the control plane is away, nothing changes.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tollgate_api::connect::{self, Access, Client};
use tollgate_api::v1::watch_event::Event as Said;
use tollgate_api::v1::{Kind, Relist, ResumeToken, WatchRequest};
use tollgate_model::object as model;
use tollgate_model::store::Event;
use tonic::transport::{Endpoint, Uri};

use super::list::List;
use super::{Revision, Update, object};
use crate::metrics::Metrics;
use crate::node::Registration;
use crate::sync::chain;

/// What the watch carries.
const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

const MIN_DELAY: Duration = Duration::from_millis(100);
/// A control plane that is back is found within this time.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// A control plane that says nothing for this long is asked whether it is still there, and must answer as quickly.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The source and what it remembers between connections.
pub struct Grpc {
    uri: Uri,
    access: Access,
    registration: Option<Registration>,
    /// Who watches, for the server's log.
    client: String,
    updates: mpsc::Sender<Update>,
    metrics: Arc<Metrics>,
    /// Where the next watch goes on; none until a first list is complete.
    resume: Option<Revision>,
    /// What has come of a list that is not complete.
    list: List,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] connect::Error),
    #[error("{what} failed ({code:?}): {message}", code = status.code(), message = status.message())]
    Refused { what: &'static str, status: tonic::Status },
    #[error("the watch can't be resumed ({}), watching anew", .0.message)]
    Relist(Relist),
    #[error("the server ended the watch")]
    Closed,
    #[error("nobody takes the updates any more")]
    Stopped,
}

impl Grpc {
    /// A source that has not connected yet. `registration` sees to this node's Node object.
    #[must_use]
    pub fn new(
        uri: Uri,
        access: Access,
        client: String,
        registration: Option<Registration>,
        updates: mpsc::Sender<Update>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { uri, access, registration, client, updates, metrics, resume: None, list: List::default() }
    }

    /// Watches for ever; ends only when nobody takes its updates any more.
    pub async fn run(mut self) {
        let mut backoff = delays();
        loop {
            tracing::debug!(control_plane = %self.uri, "connecting");
            let before = self.resume.clone();
            let ended = self.session().await;
            self.metrics.source_connected.set(0);
            if self.resume != before {
                // It worked for a while: this is a new failure, not the same one again.
                backoff = delays();
            }
            let delay = match &ended {
                Ended::Stopped => return,
                Ended::Relist(_) => MIN_DELAY,
                _ => backoff.next().unwrap_or(MAX_DELAY),
            };
            tracing::warn!(
                control_plane = %self.uri, error = %chain(&ended), retry_in = ?delay,
                "waiting for the control plane; until it is back, the kernel keeps what it has"
            );
            tokio::time::sleep(delay).await;
        }
    }

    /// One connection, from its beginning to its end.
    async fn session(&mut self) -> Ended {
        match self.watch().await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn watch(&mut self) -> Result<std::convert::Infallible, Ended> {
        let mut client = self.connect().await?;
        register(self.registration.as_mut(), &mut client).await?;
        let request = WatchRequest {
            kinds: KINDS.map(i32::from).to_vec(),
            resume: self.resume.as_ref().map(token),
            client: self.client.clone(),
        };
        let refused = |status| Ended::Refused { what: "the watch", status };
        let mut stream = client.watch(request).await.map_err(refused)?.into_inner();
        let resumed_at = self.resume.as_ref().map(|at| at.number);
        tracing::info!(control_plane = %self.uri, ?resumed_at, "watching");
        self.metrics.source_connected.set(1);
        self.list = List::default();
        loop {
            tokio::select! {
                message = stream.message() => match message.map_err(refused)? {
                    Some(message) => {
                        if let Some(said) = message.event {
                            self.take(said).await?;
                        }
                    }
                    None => return Err(Ended::Closed),
                },
                () = addresses_changed(self.registration.as_mut()) => {
                    register(self.registration.as_mut(), &mut client).await?;
                }
            }
        }
    }

    /// Reads the files of the access again: they may have been replaced.
    async fn connect(&self) -> Result<Client, connect::Error> {
        let endpoint = Endpoint::from(self.uri.clone())
            .connect_timeout(KEEP_ALIVE)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        // One object can be larger than tonic's default of 4 MiB: Kubernetes allows 1.5 MiB, other stores more.
        Ok(connect::connect(&endpoint, &self.access).await?.max_decoding_message_size(64 << 20))
    }

    async fn take(&mut self, said: Said) -> Result<(), Ended> {
        if !matches!(said, Said::Apply(_)) {
            self.finish_list().await?;
        }
        match said {
            Said::Init(_) => {
                // The list is not a place to resume from until it is complete.
                self.resume = None;
                self.send(each_kind(Event::Init), None).await?;
            }
            Said::Apply(object) => {
                let kind = object.key.as_ref().map(tollgate_api::v1::Key::kind);
                match kind {
                    Some(Kind::Service) => self.metrics.service_changes.inc(),
                    Some(Kind::EndpointSlice) => self.metrics.endpoint_changes.inc(),
                    _ => 0,
                };
                let Some(revision) = self.advance(object.revision) else {
                    // A list says when each object changed last: long ago, and not what this proxy took to hear of it.
                    let events = self.list.add(object).await.map_err(decoding_ended)?;
                    return self.send(events, None).await;
                };
                let (event, triggered) = object::applied(&object);
                let update = Update { events: event.into_iter().collect(), revision: Some(revision), triggered };
                self.updates.send(update).await.map_err(|_| Ended::Stopped)?;
            }
            Said::Delete(deleted) => {
                let revision = self.advance(deleted.revision);
                self.send(deleted.key.as_ref().and_then(object::deleted).into_iter().collect(), revision).await?;
            }
            Said::InitDone(done) => {
                let ResumeToken { store_id, revision } = done.at.unwrap_or_default();
                tracing::info!(revision, store = store_id, "the control plane has said everything");
                let revision = Revision { store: store_id.into(), number: revision };
                self.resume = Some(revision.clone());
                // Together: new Services must not be seen with the slices of the list before.
                self.send(each_kind(Event::InitDone), Some(revision)).await?;
            }
            Said::Progress(progress) => {
                let token = progress.at.unwrap_or_default();
                let revision = self.advance(token.revision);
                self.send(Vec::new(), revision).await?;
            }
            Said::Relist(relist) => {
                self.resume = None;
                return Err(Ended::Relist(relist));
            }
        }
        Ok(())
    }

    /// Hands on all that has come of a list.
    async fn finish_list(&mut self) -> Result<(), Ended> {
        while !self.list.is_empty() {
            let events = self.list.rest().await.map_err(decoding_ended)?;
            self.send(events, None).await?;
        }
        Ok(())
    }

    /// Moves on; says nothing while a list is incomplete.
    fn advance(&mut self, number: u64) -> Option<Revision> {
        let at = self.resume.as_mut()?;
        at.number = number;
        Some(at.clone())
    }

    async fn send(&self, events: Vec<Event>, revision: Option<Revision>) -> Result<(), Ended> {
        if events.is_empty() && revision.is_none() {
            return Ok(());
        }
        self.updates.send(Update { events, revision, triggered: None }).await.map_err(|_| Ended::Stopped)
    }
}

async fn register(registration: Option<&mut Registration>, client: &mut Client) -> Result<(), Ended> {
    let Some(registration) = registration else { return Ok(()) };
    let refused = |status| Ended::Refused { what: "registering this node", status };
    registration.ensure_node(client).await.map_err(refused)
}

/// Never, where nothing is registered.
async fn addresses_changed(registration: Option<&mut Registration>) {
    match registration {
        Some(registration) => registration.changed().await,
        None => std::future::pending().await,
    }
}

/// Decoding does not fail but by a fault of this program's, or because that ends.
fn decoding_ended(error: JoinError) -> Ended {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Ended::Stopped,
    }
}

fn token(at: &Revision) -> ResumeToken {
    ResumeToken { store_id: at.store.to_string(), revision: at.number }
}

fn each_kind(event: fn(model::Kind) -> Event) -> Vec<Event> {
    KINDS.into_iter().filter_map(object::kind).map(event).collect()
}

fn delays() -> <ExponentialBuilder as BackoffBuilder>::Backoff {
    let builder = ExponentialBuilder::new().with_min_delay(MIN_DELAY).with_max_delay(MAX_DELAY);
    builder.with_jitter().without_max_times().build()
}
