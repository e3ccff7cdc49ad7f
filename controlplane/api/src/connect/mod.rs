//! The way of a client to a control plane: TCP, TLS where the address says https, and who the client is.
//!
//! A server that asks for a certificate looks at it when TLS is already up for the client (TLS 1.3), so a refusal comes
//! with the first answer. gRPC would make "broken pipe" of it; [`Connection`] gives it back as what it is.

mod access;
mod link;
mod refusal;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

use crate::pem;
use crate::v1::control_plane_client::ControlPlaneClient;
pub use access::{Access, Invalid};
use link::{Link, Slot};
pub use refusal::Refusal;

/// A client of a control plane.
pub type Client = ControlPlaneClient<Connection>;

/// A connection to a control plane, over which the client says who it is. Cloning makes another handle.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
    authorization: Option<HeaderValue>,
    refusal: Slot,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address and the files do not go together.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] pem::Error),
    /// The server's address has no name that a certificate could have.
    #[error("{server} has no host that a certificate could be for")]
    Host {
        /// The server's address.
        server: String,
    },
    /// TLS failed: the server is not what it should be, or has refused the client.
    #[error("{0}")]
    Refused(Refusal),
    /// Nobody answers.
    #[error("cannot connect to {server}")]
    Unreachable {
        /// The server's address.
        server: String,
        /// Why not.
        source: tonic::transport::Error,
    },
}

/// Connects to the control plane at an endpoint; its settings hold, but for those that are TCP's.
///
/// # Errors
/// When a file can't be used, the server can't be reached, or is not who it should be.
pub async fn connect(endpoint: &Endpoint, access: &Access) -> Result<Client, Error> {
    let server = endpoint.uri().clone();
    access.check(&server)?;
    let tls = match access.tls()? {
        Some(config) => Some((Arc::new(config), server_name(&server)?)),
        None => None,
    };
    let authorization = access.authorization()?;
    let refusal = Slot::new(refusal::Parties { server: server.clone(), access: access.clone() });
    let slot = refusal.clone();
    let connector = service_fn(move |uri: Uri| dial(uri, tls.clone(), slot.clone()));
    let connected = endpoint.connect_with_connector(connector).await;
    let channel = connected.map_err(|source| match refusal.take() {
        Some(refusal) => Error::Refused(refusal),
        None => Error::Unreachable { server: access::shown(&server), source },
    })?;
    Ok(ControlPlaneClient::new(Connection { channel, authorization, refusal }))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn dial(
    server: Uri,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    slot: Slot,
) -> Result<TokioIo<Link>, BoxError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let stream = tcp.call(server).await?.into_inner();
    let Some((config, name)) = tls else { return Ok(TokioIo::new(Link::plain(stream, slot))) };
    match TlsConnector::from(config).connect(name, stream).await {
        Ok(stream) => Ok(TokioIo::new(Link::tls(stream, slot))),
        Err(error) => {
            slot.note_handshake(&error);
            Err(error.into())
        }
    }
}

fn server_name(server: &Uri) -> Result<ServerName<'static>, Error> {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    ServerName::try_from(host).map_err(|_| Error::Host { server: access::shown(server) })
}

// === impl Connection ===

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(context).map_err(|error| self.refusal.explain(error))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let refusal = self.refusal.clone();
        let answer = self.channel.call(request);
        Box::pin(async move { answer.await.map_err(|error| refusal.explain(error)) })
    }
}
