//! The thread that the KMS socket is served on, and nothing else is.
//!
//! A request is answered from memory in a few microseconds. Handing it from one thread to another would cost more than that, as
//! would waiting behind what an admin has asked for.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Ends with this value, and whatever still runs on it too.
#[derive(Debug)]
pub struct KmsThread {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl KmsThread {
    /// # Errors
    /// When the machine has no thread or descriptor to give.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("keystead-kms".into()).spawn(move || {
            // Nothing is ever sent: it ends with its sender.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop: stop })
    }

    /// To run things there.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn runs_on_one_thread_of_its_own_and_ends_with_its_value() {
        let kms = KmsThread::start().unwrap();
        let name = || async { (thread::current().id(), thread::current().name().map(str::to_owned)) };
        let (first, named) = kms.handle().spawn(name()).await.unwrap();
        assert_eq!(named.as_deref(), Some("keystead-kms"));
        assert_ne!(first, thread::current().id());
        assert_eq!(kms.handle().spawn(name()).await.unwrap().0, first);
        let endless = kms.handle().spawn(std::future::pending::<()>());
        drop(kms);
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
