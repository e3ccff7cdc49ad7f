//! A client of the control plane that dials from a namespace.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tollgate_api::connect::{Access, Client as Inner, connect_lazily};
use tollgate_api::v1::{ApplyRequest, DeleteRequest, GetRequest, Key, Object, StatusRequest};
use tonic::transport::Endpoint;
use tower::service_fn;

use crate::netns::NetNs;
use crate::probe::tcp;
use crate::runtime::{block_on, runtime};

/// Reads and writes objects, and remembers the newest revision that it has written.
#[derive(Debug)]
pub struct Client {
    inner: Inner,
    newest: AtomicU64,
}

impl Client {
    /// A client that dials `to` from `netns` when it is first used, and again whenever the connection is lost; over TLS if
    /// it has an `access`.
    pub fn new(netns: &NetNs, to: SocketAddr, access: Option<&Access>) -> Result<Self> {
        let netns = netns.clone();
        let connector = service_fn(move |_| {
            let netns = netns.clone();
            async move {
                let stream = tcp::dial(&netns, None, to).await?;
                // A request is two small writes: with Nagle's delay the second waits 40 ms for an acknowledgement.
                stream.set_nodelay(true)?;
                std::io::Result::Ok(TokioIo::new(stream))
            }
        });
        let _guard = runtime().enter();
        let scheme = if access.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{to}")).expect("an address makes a URI");
        let inner = connect_lazily(&endpoint, access.unwrap_or(&Access::default()), connector)?;
        Ok(Self { inner, newest: AtomicU64::new(0) })
    }

    /// Creates or replaces an object; returns it as stored.
    pub fn apply(&self, object: impl Into<Value>) -> Result<Value> {
        block_on(self.apply_one(object.into()))
    }

    /// Creates or replaces many objects, up to `writers` at one time; returns them as stored, in their order.
    pub fn apply_all(&self, objects: Vec<Value>, writers: usize) -> Result<Vec<Value>> {
        let writes = stream::iter(objects).map(|object| self.apply_one(object)).buffered(writers.max(1));
        block_on(writes.try_collect())
    }

    async fn apply_one(&self, object: Value) -> Result<Value> {
        let request = ApplyRequest { json: serde_json::to_vec(&object)? };
        let response = self.inner.clone().apply(request).await;
        let response = response
            .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
            .with_context(|| format!("can't apply {object}"))?;
        let stored = response.into_inner().object.context("the answer has no object")?;
        self.newest.fetch_max(stored.revision, Ordering::Relaxed);
        parse(&stored)
    }

    /// Removes an object.
    pub fn delete(&self, key: Key) -> Result<()> {
        let what = format!("can't delete {key}");
        let response = block_on(self.inner.clone().delete(DeleteRequest { key: Some(key), revision: 0 }));
        let response = response.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()));
        self.newest.fetch_max(response.context(what)?.into_inner().revision, Ordering::Relaxed);
        Ok(())
    }

    /// Reads an object.
    pub fn get(&self, key: Key) -> Result<Value> {
        let what = format!("can't get {key}");
        let response = block_on(self.inner.clone().get(GetRequest { key: Some(key) })).context(what)?;
        parse(&response.into_inner().object.context("the answer has no object")?)
    }

    /// The store's newest revision.
    pub fn revision(&self) -> Result<u64> {
        let response = block_on(self.inner.clone().status(StatusRequest { wait_for_revision: 0 }))
            .context("can't ask the control plane for its status")?;
        Ok(response.into_inner().at.context("the answer has no revision")?.revision)
    }

    /// The newest revision that this client has written.
    pub fn newest_write(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Forgets what it has written: the store that it wrote to is gone.
    pub(crate) fn forget_writes(&self) {
        self.newest.store(0, Ordering::Relaxed);
    }
}

fn parse(object: &Object) -> Result<Value> {
    serde_json::from_slice(&object.json).context("the stored object is not JSON")
}
