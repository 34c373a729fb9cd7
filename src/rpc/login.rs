//! Which user a peer logged in as, whoever it has become since: the kernel's login uid, as `sudo` and `su` leave it.
//!
//! It stands in /proc, which the confined server cannot read: another process is asked, by number. A number may be another
//! process's by then, so that the answer counts only if the peer itself, by a descriptor of it, still lives afterwards.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::oneshot;

use super::peer_options;

/// How long a connection waits for the answer; it is a question between two processes of one machine.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks for login uids, and hears the answers.
pub struct Logins {
    ask: Box<dyn Fn(i32) -> io::Result<()> + Send + Sync>,
    waiting: Mutex<HashMap<i32, Vec<oneshot::Sender<Option<u32>>>>>,
}

impl Logins {
    /// `ask` sends the question and does not wait.
    pub fn new(ask: impl Fn(i32) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { ask: Box::new(ask), waiting: Mutex::default() }
    }

    /// The login uid of the process `pid` at the other end of `socket`. `None` where no session began it, it is hidden, or it is
    /// gone.
    pub(super) async fn of(&self, socket: BorrowedFd<'_>, pid: i32) -> Option<u32> {
        self.of_process(&process(socket, pid)?, pid).await
    }

    async fn of_process(&self, process: &OwnedFd, pid: i32) -> Option<u32> {
        let (sender, answer) = oneshot::channel();
        self.lock().entry(pid).or_default().push(sender);
        let asked = (self.ask)(pid).is_ok();
        let uid = match asked {
            true => tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok).flatten(),
            false => {
                drop(answer);
                None
            }
        };
        self.forget(pid);
        uid.filter(|_| lives(process))
    }

    /// The answer to each question about `pid` so far.
    pub fn answer(&self, pid: i32, uid: Option<u32>) {
        for waiting in self.lock().remove(&pid).unwrap_or_default() {
            let _ = waiting.send(uid);
        }
    }

    /// Questions that nobody waits for any more.
    fn forget(&self, pid: i32) {
        let mut waiting = self.lock();
        if let Some(senders) = waiting.get_mut(&pid) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiting.remove(&pid);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Vec<oneshot::Sender<Option<u32>>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Logins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logins").finish_non_exhaustive()
    }
}

/// The process that connected. Before Linux 6.5 the one that has its number now: of a peer that ended since it connected, it may
/// be another.
fn process(socket: BorrowedFd<'_>, pid: i32) -> Option<OwnedFd> {
    match peer_options::process(socket) {
        Ok(process) => Some(process),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
        }
        Err(_) => None,
    }
}

fn lives(process: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    poll(&mut ended, Some(&Timespec::default())) == Ok(0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use super::*;

    fn own_pid() -> i32 {
        std::process::id().try_into().unwrap()
    }

    #[tokio::test]
    async fn answer_goes_to_all_who_asked_for_that_process() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let logins = Arc::new(Logins::new(|_| Ok(())));
        let answers = || async { logins.of(socket.as_fd(), own_pid()).await };
        let told = async {
            while logins.lock().get(&own_pid()).is_none_or(|waiting| waiting.len() < 2) {
                tokio::task::yield_now().await;
            }
            logins.answer(own_pid() + 1, Some(7));
            logins.answer(own_pid(), Some(1000));
        };
        let (one, other, ()) = tokio::join!(answers(), answers(), told);
        assert_eq!((one, other), (Some(1000), Some(1000)));
        assert!(logins.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_or_a_way_to_ask_it_is_unknown_and_nothing_is_left_behind() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        for logins in [Logins::new(|_| Ok(())), Logins::new(|_| Err(io::ErrorKind::WouldBlock.into()))] {
            assert_eq!(logins.of(socket.as_fd(), own_pid()).await, None);
            assert!(logins.lock().is_empty());
        }
    }

    /// Its number may be another process's by the time that it is looked up.
    #[tokio::test]
    async fn what_is_said_of_a_peer_that_has_ended_does_not_count() {
        let mut peer = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = peer.id().try_into().unwrap();
        let process = pidfd_open(Pid::from_child(&peer), PidfdFlags::empty()).unwrap();
        let logins = Arc::new(Logins::new(|_| Ok(())));
        let asked = logins.clone();
        let answer = async {
            while asked.lock().is_empty() {
                tokio::task::yield_now().await;
            }
            peer.kill().unwrap();
            peer.wait().unwrap();
            asked.answer(pid, Some(1000));
        };
        let (uid, ()) = tokio::join!(logins.of_process(&process, pid), answer);
        assert_eq!(uid, None);
    }
}
