//! A TCP connection that is held open, to see whether it survives.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Probe;
use super::outcome::Answer;
use crate::runtime::block_on;

/// An open TCP connection to a pod's server.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    answer: Answer,
    pings: u64,
}

impl Connection {
    pub(super) fn new(stream: BufReader<TcpStream>, answer: Answer) -> Self {
        Self { stream, answer, pings: 0 }
    }

    /// Who accepted it.
    pub fn by(&self) -> &str {
        &self.answer.by
    }

    /// What the server said upon connect.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The client's own address and port.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// Sends a line and waits until the server has sent it back.
    pub fn ping(&mut self) -> Result<()> {
        self.ping_within(Probe::PATIENCE)
    }

    /// As [`Connection::ping`], with a patience of its own.
    pub fn ping_within(&mut self, patience: Duration) -> Result<()> {
        self.pings += 1;
        let line = format!("ping {}\n", self.pings);
        let exchange = async {
            self.stream.write_all(line.as_bytes()).await?;
            let mut echo = String::new();
            self.stream.read_line(&mut echo).await?;
            if echo == line {
                Ok(())
            } else {
                Err(io::Error::new(ErrorKind::UnexpectedEof, format!("sent `{line}`, got `{echo}`")))
            }
        };
        block_on(async { tokio::time::timeout(patience, exchange).await })
            .context("it timed out")
            .and_then(|result| Ok(result?))
            .with_context(|| format!("ping {} on the connection held by {}", self.pings, self.answer.by))
    }
}
