//! The bytes of a connection, watched for the reason that TLS gives when it ends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::{Code, Status};

use super::refusal::{Parties, Refusal};

/// Begins every TLS alert (RFC 8446, section 5.1): what a server that speaks TLS answers to HTTP/2 in the clear.
const ALERT: [u8; 2] = [21, 3];

/// Where the reason is put down; shared with the requests that fail because of it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    parties: Arc<Parties>,
    refusal: Arc<Mutex<Option<Refusal>>>,
}

/// A connection.
pub(super) struct Link {
    // TLS's state is much larger than a socket.
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    slot: Slot,
    /// Whether something has been read.
    has_begun: bool,
}

// === impl Slot ===

impl Slot {
    pub(super) fn new(parties: Parties) -> Self {
        Slot { parties: Arc::new(parties), refusal: Arc::default() }
    }

    pub(super) fn take(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// TLS could not be agreed on.
    pub(super) fn note_handshake(&self, error: &io::Error) {
        match tls_error(error) {
            Some(error) => self.put(self.parties.explain(error)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => self.put(self.parties.no_tls()),
            None => {}
        }
    }

    /// What a failed request is told: TLS's reason if there is one.
    pub(super) fn explain(&self, error: tonic::transport::Error) -> Status {
        match &*self.refusal.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(refusal) => Status::new(Code::Unauthenticated, refusal.to_string()),
            None => Status::from_error(error.into()),
        }
    }

    fn put(&self, refusal: Refusal) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }
}

// === impl Link ===

impl Link {
    pub(super) fn plain(stream: TcpStream, slot: Slot) -> Self {
        Link { stream: Either::Left(stream), slot, has_begun: false }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, slot: Slot) -> Self {
        Link { stream: Either::Right(Box::new(stream)), slot, has_begun: false }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Link { stream, slot, has_begun } = &mut *self;
        let from = buffer.filled().len();
        let polled = Pin::new(&mut *stream).poll_read(context, buffer);
        match &polled {
            Poll::Ready(Ok(())) if !*has_begun => {
                *has_begun = true;
                if matches!(stream, Either::Left(_)) && buffer.filled()[from..].starts_with(&ALERT) {
                    slot.put(slot.parties.needs_tls());
                }
            }
            Poll::Ready(Err(error)) => {
                if let Some(error) = tls_error(error) {
                    slot.put(slot.parties.explain(error));
                }
            }
            _ => {}
        }
        polled
    }
}

impl AsyncWrite for Link {
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

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
