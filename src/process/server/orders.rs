//! What the supervisor orders while the server serves, and what the server says and asks in turn.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::process::control::{ControlServerEnd, Order};
use crate::rpc::login::Logins;

/// Attaches each new custodian, and has one replaced whenever `hung` changes. Returns when it is time to drain: by
/// order, or because the supervisor is gone.
///
/// Whether the server is alive, `kms` answers. `attach` gets the connection and the number of restarts so far, `reload` what a configuration that was read again comes to.
///
/// # Errors
/// When the control channel is unusable, or a custodian cannot be attached. Drain then as well: the supervisor takes the
/// end of this process as a reason to start anew.
pub async fn follow_orders(
    mut control: ControlServerEnd,
    kms: Handle,
    mut hung: watch::Receiver<u64>,
    logins: Arc<Logins>,
    mut attach: impl FnMut(UnixStream, u32) -> io::Result<()>,
    mut reload: impl FnMut(OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    let reporter = control.reporter();
    let mut present = None;
    let mut hung_is_told = true;
    hung.mark_unchanged();
    loop {
        tokio::select! {
            order = control.next() => match order? {
                Some(Order::NewCustodian { stream, restarts }) => {
                    attach(stream, restarts)?;
                    present = Some(restarts);
                }
                Some(Order::Ask) => {
                    let reporter = reporter.clone();
                    // Through the queue of the thread that has the requests: if it is stuck, it says nothing.
                    kms.spawn(async move {
                        if let Err(error) = reporter.alive() {
                            tracing::warn!(%error, "the supervisor does not listen");
                        }
                    });
                }
                Some(Order::Login { pid, uid }) => logins.answer(pid, uid),
                Some(Order::Reload { verdict }) => reload(verdict)?,
                Some(Order::Drain) | None => return Ok(()),
            },
            changed = hung.changed(), if hung_is_told => match (changed, present) {
                (Ok(()), Some(restarts)) => reporter.custodian_hung(restarts)?,
                (Ok(()), None) => {}
                // Whoever could tell is gone.
                (Err(_), _) => hung_is_told = false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::control::{self, ControlSupervisorEnd, Report};
    use crate::process::kms_thread::KmsThread;

    fn nobody() -> Arc<Logins> {
        Arc::new(Logins::new(|_| Ok(())))
    }

    async fn next_report(supervisor: &ControlSupervisorEnd) -> Option<Report> {
        loop {
            match supervisor.receive() {
                Ok(report) => return report,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn custodians_are_attached_and_the_hung_one_is_named() {
        let (supervisor, fd) = control::pair().unwrap();
        let control = ControlServerEnd::new(fd).unwrap();
        let (tell, hung) = watch::channel(0);
        let (attached, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let server = tokio::spawn(follow_orders(
            control,
            Handle::current(),
            hung,
            nobody(),
            move |_, restarts| attached.send(restarts).map_err(io::Error::other),
            |_| Ok(()),
        ));
        for restarts in [4, 5] {
            supervisor.new_custodian(UnixStream::pair().unwrap().0, restarts).unwrap();
            assert_eq!(seen.recv().await, Some(restarts));
            tokio::task::yield_now().await;
            tell.send_modify(|count| *count += 1);
            assert_eq!(next_report(&supervisor).await, Some(Report::CustodianHung { restarts }));
        }
        drop(tell);
        supervisor.drain().unwrap();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn question_is_answered_without_a_custodian() {
        let (supervisor, fd) = control::pair().unwrap();
        let control = ControlServerEnd::new(fd).unwrap();
        let (_tell, hung) = watch::channel(0);
        let server = tokio::spawn(follow_orders(control, Handle::current(), hung, nobody(), |_, _| Ok(()), |_| Ok(())));
        for _ in 0..3 {
            supervisor.ask().unwrap();
            assert_eq!(next_report(&supervisor).await, Some(Report::Alive));
        }
        supervisor.drain().unwrap();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn question_is_not_answered_while_the_thread_of_the_requests_is_stuck() {
        let (supervisor, fd) = control::pair().unwrap();
        let control = ControlServerEnd::new(fd).unwrap();
        let (_tell, hung) = watch::channel(0);
        let kms = KmsThread::start().unwrap();
        let (free, stuck) = std::sync::mpsc::channel::<()>();
        kms.handle().spawn(async move { stuck.recv() });
        let (attached, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let attach = move |_, restarts| attached.send(restarts).map_err(io::Error::other);
        let server = tokio::spawn(follow_orders(control, kms.handle().clone(), hung, nobody(), attach, |_| Ok(())));
        supervisor.ask().unwrap();
        // The rest of the server is well.
        supervisor.new_custodian(UnixStream::pair().unwrap().0, 1).unwrap();
        assert_eq!(seen.recv().await, Some(1));
        tokio::task::yield_now().await;
        assert_eq!(supervisor.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(free);
        assert_eq!(next_report(&supervisor).await, Some(Report::Alive));
        supervisor.drain().unwrap();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn supervisor_that_is_gone_means_drain() {
        let (supervisor, fd) = control::pair().unwrap();
        let control = ControlServerEnd::new(fd).unwrap();
        let (_tell, hung) = watch::channel(0);
        drop(supervisor);
        follow_orders(control, Handle::current(), hung, nobody(), |_, _| Ok(()), |_| Ok(())).await.unwrap();
    }
}
