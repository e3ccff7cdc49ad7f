//! A server in the test's process, on a port and a directory of its own, and short words for what tests ask of it.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{
    ApplyRequest, ApplyResponse, DeleteRequest, Key, Kind, Object, ResumeToken, StatusRequest, WatchEvent, WatchRequest,
};
use tollgate_controlplane::client::{Access, Client, connect};
use tollgate_controlplane::server::{self, Config, serve};
use tonic::{Status, Streaming};

pub(crate) struct Server {
    config: Config,
    url: String,
    dir: TempDir,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), server::Error>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("data"), "10.96.0.0/16,fd00:96::/112".parse().unwrap());
        change(&mut config);
        Self::run(config, dir).await
    }

    async fn run(config: Config, dir: TempDir) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if config.security.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve(config.clone(), listener, shutdown));
        Server { config, url, dir, stop, served }
    }

    pub(crate) async fn stop(self) {
        self.stop_and_keep().await;
    }

    /// Stops the server and starts another one over the same directory, on another port.
    pub(crate) async fn restart(self) -> Self {
        let config = self.config.clone();
        let dir = self.stop_and_keep().await;
        Self::run(config, dir).await
    }

    async fn stop_and_keep(self) -> TempDir {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
        self.dir
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A connection of its own.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.url, &Access::default()).await.unwrap()
    }

    pub(crate) async fn store_id(&self) -> String {
        self.at().await.store_id
    }

    pub(crate) async fn revision(&self) -> u64 {
        self.at().await.revision
    }

    async fn at(&self) -> ResumeToken {
        self.client().await.status(StatusRequest::default()).await.unwrap().into_inner().at.unwrap()
    }
}

pub(crate) fn service(name: &str, mut spec: Value) -> Value {
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

pub(crate) async fn apply(client: &mut Client, manifest: &Value) -> Result<ApplyResponse, Status> {
    Ok(client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await?.into_inner())
}

pub(crate) async fn delete(client: &mut Client, key: Key) -> u64 {
    client.delete(DeleteRequest { key: Some(key), revision: 0 }).await.unwrap().into_inner().revision
}

pub(crate) fn names(objects: &[Object]) -> Vec<String> {
    objects.iter().map(|object| object.key.as_ref().unwrap().to_string()).collect()
}

pub(crate) async fn open_watch(
    client: &mut Client,
    kinds: &[Kind],
    resume: Option<ResumeToken>,
) -> Streaming<WatchEvent> {
    let kinds = kinds.iter().map(|kind| i32::from(*kind)).collect();
    client.watch(WatchRequest { kinds, resume, client: "test".into() }).await.unwrap().into_inner()
}

/// A watch on a connection of its own that resumes after a revision.
pub(crate) async fn watch_from(server: &Server, kinds: &[Kind], revision: u64) -> Streaming<WatchEvent> {
    let token = ResumeToken { store_id: server.store_id().await, revision };
    open_watch(&mut server.client().await, kinds, Some(token)).await
}

pub(crate) async fn next(watch: &mut Streaming<WatchEvent>) -> Event {
    watch.message().await.unwrap().expect("the watch ended").event.unwrap()
}

/// The next events in short: `init 3`, `apply 4 service default/web`, `delete 5 node n`, `done 5`.
pub(crate) async fn events(watch: &mut Streaming<WatchEvent>, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        lines.push(match next(watch).await {
            Event::Init(init) => format!("init {}", init.at.unwrap().revision),
            Event::Apply(object) => format!("apply {} {}", object.revision, object.key.unwrap()),
            Event::Delete(deleted) => format!("delete {} {}", deleted.revision, deleted.key.unwrap()),
            Event::InitDone(done) => format!("done {}", done.at.unwrap().revision),
            Event::Relist(relist) => format!("relist {}", relist.message),
            Event::Progress(_) => continue,
        });
    }
    lines
}
