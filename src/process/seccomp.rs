//! What server and custodian can no longer ask of the kernel: a deny list each, answered with EPERM.
//!
//! Like Landlock it binds the calling thread and those it starts later. Deny and not allow lists: what a C library or a
//! vendor's module calls changes with every version, and a key service that dies of an unforeseen `clock_getres` serves
//! nobody (docs/adr/0007-users-and-system-calls.md).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Whose list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Starts no process, makes no socket, changes no identity.
    Server,
    /// As `Server`, but it may make internet sockets and connect them: the cloud profile's.
    CloudServer,
    /// A module may start programs, open sockets and use the kernel's keyrings; it may not change the machine, look into
    /// other processes or use what kernel exploits are made of.
    Custodian,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    On,
    /// The kernel or the architecture has none, or refused.
    Unavailable,
    /// The site switched it off.
    Off,
}

#[derive(Debug, thiserror::Error)]
enum FilterError {
    #[error("the filter cannot be built")]
    Build(#[from] seccompiler::BackendError),
    #[error("the kernel did not take the filter")]
    Apply(#[from] seccompiler::Error),
}

/// Filters this thread and all that it starts. There is no way back. A kernel without filters is no reason not to
/// serve: it is logged, and shown by `status`.
pub fn filter_system_calls(filter: Filter, wanted: bool) -> Filtering {
    if !wanted {
        return Filtering::Off;
    }
    match apply(filter) {
        Ok(()) => Filtering::On,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, source, ?filter, "system calls are not filtered");
            Filtering::Unavailable
        }
    }
}

fn apply(filter: Filter) -> Result<(), FilterError> {
    let mut denied: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    deny(&mut denied, EVERYWHERE);
    if filter != Filter::Custodian {
        deny(&mut denied, SERVER);
        deny(&mut denied, NETWORK);
        if filter == Filter::CloudServer {
            denied.remove(&libc::SYS_connect);
            // An internet socket leads out by Landlock's ports; any other family leads to this machine's services.
            let other = |family: libc::c_int| {
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family.unsigned_abs().into())
            };
            let rule = SeccompRule::new(vec![other(libc::AF_INET)?, other(libc::AF_INET6)?])?;
            denied.insert(libc::SYS_socket, vec![rule]);
        }
        // One of a pair of datagram sockets could be sent from to any other of its family. Streams cannot.
        let datagram = SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            // The bits above are flags.
            SeccompCmpOp::MaskedEq(0xf),
            libc::SOCK_DGRAM.unsigned_abs().into(),
        )?;
        deny(&mut denied, &[libc::SYS_socketpair]);
        denied.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![datagram])?]);
        // A thread is a clone that shares its caller's thread group; anything else is a process or a namespace.
        let thread = libc::CLONE_THREAD as u64;
        let no_thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)?;
        denied.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
        // Its flags lie in memory, which a filter cannot read. Told that it does not exist, C libraries use clone.
        let unknown = BTreeMap::from([(libc::SYS_clone3, vec![])]);
        seccompiler::apply_filter(&program(unknown, libc::ENOSYS)?)?;
    }
    Ok(seccompiler::apply_filter(&program(denied, libc::EPERM)?)?)
}

fn deny(rules: &mut BTreeMap<c_long, Vec<SeccompRule>>, calls: &[c_long]) {
    for call in calls {
        rules.insert(*call, vec![]);
        // The same calls by their other numbers, which the x86-64 kernel may accept besides.
        #[cfg(target_arch = "x86_64")]
        rules.insert(call | X32, vec![]);
    }
}

/// `__X32_SYSCALL_BIT`
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;

/// Calls of a foreign architecture kill the process: the program checks that first.
fn program(denied: BTreeMap<c_long, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, FilterError> {
    let here = TargetArch::try_from(std::env::consts::ARCH)?;
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    Ok(SeccompFilter::new(denied, SeccompAction::Allow, answer, here)?.try_into()?)
}

/// Denied to both.
const EVERYWHERE: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The file tree.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_fanotify_init,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    libc::SYS_personality,
    // Large, privileged or the stuff of exploits; no module has a use for them.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_vhangup,
];

/// Denied to the server as well.
const SERVER: &[c_long] = &[
    // Programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // It has all the listeners it needs.
    libc::SYS_bind,
    libc::SYS_listen,
    // The kernel's keyrings.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Who it is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // Devices.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    libc::SYS_mknodat,
];

/// Denied to the server that has no cloud: new sockets, of any family. Closes what Landlock leaves open (UDP, and sockets
/// by path before Linux 7.1). Pairs of streams stay possible, and lead nowhere.
const NETWORK: &[c_long] = &[libc::SYS_socket, libc::SYS_connect];

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use rustix::thread::LinkNameSpaceType;
    use std::io::Read;
    use std::os::fd::AsFd;

    /// On a thread of its own, for a filter binds the thread for ever.
    fn filtered<T: Send>(filter: Filter, then: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                assert_eq!(filter_system_calls(filter, true), Filtering::On);
                then()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn server_starts_threads_and_nothing_else() {
        filtered(Filter::Server, || {
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            let error = std::process::Command::new("/bin/true").spawn().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        });
    }

    #[test]
    fn server_makes_no_socket_but_uses_those_it_has() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        filtered(Filter::Server, || {
            use std::io::Write;
            tcp.accept().unwrap().0.write_all(b"x").unwrap();
            assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_err());
            assert!(std::net::TcpStream::connect(tcp.local_addr().unwrap()).is_err());
            assert!(std::os::unix::net::UnixStream::connect("/run/any.sock").is_err());
            assert!(std::os::unix::net::UnixStream::pair().is_ok());
            assert!(std::os::unix::net::UnixDatagram::pair().is_err());
        });
        assert_eq!(client.read(&mut [0]).unwrap(), 1);
    }

    #[test]
    fn cloud_server_connects_by_internet_sockets_only() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("local.sock");
        let _local = std::os::unix::net::UnixListener::bind(&path).unwrap();
        filtered(Filter::CloudServer, || {
            assert!(std::net::TcpStream::connect(tcp.local_addr().unwrap()).is_ok());
            // A C library asks by datagrams, which need no `bind`.
            let udp = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
            assert!(udp.is_ok());
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
            assert!(std::os::unix::net::UnixStream::connect(&path).is_err());
            assert!(std::os::unix::net::UnixStream::pair().is_ok());
            assert!(std::os::unix::net::UnixDatagram::pair().is_err());
            for family in [rustix::net::AddressFamily::NETLINK, rustix::net::AddressFamily::PACKET] {
                assert_eq!(rustix::net::socket(family, rustix::net::SocketType::RAW, None).err(), Some(Errno::PERM));
            }
            assert!(std::process::Command::new("/bin/true").spawn().is_err());
            assert!(
                std::net::ToSocketAddrs::to_socket_addrs("localhost:1").is_ok_and(|mut found| found.next().is_some())
            );
        });
    }

    #[test]
    fn server_s_runtime_works_behind_the_filter() {
        for filter in [Filter::Server, Filter::CloudServer] {
            filtered(filter, || {
                let mut runtime = tokio::runtime::Builder::new_multi_thread();
                let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    let execs = tokio::spawn(async { std::process::Command::new("/bin/true").spawn().is_ok() });
                    assert!(!execs.await.unwrap(), "the workers are filtered, too");
                });
            });
        }
    }

    #[test]
    fn custodian_may_start_programs_and_open_sockets_and_not_change_the_machine() {
        filtered(Filter::Custodian, || {
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
        });
    }

    #[test]
    fn both_are_refused_what_changes_the_machine_or_looks_into_others() {
        for filter in [Filter::Server, Filter::CloudServer, Filter::Custodian] {
            filtered(filter, || {
                assert_eq!(rustix::system::sethostname(b"x"), Err(Errno::PERM));
                assert_eq!(rustix::process::chroot("/"), Err(Errno::PERM));
                assert_eq!(rustix::mount::unmount("/nowhere", rustix::mount::UnmountFlags::empty()), Err(Errno::PERM));
                // To enter the namespace that one is in already is EINVAL to everybody without a filter.
                let own = std::fs::File::open("/proc/self/ns/user").unwrap();
                let entered = rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::User));
                assert_eq!(entered, Err(Errno::PERM));
            });
        }
    }

    #[test]
    fn switched_off_is_said_so() {
        assert_eq!(filter_system_calls(Filter::Server, false), Filtering::Off);
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    }
}
