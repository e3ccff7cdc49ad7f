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
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt, service_fn};

use crate::pem;
use crate::v1::control_plane_client::ControlPlaneClient;
pub use access::{Access, Invalid};
use link::{Link, Slot};
pub use refusal::Refusal;

/// A client of a control plane.
pub type Client = ControlPlaneClient<Connection>;

/// A connection to a control plane, over which the client says who it is. Cloning makes another handle.
#[derive(Clone, Debug)]
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
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let way = Way::new(endpoint, access)?;
    let connected = endpoint.connect_with_connector(way.connector(tcp)).await;
    let channel = connected.map_err(|source| match way.refusal.take() {
        Some(refusal) => Error::Refused(refusal),
        None => Error::Unreachable { server: access::shown(endpoint.uri()), source },
    })?;
    Ok(way.client(channel))
}

/// A client that connects when it is first used, over TCP connections that `tcp` makes.
///
/// # Errors
/// When a file can't be used.
pub fn connect_lazily<C>(endpoint: &Endpoint, access: &Access, tcp: C) -> Result<Client, Error>
where
    C: Service<Uri, Response = TokioIo<TcpStream>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    let way = Way::new(endpoint, access)?;
    let channel = endpoint.connect_with_connector_lazy(way.connector(tcp));
    Ok(way.client(channel))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What connections to one server are made with.
struct Way {
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    authorization: Option<HeaderValue>,
    refusal: Slot,
}

impl Way {
    fn new(endpoint: &Endpoint, access: &Access) -> Result<Self, Error> {
        let server = endpoint.uri();
        access.check(server)?;
        let tls = match access.tls()? {
            Some(config) => Some((Arc::new(config), server_name(server)?)),
            None => None,
        };
        let refusal = Slot::new(refusal::Parties { server: server.clone(), access: access.clone() });
        Ok(Way { tls, authorization: access.authorization()?, refusal })
    }

    fn connector<C>(
        &self,
        tcp: C,
    ) -> impl Service<Uri, Response = TokioIo<Link>, Error = BoxError, Future: Send> + Send + 'static
    where
        C: Service<Uri, Response = TokioIo<TcpStream>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    {
        let (tls, slot) = (self.tls.clone(), self.refusal.clone());
        service_fn(move |uri: Uri| {
            let (tls, slot, tcp) = (tls.clone(), slot.clone(), tcp.clone());
            async move {
                let stream = tcp.oneshot(uri).await.map_err(Into::into)?.into_inner();
                let Some((config, name)) = tls else { return Ok(TokioIo::new(Link::plain(stream, slot))) };
                match TlsConnector::from(config).connect(name, stream).await {
                    Ok(stream) => Ok(TokioIo::new(Link::tls(stream, slot))),
                    Err(error) => {
                        slot.note_handshake(&error);
                        Err(error.into())
                    }
                }
            }
        })
    }

    fn client(self, channel: Channel) -> Client {
        let Way { authorization, refusal, .. } = self;
        ControlPlaneClient::new(Connection { channel, authorization, refusal })
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
