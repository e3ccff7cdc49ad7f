//! Connections, as they are ready for requests: after the TLS handshake, where there is TLS.
//!
//! Handshakes run beside each other, so that a client which does not go on holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream;
use rustls::{AlertDescription, CertificateError, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::authenticator::{Peer, PeerCertificate};
use super::credentials::Credentials;

/// As long as clients may take for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// As long as a client has to read why it was refused.
const LINGER: Duration = Duration::from_secs(1);
/// Between attempts to accept while the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener and the handshakes that go on.
pub(crate) struct Incoming {
    listener: TcpListener,
    credentials: watch::Receiver<Arc<Credentials>>,
    handshakes: JoinSet<Option<Connection>>,
}

/// A connection that is ready for requests.
pub(crate) struct Connection {
    // TLS's state is much larger than a socket.
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    peer: Peer,
}

// === impl Incoming ===

impl Incoming {
    pub(crate) fn new(listener: TcpListener, credentials: watch::Receiver<Arc<Credentials>>) -> Self {
        Incoming { listener, credentials, handshakes: JoinSet::new() }
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut incoming| async move { Some((Ok(incoming.next().await), incoming)) })
    }

    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        if let Some(connection) = self.take(stream, address) {
                            return connection;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = ended {
                        return connection;
                    }
                }
            }
        }
    }

    /// The connection if it is ready at once; otherwise its handshake begins.
    fn take(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        // With Nagle's algorithm an answer waits for the client's delayed acknowledgement: 40 ms for every write.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "cannot switch off Nagle's algorithm");
        }
        let (tls, generation) = {
            let credentials = self.credentials.borrow();
            (credentials.tls.clone(), credentials.generation)
        };
        let Some(config) = tls else {
            return Some(Connection { stream: Either::Left(stream), peer: Peer { address, certificate: None } });
        };
        self.handshakes.spawn(async move {
            let handshake = shake_hands(config, generation, stream, address);
            if let Ok(connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                return connection;
            }
            tracing::info!(%address, "refused a connection: no TLS handshake within {HANDSHAKE_TIMEOUT:?}");
            None
        });
        None
    }
}

async fn shake_hands(
    config: Arc<ServerConfig>,
    generation: u64,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<Connection> {
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
            let certificate = chain.map(|chain| Arc::new(PeerCertificate::new(chain, generation)));
            Some(Connection { stream: Either::Right(Box::new(stream)), peer: Peer { address, certificate } })
        }
        Err((error, mut stream)) => {
            match error.get_ref().and_then(|error| error.downcast_ref()) {
                Some(error) => tracing::info!(%address, "refused a connection: {}", explain(error)),
                // A probe of a load balancer, say.
                None => tracing::debug!(%address, %error, "a connection ended before its TLS handshake"),
            }
            // What the client has sent meanwhile must be read: closing a socket with unread data resets the connection,
            // and a reset may overtake the alert that says why (RFC 1122, 4.2.2.13).
            let linger = async {
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut (&mut stream).take(1 << 20), &mut tokio::io::sink()).await;
            };
            let _ = tokio::time::timeout(LINGER, linger).await;
            None
        }
    }
}

fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(_) => {
            "the client does not speak TLS; its address of this server must begin with https://".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the client's certificate is of none of the CAs in --client-ca-file".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the client's certificate has expired".to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "the client does not know the CA of this server's certificate".to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!("the client does not take this server's certificate: {alert:?}"),
        other => other.to_string(),
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
