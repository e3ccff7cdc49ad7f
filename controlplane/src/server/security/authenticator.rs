//! From a request to who asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::stream::{self, BoxStream, StreamExt};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use super::credentials::Credentials;
use super::identity::Identity;
use super::role::{Action, authorize};
use super::token::{Digest, digest};
use crate::server::status::refusal;

/// A certificate is looked at again at least this often: the clock may be set meanwhile.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// The other end of a connection.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// Its certificate, if TLS has seen and verified one.
    pub(crate) certificate: Option<Arc<PeerCertificate>>,
}

/// A certificate that TLS has verified.
pub(crate) struct PeerCertificate {
    /// The client's own first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Whose it is and how long it is valid, or why that can't be told.
    pub(super) identity: Result<(Identity, SystemTime), String>,
    /// The generation of the credentials that has accepted it last.
    generation: AtomicU64,
}

/// By what a client shows who it is.
#[derive(Clone)]
pub(crate) enum Proof {
    /// By nothing.
    None,
    /// By a header that means nothing.
    Malformed,
    /// By its certificate; a token beside it is not looked at.
    Certificate(Arc<PeerCertificate>),
    /// By a bearer token.
    Token(Digest),
}

/// Tells who asks, before a service sees the request.
#[derive(Clone)]
pub(crate) struct Authenticator(pub(crate) watch::Receiver<Arc<Credentials>>);

/// Who asks. Every request that an [`Authenticator`] has let through has one.
#[derive(Clone)]
pub(crate) struct Caller {
    identity: Identity,
    proof: Proof,
    credentials: watch::Receiver<Arc<Credentials>>,
}

/// Who has sent a request.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("the request has come by a way on which nobody is asked who he is"))
}

// === impl PeerCertificate ===

impl PeerCertificate {
    /// A chain that the credentials of a generation have accepted.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, generation: u64) -> Self {
        let own = chain.first().ok_or_else(|| "it is empty".to_owned());
        let identity = own.and_then(Identity::of_certificate);
        PeerCertificate { chain, identity, generation: AtomicU64::new(generation) }
    }

    pub(super) fn was_accepted_in(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Relaxed) == generation
    }

    pub(super) fn accept_in(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
    }
}

// === impl Proof ===

impl Proof {
    fn of(request: &Request<()>) -> Self {
        let peer = request.extensions().get::<Peer>();
        if let Some(certificate) = peer.and_then(|peer| peer.certificate.clone()) {
            return Proof::Certificate(certificate);
        }
        let Some(header) = request.metadata().get("authorization") else { return Proof::None };
        let bearer = header.to_str().ok().and_then(|header| header.split_once(' '));
        match bearer {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Proof::Token(digest(token.trim())),
            _ => Proof::Malformed,
        }
    }

    /// When it ends by itself.
    fn not_after(&self) -> Option<SystemTime> {
        match self {
            Proof::Certificate(certificate) => certificate.identity.as_ref().ok().map(|(_, not_after)| *not_after),
            _ => None,
        }
    }
}

// === impl Authenticator ===

impl Interceptor for Authenticator {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let proof = Proof::of(&request);
        let identified = self.0.borrow().identify(&proof);
        let identity = identified.map_err(|reason| {
            let peer = request.extensions().get::<Peer>().map(|peer| peer.address);
            tracing::info!(?peer, reason, "refused a request: unauthenticated");
            Status::unauthenticated(reason)
        })?;
        request.extensions_mut().insert(Caller { identity, proof, credentials: self.0.clone() });
        Ok(request)
    }
}

// === impl Caller ===

impl Caller {
    /// The user's name.
    pub(crate) fn user(&self) -> &str {
        &self.identity.user
    }

    /// Whether the caller may do it; otherwise the answer to it.
    pub(crate) fn may(&self, action: Action<'_>) -> Result<(), Status> {
        authorize(&self.identity, action).map_err(|denied| {
            let status = refusal(Code::PermissionDenied, denied);
            tracing::info!(denied = status.message(), "refused a request: permission denied");
            status
        })
    }

    /// A stream that ends with an error once its caller would not be accepted any more.
    pub(crate) fn guard<T: Send + 'static>(
        self,
        stream: BoxStream<'static, Result<T, Status>>,
    ) -> BoxStream<'static, Result<T, Status>> {
        let lost = Box::pin(self.lost());
        stream::unfold(Some((stream, lost)), |state| async move {
            let (mut stream, mut lost) = state?;
            tokio::select! {
                biased;
                status = &mut lost => Some((Err(status), None)),
                next = stream.next() => next.map(|item| (item, Some((stream, lost)))),
            }
        })
        .boxed()
    }

    /// Ready once what the caller has shown is not accepted any more, or makes him someone else.
    async fn lost(mut self) -> Status {
        loop {
            let expiry = self.proof.not_after().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
            tokio::select! {
                changed = self.credentials.changed() => if changed.is_err() {
                    // The server ends, and its watches with it.
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep(expiry.unwrap_or(EXPIRY_INTERVAL).min(EXPIRY_INTERVAL)) => {}
            }
            let identified = self.credentials.borrow_and_update().identify(&self.proof);
            let reason = match identified {
                Ok(identity) if identity == self.identity => continue,
                Ok(identity) => format!("you were {}, and are {identity} now; connect again", self.identity),
                Err(reason) => reason,
            };
            tracing::info!(user = self.identity.user, reason, "a watch ends: unauthenticated");
            return Status::unauthenticated(reason);
        }
    }
}
