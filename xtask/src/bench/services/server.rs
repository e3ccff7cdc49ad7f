//! The server of the bench: answers one byte with one byte that says which port was dialled.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockAddr, Socket, Type};
use tollgate_lab::NetNs;

/// The ports that it listens on, on every address that its namespace takes for its own.
pub(super) const PORTS: [u16; 2] = [7001, 7002];

/// How long a client waits: what a busy machine may take, and then some.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts it, for as long as this process lives.
pub(super) fn start(netns: &NetNs) -> Result<()> {
    for port in PORTS {
        let listen = move || TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
        let listener = netns.run(listen).with_context(|| format!("cannot listen on port {port}"))?;
        let serve = move || {
            for stream in listener.incoming().flatten() {
                // A client that goes early is its own business.
                let _ = answer(stream, port);
            }
        };
        std::thread::Builder::new().name(format!("bench-{port}")).spawn(serve).context("cannot start a thread")?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream, port: u16) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = [0];
    stream.read_exact(&mut question)?;
    stream.write_all(&[tag(port)])?;
    // The client closes first, by a reset.
    let _ = stream.read(&mut question);
    Ok(())
}

fn tag(port: u16) -> u8 {
    if port == PORTS[0] { 0 } else { 1 }
}

/// Connects, asks, and closes; returns the index of the port that answered. Called in the client's namespace.
///
/// Closing sends a reset: nothing stays in TIME_WAIT, and ports do not run out.
pub(super) fn ask(to: SocketAddr) -> Result<usize> {
    ask_within(to, PATIENCE)
}

/// As [`ask`], for a Service that may not be there yet: a connect whose first packet was lost would wait a second until TCP
/// sends it again.
pub(super) fn ask_within(to: SocketAddr, patience: Duration) -> Result<usize> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&SockAddr::from(to), patience)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[0])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    ensure!(answer[0] < 2, "an answer from somebody else: {answer:?}");
    Ok(answer[0].into())
}
