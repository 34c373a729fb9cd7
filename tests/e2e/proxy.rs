//! A TCP connection that a test can hold up or cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What becomes of the bytes that came from the server.
#[derive(Clone, Copy, PartialEq)]
pub enum Then {
    Pass,
    Cut,
}

/// Forwards connections to a server, until the test ends.
pub struct Proxy {
    pub address: SocketAddr,
    connections: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Proxy {
    /// `judge` is asked with each piece from the server, given how many bytes came before it over all connections.
    pub fn start(server: String, judge: impl Fn(u64) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (connections, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let proxy = Self { address, connections: connections.clone(), bytes: bytes.clone() };
        let judge = Arc::new(judge);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                connections.fetch_add(1, Ordering::SeqCst);
                let (from, to) = (client.try_clone().expect("handle"), upstream.try_clone().expect("handle"));
                thread::spawn(move || forward(from, to, |_| Then::Pass));
                let (judge, bytes) = (judge.clone(), bytes.clone());
                thread::spawn(move || {
                    forward(upstream, client, |count| judge(bytes.fetch_add(count as u64, Ordering::SeqCst)));
                });
            }
        });
        proxy
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// From the server.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, judge: impl Fn(usize) -> Then) {
    let mut piece = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if judge(count) == Then::Cut || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
