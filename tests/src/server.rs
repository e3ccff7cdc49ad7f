//! What runs in a pod: small servers that say who they are and whom they see.
//!
//! - TCP on [`TCP_PORT`]: one line `name peer-address` upon connect, then every line comes back.
//! - UDP on [`UDP_PORT`]: each datagram is answered with `name peer-address`.
//! - SCTP on [`SCTP_PORT`], where the kernel has it: as TCP.
//! - HTTP on [`HTTP_PORT`]: `GET /` is answered with `name peer-address`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::kernel::kernel_has_sctp;
use crate::netns::NetNs;
use crate::runtime::{block_on, runtime};

/// The HTTP server's port.
pub const HTTP_PORT: u16 = 8080;
/// The TCP server's port.
pub const TCP_PORT: u16 = 9090;
/// The UDP server's port.
pub const UDP_PORT: u16 = 9091;
/// The SCTP server's port.
pub const SCTP_PORT: u16 = 9092;

/// Connections that may wait to be accepted: more than a burst of a load stream has.
const BACKLOG: i32 = 4096;

/// The servers of one namespace; dropped, they stop, and their connections close.
#[derive(Debug)]
pub struct Servers {
    /// `Some` until drop, which waits for their end.
    tasks: Option<JoinSet<()>>,
}

impl Servers {
    /// Starts all of them in a namespace, for both families; they listen when this returns.
    pub fn start(netns: &NetNs) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let _guard = runtime().enter();
        for ip in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let name = netns.name().to_owned();
            let tcp = TcpListener::from_std(listen(netns, ip, TCP_PORT, Protocol::TCP)?.into())?;
            let http = TcpListener::from_std(listen(netns, ip, HTTP_PORT, Protocol::TCP)?.into())?;
            let udp = UdpSocket::from_std(listen(netns, ip, UDP_PORT, Protocol::UDP)?.into())?;
            if kernel_has_sctp() {
                let sctp = TcpListener::from_std(listen(netns, ip, SCTP_PORT, Protocol::SCTP)?.into())?;
                tasks.spawn(serve_stream(sctp, name.clone()));
            }
            tasks.spawn(serve_stream(tcp, name.clone()));
            tasks.spawn(serve_http(http, name.clone()));
            tasks.spawn(serve_udp(udp, name));
        }
        Ok(Self { tasks: Some(tasks) })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(mut tasks) = self.tasks.take() {
            // Whoever stops a server may count on it: the next connect is refused.
            block_on(tasks.shutdown());
        }
    }
}

fn listen(netns: &NetNs, ip: IpAddr, port: u16, protocol: Protocol) -> Result<Socket> {
    let open = move || -> std::io::Result<Socket> {
        let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let kind = if protocol == Protocol::UDP { Type::DGRAM } else { Type::STREAM };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        if ip.is_ipv6() {
            // A socket for each family reports its peers in their own family.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::from(SocketAddr::new(ip, port)))?;
        if kind == Type::STREAM {
            socket.listen(BACKLOG)?;
        }
        Ok(socket)
    };
    netns.run(open).with_context(|| format!("can't listen on port {port} in {}", netns.name()))
}

async fn serve_stream(listener: TcpListener, name: String) {
    // Dropped with this task, the set ends every connection.
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let name = name.clone();
                connections.spawn(async move {
                    // The client may go at any time, which is its business.
                    let _ = greet_and_echo(stream, &name, peer).await;
                });
            }
            // Out of descriptors, say: the client sees it.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn greet_and_echo(stream: TcpStream, name: &str, peer: SocketAddr) -> std::io::Result<()> {
    // SCTP has an option of its own for it.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{name} {peer}\n").as_bytes()).await?;
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).await? > 0 {
        stream.write_all(&line).await?;
        line.clear();
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, name: String) {
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error for an earlier answer shows up here, and is no reason to stop.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(format!("{name} {peer}").as_bytes(), peer).await;
        }
    }
}

async fn serve_http(listener: TcpListener, name: String) {
    let answer = get(move |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { format!("{name} {peer}\n") });
    let app = Router::new().route("/", answer).into_make_service_with_connect_info::<SocketAddr>();
    // `serve` retries every error of accept.
    let _ = axum::serve(listener, app).await;
}
