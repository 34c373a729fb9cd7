//! Stands between a daemon and its software TPM: makes every command slow, and counts them. The daemon's tests use it, too.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub struct Proxy {
    pub tcti: String,
    commands: Arc<AtomicU64>,
}

impl Proxy {
    /// For a TCTI that ends in `port=…`. The TSS makes one connection a command. Its threads end with the process.
    pub fn start(tcti: &str, latency: Duration) -> io::Result<Self> {
        let real: u16 = tcti
            .rsplit_once("port=")
            .and_then(|(_, port)| port.parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the TCTI names no port"))?;
        // The control port is the next one.
        let (data, control) = loop {
            let data = TcpListener::bind("127.0.0.1:0")?;
            let port = data.local_addr()?.port();
            if let Some(control) = port.checked_add(1).and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok()) {
                break (data, control);
            }
        };
        let tcti = format!("swtpm:host=127.0.0.1,port={}", data.local_addr()?.port());
        let commands = Arc::new(AtomicU64::new(0));
        let counter = commands.clone();
        thread::spawn(move || {
            for client in data.incoming().flatten() {
                counter.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || forward(client, real, latency));
            }
        });
        thread::spawn(move || {
            for client in control.incoming().flatten() {
                thread::spawn(move || forward(client, real + 1, Duration::ZERO));
            }
        });
        Ok(Self { tcti, commands })
    }

    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }
}

fn forward(client: TcpStream, port: u16, latency: Duration) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    // What the test is about: a chip that takes its time.
    thread::sleep(latency);
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let up = thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = up.join();
}
