//! A control plane that checks nothing: what a proxy must be ready for.
//!
//! The real one refuses most objects that do not validate, so it can't show what a proxy does with them; a Kubernetes API
//! server of another version, or one with an admission webhook of its own, may well hand them out. This one speaks the same
//! contract over the same transport, and serves the bytes that it is given.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tollgate_api::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{
    ApplyRequest, ApplyResponse, DeleteRequest, DeleteResponse, Deleted, GetRequest, GetResponse, Init, InitDone, Key,
    Kind, ListRequest, ListResponse, Object, ResumeToken, StatusRequest, StatusResponse, WatchEvent, WatchRequest,
};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::address::Family;
use crate::cluster::Host;
use crate::runtime::{block_on, runtime};

const PORT: u16 = 7441;

/// A source of objects as they are, valid or not.
#[derive(Debug)]
pub struct RawSource {
    state: Arc<Mutex<State>>,
    listen: SocketAddr,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    objects: Vec<Object>,
    watchers: Vec<mpsc::UnboundedSender<Event>>,
}

impl RawSource {
    /// Serves on a host, from an empty store.
    pub fn start(host: &Host) -> Result<Self> {
        let listen = SocketAddr::new(host.ip(Family::V4), PORT);
        let open = move || -> std::io::Result<std::net::TcpListener> {
            let listener = std::net::TcpListener::bind(listen)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = host.netns().run(open).with_context(|| format!("can't listen on {listen}"))?;
        let state = Arc::<Mutex<State>>::default();
        let _guard = runtime().enter();
        let incoming = TcpIncoming::from(TcpListener::from_std(listener)?).with_nodelay(Some(true));
        let service = ControlPlaneServer::new(Service(state.clone()));
        let server = runtime().spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Ok(Self { state, listen, server })
    }

    /// Where proxies find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Serves an object under the name that it says itself; returns the revision.
    pub fn apply(&self, object: impl Into<Value>) -> Result<u64> {
        let object = object.into();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = match object["kind"].as_str() {
            Some("Service") => Kind::Service,
            Some("EndpointSlice") => Kind::EndpointSlice,
            Some("Node") => Kind::Node,
            other => anyhow::bail!("no proxy watches {other:?}"),
        };
        let key = Key::new(kind, word(&object["metadata"]["namespace"]), word(&object["metadata"]["name"]));
        Ok(self.apply_bytes(key, object.to_string().into_bytes()))
    }

    /// Serves these bytes as the object of that name; returns the revision.
    pub fn apply_bytes(&self, key: Key, json: Vec<u8>) -> u64 {
        let mut state = lock(&self.state);
        state.revision += 1;
        let object = Object { key: Some(key), revision: state.revision, json };
        state.objects.retain(|other| other.key != object.key);
        state.objects.push(object.clone());
        state.tell(&Event::Apply(object))
    }

    /// Takes an object away; returns the revision.
    pub fn delete(&self, key: Key) -> u64 {
        let mut state = lock(&self.state);
        state.revision += 1;
        state.objects.retain(|other| other.key.as_ref() != Some(&key));
        let deleted = Deleted { key: Some(key), revision: state.revision };
        state.tell(&Event::Delete(deleted))
    }
}

impl Drop for RawSource {
    fn drop(&mut self) {
        self.server.abort();
        // It has been aborted: that it ended so is no news.
        let _ = block_on(&mut self.server);
    }
}

impl State {
    fn tell(&mut self, event: &Event) -> u64 {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
        self.revision
    }

    fn token(&self) -> Option<ResumeToken> {
        Some(ResumeToken { store_id: "raw".into(), revision: self.revision })
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The state is whole after every statement.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Service(Arc<Mutex<State>>);

#[tonic::async_trait]
impl ControlPlane for Service {
    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    /// Everything, then every change. A token is of no use: the list comes again, which a client must take as well.
    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (events, received) = mpsc::unbounded_channel();
        let mut state = lock(&self.0);
        let list = state.objects.iter().cloned().map(Event::Apply);
        let begin = Event::Init(Init { at: state.token() });
        let end = Event::InitDone(InitDone { at: state.token() });
        for event in [begin].into_iter().chain(list).chain([end]) {
            // The receiver is in the next line but two.
            let _ = events.send(event);
        }
        state.watchers.push(events);
        let stream = stream::unfold(received, async |mut received| {
            let event = received.recv().await?;
            Some((Ok(WatchEvent { event: Some(event) }), received))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let key = request.into_inner().key;
        let found = lock(&self.0).objects.iter().find(|object| object.key == key).cloned();
        found.map(|object| Response::new(GetResponse { object: Some(object) })).ok_or_else(|| Status::not_found("no"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(Status::unimplemented("proxies watch"))
    }

    async fn apply(&self, _: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        Err(Status::unimplemented("only the test writes"))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Err(Status::unimplemented("only the test writes"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let at = lock(&self.0).token();
        Ok(Response::new(StatusResponse { at, ..StatusResponse::default() }))
    }
}
