//! One TCP connection, or SCTP association, and its greeting.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use nix::errno::Errno;
use socket2::{Protocol, SockAddr, Type};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use super::outcome::Answer;
use crate::netns::NetNs;

/// Connects from a namespace.
pub(crate) async fn dial(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    dial_over(Protocol::TCP, netns, from, to).await
}

async fn dial_over(
    protocol: Protocol,
    netns: &NetNs,
    from: Option<SocketAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = netns.socket(to.ip(), Type::STREAM, protocol, from).await?;
    // Closing sends a reset and leaves nothing in TIME_WAIT: a stream of probes does not run out of ports, and the
    // same source port can be used again at once. SCTP has no such state, and its reset (ABORT) would leave the server
    // waiting: the kernel reports it as EPOLLERR alone (`sctp_poll`, seen on 6.1), which wakes no reader in tokio.
    if protocol == Protocol::TCP {
        socket.set_linger(Some(std::time::Duration::ZERO))?;
    }
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(error) => return Err(error),
    }
    // A refusal that comes while `connect` still sends, as it does without a wire in between, is kept from `poll` until the
    // next INIT, 3 s later (`sctp_v4_err`: the socket is owned by the user); `SO_ERROR` has it.
    if protocol == Protocol::SCTP
        && let Some(error) = socket.take_error()?
    {
        return Err(error);
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Connects and reads the server's greeting.
pub(super) async fn connect(
    netns: &NetNs,
    from: Option<SocketAddr>,
    to: SocketAddr,
) -> io::Result<(BufReader<TcpStream>, Answer)> {
    let stream = dial(netns, from, to).await?;
    stream.set_nodelay(true)?;
    greeting(stream).await
}

/// Reads the server's greeting.
async fn greeting(stream: TcpStream) -> io::Result<(BufReader<TcpStream>, Answer)> {
    let peer = stream.peer_addr()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "connected, and closed without a greeting"));
    }
    let answer = Answer::parse(&line, peer)?;
    Ok((stream, answer))
}

/// Connects, reads the greeting and closes.
pub(crate) async fn exchange(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<Answer> {
    connect(netns, from, to).await.map(|(_, answer)| answer)
}

/// The same over SCTP, whose one-to-one sockets are used as TCP's are.
pub(super) async fn exchange_sctp(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<Answer> {
    let stream = dial_over(Protocol::SCTP, netns, from, to).await?;
    greeting(stream).await.map(|(_, answer)| answer)
}
