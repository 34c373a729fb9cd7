//! Whose user each process runs as, where the site gives server and custodian one each (docs/adr/0007-users-and-system-calls.md).
//!
//! The kernel keeps users apart by file mode, signal and trace, also where it has no Landlock. Only whoever may change
//! its user can use this: root, or a service with three capabilities. The children give up what they do not need.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::hardening::{Hardening, Role, harden};

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups: what opens a token's device, mostly.
    pub groups: Vec<u32>,
}

/// One for each child; never the same, neither of them root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    pub server: User,
    pub custodian: User,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error(
        "this process may not become user {0}, as [process] in the configuration asks. Run it as root, or give it \
         CAP_SETUID, CAP_SETGID and CAP_KILL"
    )]
    NotAllowed(u32),
    #[error("cannot become user {uid}")]
    Switch { uid: u32, source: io::Error },
    #[error("cannot become user {0}: other threads run already")]
    Threads(u32),
    #[error("the supervisor is gone")]
    SupervisorGone,
    #[error("cannot make {}", folder.display())]
    Make { folder: PathBuf, source: io::Error },
    #[error(
        "{} belongs to user {found}, and {uid} has to use it. Stop the daemon, then: chown -R {uid}:{gid} {}",
        folder.display(), folder.display()
    )]
    Foreign { folder: PathBuf, found: u32, uid: u32, gid: u32 },
}

impl Users {
    /// Before the first child is started: whether this process can make both who they are to be, and end them; and that
    /// the server has the store's folder and the custodian the one of its notes, since neither could make it where only
    /// root may write. `trail`, where it does not lie within the store, may be somebody else's: whether the daemon then serves,
    /// `audit.failure` says.
    ///
    /// # Errors
    /// `NotAllowed`; `Foreign` for a folder of somebody else's. It is not given away: what lies in it may not be ours.
    pub fn prepare(&self, store: &Path, trail: Option<&Path>, notes: &Path) -> Result<(), UserError> {
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
        let has = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
        if let Some(user) = [&self.server, &self.custodian].into_iter().find(|user| !user.is_current())
            && !has
        {
            return Err(UserError::NotAllowed(user.uid));
        }
        self.server.own(store)?;
        if let Some(error) = trail.and_then(|trail| self.server.own(trail).err()) {
            tracing::error!(%error, "the audit trail's folder cannot be used");
        }
        self.custodian.own(notes)
    }
}

impl User {
    /// Gives up the present user, its groups and every capability, for good; then hardens the process again, since the
    /// kernel forgets most of that with a change of user. Nothing when it is that user already, but the capabilities.
    ///
    /// Call it while there is one thread: the kernel changes the calling one only.
    ///
    /// # Errors
    /// [`UserError`]; the process must then end.
    pub fn become_for_good(&self, role: Role) -> Result<Hardening, UserError> {
        let failed = |source| UserError::Switch { uid: self.uid, source };
        // Learnt after the first hardening: had it died before, the end of file on its socket says so.
        let supervisor = rustix::process::getppid();
        if std::fs::read_dir("/proc/self/task").map_err(failed)?.count() != 1 {
            return Err(UserError::Threads(self.uid));
        }
        if !self.is_current() {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::thread::set_thread_groups(&self.groups()).map_err(|errno| failed(errno.into()))?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|errno| failed(errno.into()))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|errno| failed(errno.into()))?;
        }
        // Only a step down from root takes capabilities along.
        let none = CapabilitySet::empty();
        let _ = rustix::thread::clear_ambient_capability_set();
        rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .map_err(|errno| failed(errno.into()))?;
        let hardening = harden(role).map_err(failed)?;
        if rustix::process::getppid() != supervisor {
            return Err(UserError::SupervisorGone);
        }
        Ok(hardening)
    }

    /// Acts as this user until the guard is dropped, so that files made meanwhile are this user's: for a command of
    /// root's that writes what the daemon will read. As above, on one thread only.
    pub fn act(&self) -> Result<Acting, UserError> {
        let failed = |errno: rustix::io::Errno| UserError::Switch { uid: self.uid, source: errno.into() };
        let former = User {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: rustix::process::getgroups().map_err(failed)?.into_iter().map(Gid::as_raw).collect(),
        };
        if self.is_current() {
            return Ok(Acting { former: None });
        }
        let acting = Acting { former: Some(former) };
        rustix::thread::set_thread_groups(&self.groups()).map_err(failed)?;
        rustix::thread::set_thread_res_gid(None, Gid::from_raw(self.gid), None).map_err(failed)?;
        rustix::thread::set_thread_res_uid(None, Uid::from_raw(self.uid), None).map_err(failed)?;
        Ok(acting)
    }

    fn is_current(&self) -> bool {
        [rustix::process::getuid(), rustix::process::geteuid()].map(Uid::as_raw) == [self.uid; 2]
    }

    fn groups(&self) -> Vec<Gid> {
        self.groups.iter().copied().map(Gid::from_raw).collect()
    }

    /// Makes the folder for this user if it is missing and this process is root's; its parent must be there.
    fn own(&self, folder: &Path) -> Result<(), UserError> {
        match std::fs::metadata(folder) {
            Ok(found) if found.uid() == self.uid => Ok(()),
            Ok(found) => {
                let (uid, gid) = (self.uid, self.gid);
                Err(UserError::Foreign { folder: folder.to_owned(), found: found.uid(), uid, gid })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && rustix::process::geteuid().is_root() => {
                self.make(folder).map_err(|source| UserError::Make { folder: folder.to_owned(), source })
            }
            // Whoever needs it says what is wrong with it.
            Err(_) => Ok(()),
        }
    }

    fn make(&self, folder: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(folder)?;
        // By descriptor, and not through a link that somebody put there meanwhile.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::open(folder, flags, Mode::empty())?;
        Ok(rustix::fs::fchown(&made, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?)
    }
}

/// Another user's rights for a while.
#[derive(Debug)]
pub struct Acting {
    former: Option<User>,
}

impl Drop for Acting {
    fn drop(&mut self) {
        let Some(former) = &self.former else { return };
        let back = || {
            rustix::thread::set_thread_res_uid(None, Uid::from_raw(former.uid), None)?;
            rustix::thread::set_thread_res_gid(None, Gid::from_raw(former.gid), None)?;
            rustix::thread::set_thread_groups(&former.groups())
        };
        // What cannot get its rights back has fewer than it should: what follows fails, and says so.
        if let Err(error) = back() {
            tracing::error!(%error, uid = former.uid, "cannot return to the former user");
        }
    }
}
