//! What came of a dial.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;

/// What a server said, and what the client's own socket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod that answered.
    pub by: String,
    /// The client's address as the server saw it.
    pub source: SocketAddr,
    /// The server's address as the client's socket has it (`getpeername`).
    pub peer: SocketAddr,
}

impl Answer {
    /// From a server's line `name peer-address`.
    pub(super) fn parse(line: &str, peer: SocketAddr) -> io::Result<Self> {
        let parts = line.trim_end().split_once(' ').and_then(|(by, source)| Some((by, source.parse().ok()?)));
        let (by, source) =
            parts.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("a server said `{line}`")))?;
        Ok(Self { by: by.to_owned(), source, peer })
    }
}

/// What came of a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A pod answered.
    Answered(Answer),
    /// As from a closed port: a TCP reset or ICMP port unreachable.
    Refused,
    /// ICMP said that there is no way to the host or network, or that it is prohibited.
    Unreachable,
    /// Nothing came.
    Timeout,
    /// Any other error of the client's socket.
    Failed(String),
}

impl From<&io::Error> for Outcome {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES) => Self::Unreachable,
            Some(Errno::ETIMEDOUT) => Self::Timeout,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(answer) => {
                write!(f, "answered by {}, which saw {}, as {}", answer.by, answer.source, answer.peer)
            }
            Self::Refused => f.write_str("refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Timeout => f.write_str("timeout"),
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

/// An outcome and how long it took.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

impl Reply {
    /// What the pod said that answered; fails where none did.
    pub fn answer(&self) -> anyhow::Result<&Answer> {
        match &self.outcome {
            Outcome::Answered(answer) => Ok(answer),
            other => anyhow::bail!("expected an answer: {other} after {:?}", self.elapsed),
        }
    }

    /// Whether this pod answered.
    pub fn is_by(&self, pod: &str) -> bool {
        matches!(&self.outcome, Outcome::Answered(answer) if answer.by == pod)
    }

    /// Who answered; fails where nobody did.
    pub fn by(&self) -> anyhow::Result<&str> {
        Ok(&self.answer()?.by)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.1?})", self.outcome, self.elapsed)
    }
}
