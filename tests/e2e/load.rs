//! A steady load on the KMS socket, about a thousand calls a second, which counts what fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keystead_wire::kms::v2::EncryptRequest;

use crate::daemon::{Kms, decrypt};

const TASKS: u32 = 4;
/// Each task makes two calls in it: 4 × 2 / 8 ms.
const PERIOD: Duration = Duration::from_millis(8);

/// Encrypts and decrypts until stopped. Needs a runtime with more than one thread if the test blocks.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    calls: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    pub fn start(kms: &Kms) -> Self {
        let shared = Arc::new(Shared::default());
        let tasks = (0..TASKS).map(|_| tokio::spawn(call(kms.clone(), shared.clone()))).collect();
        Self { shared, tasks }
    }

    /// The number of calls, none of which failed.
    pub async fn stop(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("the load runs");
        }
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} calls failed, the first: {}", failures.len(), failures[0]);
        self.shared.calls.load(Ordering::Relaxed)
    }
}

async fn call(mut kms: Kms, shared: Arc<Shared>) {
    let mut pace = tokio::time::interval(PERIOD);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let fail = |what: String| shared.failures.lock().unwrap().push(what);
    while !shared.stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let request = EncryptRequest { plaintext: vec![3; 32], uid: "load".into() };
        match kms.encrypt(request).await {
            Ok(answer) => match decrypt(&mut kms, answer.get_ref()).await {
                Ok(plaintext) if plaintext == [3; 32] => {}
                other => fail(format!("Decrypt: {other:?}")),
            },
            Err(status) => fail(format!("Encrypt: {status}")),
        }
        shared.calls.fetch_add(2, Ordering::Relaxed);
    }
}
