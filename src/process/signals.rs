//! Signals as something that poll(2) can wait for.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

/// The supervisor's signals. Readable when one has come.
#[derive(Debug)]
pub(super) struct Signals {
    pipe: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

/// What came since it was last asked. A child that ended is no item of its own: ask the children.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) stop: bool,
    pub(super) reload: bool,
}

impl Signals {
    pub(super) fn install() -> io::Result<Self> {
        let (pipe, wake) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, flag) in [(SIGTERM, Some(&stop)), (SIGINT, Some(&stop)), (SIGHUP, Some(&reload)), (SIGCHLD, None)]
        {
            if let Some(flag) = flag {
                signal_hook::flag::register(signal, Arc::clone(flag))?;
            }
            // After the flag, in the order of registration: whoever is woken finds it set.
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        // Their default would end the supervisor and leave its sockets behind.
        for stray in [SIGUSR1, SIGUSR2] {
            signal_hook::flag::register(stray, Arc::new(AtomicBool::new(false)))?;
        }
        Ok(Self { pipe, stop, reload })
    }

    pub(super) fn take(&self) -> Arrived {
        // Emptied before the flags are read: what comes in between wakes the next poll.
        while (&self.pipe).read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        Arrived { stop: self.stop.swap(false, Ordering::SeqCst), reload: self.reload.swap(false, Ordering::SeqCst) }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Keeps a child alive on SIGTERM, SIGINT and SIGHUP, which a service manager or a terminal sends to the whole group: the server
/// ends when the supervisor says so, and the custodian when the server is gone, for it may be needed until then.
pub(super) fn outlive_group_signals() -> io::Result<()> {
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        // A handler rather than SIG_IGN, which programs that a module starts would inherit.
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}
