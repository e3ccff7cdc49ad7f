//! UDP: one question, or a flow of them from one source port.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Protocol, Type};
use tokio::net::UdpSocket;

use super::outcome::{Answer, Outcome, Reply};
use crate::netns::NetNs;
use crate::runtime::block_on;

/// A connected UDP socket that stays open, as an application keeps it: one that can't connect, or is told that its
/// connection was aborted, connects anew at the next question.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
    is_connected: AtomicBool,
    patience: Duration,
}

impl Flow {
    pub(super) async fn open(
        netns: &NetNs,
        from: Option<SocketAddr>,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        let socket = open(netns, from, to).await?;
        let is_connected = match socket.connect(to).await {
            // Where sockets are translated, it is `connect` that a Service without endpoints refuses.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => false,
            connected => connected.map(|()| true)?,
        };
        Ok(Self { socket, to, is_connected: is_connected.into(), patience })
    }

    /// Sends one datagram and waits for its answer.
    pub fn ask(&self) -> Reply {
        let started = Instant::now();
        // An error that belongs to an earlier datagram: its sender's own node may tell of a refusal twice.
        let error = self.socket.take_error().ok().flatten();
        let is_aborted = error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionAborted);
        let question = async {
            if is_aborted || !self.is_connected.load(Ordering::Relaxed) {
                self.is_connected.store(false, Ordering::Relaxed);
                self.socket.connect(self.to).await?;
                self.is_connected.store(true, Ordering::Relaxed);
            }
            ask(&self.socket).await
        };
        let outcome = match block_on(async { tokio::time::timeout(self.patience, question).await }) {
            Ok(Ok(answer)) => Outcome::Answered(answer),
            Ok(Err(error)) => Outcome::from(&error),
            Err(_) => Outcome::Timeout,
        };
        Reply { outcome, elapsed: started.elapsed() }
    }

    /// Changes how long [`Flow::ask`] waits.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The port that it sends from.
    pub fn source_port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }
}

/// Sends one datagram from a new socket and waits for its answer.
pub(super) async fn exchange(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<Answer> {
    ask(&connect(netns, from, to).await?).await
}

/// Connected, so that ICMP errors arrive, and answers only from the address that was dialled.
async fn connect(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(netns, from, to).await?;
    socket.connect(to).await?;
    Ok(socket)
}

async fn open(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(netns.socket(to.ip(), Type::DGRAM, Protocol::UDP, from).await?.into())
}

async fn ask(socket: &UdpSocket) -> io::Result<Answer> {
    let mut buffer = [0; 512];
    socket.send(b"who?").await?;
    let length = socket.recv(&mut buffer).await?;
    Answer::parse(&String::from_utf8_lossy(&buffer[..length]), socket.peer_addr()?)
}
