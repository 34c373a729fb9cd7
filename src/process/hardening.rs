//! What each process gives up at its very start: core dumps, being traced, gaining rights, outliving its parent.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Also the command line's own process, where that spawns a custodian.
    Supervisor,
    Server,
    Custodian,
}

/// As the kernel reports it afterwards, not as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    pub no_new_privs: bool,
    pub dumpable: bool,
    pub core_dumps: bool,
}

/// Call it first in `main`, before any secret is read and any thread is started.
pub fn harden(role: Role) -> io::Result<Hardening> {
    // A core file would hold the keys; so would what a debugger of the same user reads from /proc/PID/mem.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    if role != Role::Supervisor {
        // If the supervisor died before this line, the end of file on its socket says so.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // `ps` would show "exe": children are started by /proc/self/exe.
        rustix::thread::set_name(if role == Role::Server { c"keystead-server" } else { c"keystead-custod" })?;
    }
    Ok(Hardening {
        no_new_privs: rustix::thread::no_new_privs()?,
        dumpable: rustix::process::dumpable_behavior()? != DumpableBehavior::NotDumpable,
        core_dumps: rustix::process::getrlimit(Resource::Core).current != Some(0),
    })
}
