//! One HTTP request.

use std::io;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;

use super::outcome::Answer;
use super::tcp;
use crate::netns::NetNs;

/// Asks for `/` and closes.
pub(super) async fn exchange(netns: &NetNs, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<Answer> {
    let stream = tcp::dial(netns, from, to).await?;
    let peer = stream.peer_addr()?;
    let response = ask(stream, to, "/").await?;
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!("status {}", response.status())));
    }
    Answer::parse(response.body(), peer)
}

/// `GET path` from a namespace.
pub(crate) async fn get(netns: &NetNs, to: SocketAddr, path: &str) -> io::Result<Response<String>> {
    ask(tcp::dial(netns, None, to).await?, to, path).await
}

async fn ask(stream: tokio::net::TcpStream, to: SocketAddr, path: &str) -> io::Result<Response<String>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get(path)
        .header(header::HOST, to.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok::<_, hyper::Error>(Response::from_parts(head, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(connection, exchange);
    let result = tokio::select! {
        result = &mut exchange => result,
        ended = &mut connection => match ended {
            // The server may close as soon as it has answered; the answer is then on its way.
            Ok(()) => exchange.await,
            Err(error) => Err(error),
        },
    };
    result.map_err(io::Error::other)
}
