//! What answers: every server says which address it was reached at, over TCP and UDP.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;

/// Serves at an address until the process ends.
pub(crate) fn start(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let socket = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            // A client that has gone is its own business.
            let _ = connection.and_then(|mut it| it.write_all(address.to_string().as_bytes()));
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(address.to_string().as_bytes(), client);
        }
    });
}
