//! Dialling as a client would, and saying exactly what came of it.

mod connection;
mod flow;
pub(crate) mod http;
mod outcome;
mod spread;
pub(crate) mod tcp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Response;

pub use connection::Connection;
pub use flow::Flow;
pub use outcome::{Answer, Outcome, Reply};
pub use spread::Spread;

use crate::kernel::kernel_has_sctp;
use crate::netns::NetNs;
use crate::runtime::block_on;

/// How a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connects and reads the greeting.
    Tcp,
    /// Sends one datagram from a connected socket and reads the answer.
    Udp,
    /// Asks for `/`.
    Http,
    /// Connects a one-to-one socket (RFC 6458) and reads the greeting.
    Sctp,
}

impl Protocol {
    /// TCP and UDP.
    pub const TRANSPORTS: [Self; 2] = [Self::Tcp, Self::Udp];

    /// TCP, UDP, and SCTP where the kernel has sockets of it.
    pub fn transports() -> &'static [Self] {
        if kernel_has_sctp() { &[Self::Tcp, Self::Udp, Self::Sctp] } else { &Self::TRANSPORTS }
    }
}

/// Dials from one namespace.
#[derive(Clone, Debug)]
pub struct Probe {
    netns: NetNs,
    patience: Duration,
    source_port: Option<u16>,
}

impl From<&NetNs> for Probe {
    fn from(netns: &NetNs) -> Self {
        Self { netns: netns.clone(), patience: Self::PATIENCE, source_port: None }
    }
}

impl Probe {
    /// How long a probe waits before it says [`Outcome::Timeout`]: longer than a busy machine takes.
    pub const PATIENCE: Duration = Duration::from_secs(10);
    /// How long a probe waits where silence is what is expected: shorter than TCP's first retransmission.
    pub const IMPATIENCE: Duration = Duration::from_millis(800);

    /// Waits as long as this for an answer.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// For a probe that is expected to see nothing.
    #[must_use]
    pub fn impatient(self) -> Self {
        self.patience(Self::IMPATIENCE)
    }

    /// Dials from this port each time.
    #[must_use]
    pub fn source_port(mut self, port: u16) -> Self {
        self.source_port = Some(port);
        self
    }

    /// One question, one answer.
    pub fn dial(&self, protocol: Protocol, to: SocketAddr) -> Reply {
        block_on(self.dial_async(protocol, to))
    }

    /// Connects over TCP and reads who answers.
    pub fn tcp(&self, to: SocketAddr) -> Reply {
        self.dial(Protocol::Tcp, to)
    }

    /// Sends one datagram and reads who answers.
    pub fn udp(&self, to: SocketAddr) -> Reply {
        self.dial(Protocol::Udp, to)
    }

    /// Asks over HTTP who answers.
    pub fn http(&self, to: SocketAddr) -> Reply {
        self.dial(Protocol::Http, to)
    }

    /// `GET path` over HTTP: the whole response.
    pub fn get(&self, to: SocketAddr, path: &str) -> Result<Response<String>> {
        let response = block_on(async { tokio::time::timeout(self.patience, http::get(&self.netns, to, path)).await });
        let what = || format!("GET {path} of {to} from {}", self.netns.name());
        response.context("it timed out").and_then(|response| Ok(response?)).with_context(what)
    }

    /// Dials `count` times, each time as a new connection or flow, and counts who answered.
    pub fn spread(&self, protocol: Protocol, to: SocketAddr, count: usize) -> Spread {
        block_on(spread::dial(self, protocol, to, count))
    }

    /// A TCP connection that stays open.
    pub fn open(&self, to: SocketAddr) -> Result<Connection> {
        block_on(async {
            let (stream, answer) = tokio::time::timeout(self.patience, tcp::connect(&self.netns, self.source(to), to))
                .await
                .context("it timed out")??;
            anyhow::Ok(Connection::new(stream, answer))
        })
        .with_context(|| format!("can't open a connection from {} to {to}", self.netns.name()))
    }

    /// A UDP socket that stays open: every datagram has the same source port.
    pub fn flow(&self, to: SocketAddr) -> Result<Flow> {
        block_on(Flow::open(&self.netns, self.source(to), to, self.patience))
            .with_context(|| format!("can't open a UDP socket in {} for {to}", self.netns.name()))
    }

    async fn dial_async(&self, protocol: Protocol, to: SocketAddr) -> Reply {
        let started = Instant::now();
        let source = self.source(to);
        let exchange = async {
            match protocol {
                Protocol::Tcp => tcp::exchange(&self.netns, source, to).await,
                Protocol::Sctp => tcp::exchange_sctp(&self.netns, source, to).await,
                Protocol::Udp => flow::exchange(&self.netns, source, to).await,
                Protocol::Http => http::exchange(&self.netns, source, to).await,
            }
        };
        let outcome = match tokio::time::timeout(self.patience, exchange).await {
            Ok(Ok(answer)) => Outcome::Answered(answer),
            Ok(Err(error)) => Outcome::from(&error),
            Err(_) => Outcome::Timeout,
        };
        Reply { outcome, elapsed: started.elapsed() }
    }

    fn source(&self, to: SocketAddr) -> Option<SocketAddr> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.source_port.map(|port| SocketAddr::new(any, port))
    }
}
