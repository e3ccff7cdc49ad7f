//! What every request passes on its way in and out: it is counted and timed by its last byte, a problem is logged, and a
//! stream that would outlive the server is ended.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{oneshot, watch};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::control_plane::stopping;
use super::until;
use crate::metrics::Metrics;

/// The methods that are told apart; the rest is made up by whoever asks, and must not fill the memory.
const METHODS: [&str; 9] = [
    "tollgate.v1.ControlPlane/Get",
    "tollgate.v1.ControlPlane/List",
    "tollgate.v1.ControlPlane/Apply",
    "tollgate.v1.ControlPlane/Delete",
    "tollgate.v1.ControlPlane/Watch",
    "tollgate.v1.ControlPlane/Status",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// Observes requests; a [`Layer`] around all services.
#[derive(Clone)]
pub(super) struct Requests {
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
}

/// The service with its requests observed.
#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    requests: Requests,
}

/// An answer that tells how it ended.
pub(super) struct ObservedBody<B> {
    /// `None` after its end.
    inner: Option<Pin<Box<B>>>,
    call: Call,
    /// Ready once the server is to stop.
    stopping: BoxFuture<'static, ()>,
    /// Dropped with the answer.
    _answering: oneshot::Sender<()>,
}

/// A request that has come to its end when its answer has: its handler may wait for the next part of it, and the
/// connection for the handler.
struct EndingBody {
    inner: Option<tonic::body::Body>,
    /// Ready once the answer is over.
    answered: oneshot::Receiver<()>,
}

/// A request under way.
struct Call {
    metrics: Arc<Metrics>,
    method: &'static str,
    begun: Instant,
    is_noted: bool,
}

// === impl Requests ===

impl Requests {
    pub(super) fn new(metrics: Arc<Metrics>, stopping: watch::Receiver<bool>) -> Self {
        Requests { metrics, stopping }
    }
}

impl<S> Layer<S> for Requests {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, requests: self.clone() }
    }
}

impl<S, R> Service<Request<tonic::body::Body>> for Observed<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<ObservedBody<R>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let Requests { metrics, stopping } = self.requests.clone();
        let mut call =
            Call { metrics, method: method_of(request.uri().path()), begun: Instant::now(), is_noted: false };
        let (answering, answered) = oneshot::channel();
        let request = request.map(|inner| tonic::body::Body::new(EndingBody { inner: Some(inner), answered }));
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            // An error without a body has its status among the headers.
            if let Some(status) = Status::from_header_map(response.headers()) {
                call.note(&status);
            }
            Ok(response.map(|inner| ObservedBody {
                inner: Some(Box::pin(inner)),
                call,
                stopping: Box::pin(until(stopping)),
                _answering: answering,
            }))
        })
    }
}

impl<B: Body> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let body = &mut *self;
        let Some(inner) = &mut body.inner else { return Poll::Ready(None) };
        match inner.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => {
                match &frame {
                    Some(Ok(frame)) => {
                        if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                            body.call.note(&status);
                        }
                    }
                    Some(Err(_)) | None => body.inner = None,
                }
                Poll::Ready(frame)
            }
            // Everything that it had to say has been taken. It may be waiting for its client; the server does not.
            Poll::Pending if !body.call.ends_by_itself() => {
                ready!(body.stopping.as_mut().poll(cx));
                body.inner = None;
                let status = stopping();
                body.call.note(&status);
                let mut trailers = HeaderMap::new();
                // A message of plain letters can always be a header.
                let _ = status.add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Body for EndingBody {
    type Data = <tonic::body::Body as Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let body = &mut *self;
        let Some(inner) = &mut body.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        // An error as well: it says that the other end is gone, which is all that there is to say.
        let _ = ready!(Pin::new(&mut body.answered).poll(cx));
        body.inner = None;
        Poll::Ready(None)
    }
}

// === impl Call ===

impl Call {
    /// Requests of the contract end once the server is to stop, watches after they have told where they stand.
    fn ends_by_itself(&self) -> bool {
        self.method.starts_with("tollgate.v1.")
    }

    fn note(&mut self, status: &Status) {
        if std::mem::replace(&mut self.is_noted, true) {
            return;
        }
        let (method, code) = (self.method, status.code());
        self.metrics.handled(method, name_of(code), self.begun.elapsed());
        match code {
            Code::Ok | Code::Cancelled => {}
            // To ask whether something is there is no problem.
            Code::NotFound => tracing::debug!(method, code = name_of(code), message = status.message(), "request"),
            // Every watch ends like this when the server does.
            Code::Unavailable if status.message() == stopping().message() => {
                tracing::debug!(method, "request ended by the server's end");
            }
            _ => tracing::warn!(method, code = name_of(code), message = status.message(), "request failed"),
        }
    }
}

impl Drop for Call {
    /// The client has gone away before the end.
    fn drop(&mut self) {
        self.note(&Status::cancelled(""));
    }
}

/// The method as metrics and log name it: `tollgate.v1.ControlPlane/Apply`.
fn method_of(path: &str) -> &'static str {
    let asked = path.trim_start_matches('/');
    METHODS.into_iter().find(|method| *method == asked).unwrap_or("unknown")
}

/// As the gRPC specification names it in other languages' libraries: `InvalidArgument`.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
