//! UDP: one question, or a flow of them from one source port.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Protocol, SockAddr, Type};
use tokio::net::UdpSocket;

use super::outcome::{Answer, Outcome, Reply};
use crate::netns::NetNs;
use crate::runtime::block_on;

/// A connected UDP socket that stays open.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
    patience: Duration,
}

impl Flow {
    pub(super) async fn open(
        netns: &NetNs,
        from: Option<SocketAddr>,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        Ok(Self { socket: connect(netns, from, to).await?, patience })
    }

    /// Sends one datagram and waits for its answer.
    pub fn ask(&self) -> Reply {
        let started = Instant::now();
        // An error that belongs to an earlier datagram: its sender's own node may tell of a refusal twice.
        let _ = self.socket.take_error();
        let outcome = match block_on(async { tokio::time::timeout(self.patience, ask(&self.socket)).await }) {
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

async fn connect(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = netns.socket(to.ip(), Type::DGRAM, Protocol::UDP, from).await?;
    // Connected, so that ICMP errors arrive, and answers only from the address that was dialled.
    socket.connect(&SockAddr::from(to))?;
    UdpSocket::from_std(socket.into())
}

async fn ask(socket: &UdpSocket) -> io::Result<Answer> {
    let mut buffer = [0; 512];
    socket.send(b"who?").await?;
    let length = socket.recv(&mut buffer).await?;
    Answer::parse(&String::from_utf8_lossy(&buffer[..length]), socket.peer_addr()?)
}
