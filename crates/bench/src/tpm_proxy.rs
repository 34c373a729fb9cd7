//! Stands between a daemon and its software TPM: makes every command slow, and counts them. The daemon's tests use it, too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub struct Proxy {
    pub tcti: String,
    commands: Arc<AtomicU64>,
    traffic: Option<Arc<Mutex<Traffic>>>,
}

/// What only a listener would keep.
#[derive(Default)]
struct Traffic {
    /// What went over the bus, both ways.
    bytes: Vec<u8>,
    /// The commands' codes (TPM library part 2, "TPM_CC"), in order.
    codes: Vec<u32>,
}

impl Proxy {
    /// For a TCTI that ends in `port=…`. The TSS makes one connection a command. Its threads end with the process.
    pub fn start(tcti: &str, latency: Duration) -> io::Result<Self> {
        Self::between(tcti, latency, None)
    }

    /// One that keeps everything that passes.
    pub fn listening(tcti: &str, latency: Duration) -> io::Result<Self> {
        Self::between(tcti, latency, Some(Arc::default()))
    }

    fn between(tcti: &str, latency: Duration, traffic: Option<Arc<Mutex<Traffic>>>) -> io::Result<Self> {
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
        let (counter, listener) = (commands.clone(), traffic.clone());
        thread::spawn(move || {
            for client in data.incoming().flatten() {
                counter.fetch_add(1, Ordering::Relaxed);
                let listener = listener.clone();
                thread::spawn(move || forward(client, real, latency, listener));
            }
        });
        thread::spawn(move || {
            for client in control.incoming().flatten() {
                thread::spawn(move || forward(client, real + 1, Duration::ZERO, None));
            }
        });
        Ok(Self { tcti, commands, traffic })
    }

    pub fn heard(&self) -> Vec<u8> {
        self.traffic.as_ref().map(|traffic| lock(traffic).bytes.clone()).unwrap_or_default()
    }

    /// How often a command was given.
    pub fn count(&self, code: u32) -> usize {
        self.traffic.as_ref().map_or(0, |traffic| lock(traffic).codes.iter().filter(|&&each| each == code).count())
    }

    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }
}

fn lock(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forward(client: TcpStream, port: u16, latency: Duration, traffic: Option<Arc<Mutex<Traffic>>>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    // What the test is about: a chip that takes its time.
    thread::sleep(latency);
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let heard = traffic.clone();
    let up = thread::spawn(move || {
        let mut head = Vec::new();
        pass(&mut from_client, &mut to_server, |bytes| {
            let Some(traffic) = &heard else { return };
            let mut traffic = lock(traffic);
            traffic.bytes.extend_from_slice(bytes);
            // Tag, length, code; in however many pieces they come.
            if head.len() < 10 {
                head.extend_from_slice(bytes);
                if let Some(code) = head.get(6..10) {
                    traffic.codes.push(u32::from_be_bytes([code[0], code[1], code[2], code[3]]));
                }
            }
        });
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    pass(&mut from_server, &mut to_client, |bytes| {
        if let Some(traffic) = &traffic {
            lock(traffic).bytes.extend_from_slice(bytes);
        }
    });
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = up.join();
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, mut seen: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        seen(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
