//! Both ends against each other, and against nonsense.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::*;

#[tokio::test]
async fn custodian_arrives_with_its_socket() {
    let (supervisor, fd) = pair().unwrap();
    let mut server = ControlServerEnd::new(fd).unwrap();
    let (mut custodian, stream) = UnixStream::pair().unwrap();
    supervisor.new_custodian(stream, 7).unwrap();
    let Some(Order::NewCustodian { mut stream, restarts: 7 }) = server.next().await.unwrap() else {
        panic!("another order came");
    };
    stream.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    custodian.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    drop(stream);
    assert_eq!(custodian.read(&mut heard).unwrap(), 0, "no other copy of the server's end is left");
}

#[tokio::test]
async fn custodian_in_the_queue_of_a_dead_server_sees_the_end() {
    let (supervisor, fd) = pair().unwrap();
    let (mut custodian, stream) = UnixStream::pair().unwrap();
    supervisor.new_custodian(stream, 0).unwrap();
    drop(fd);
    assert_eq!(custodian.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn orders_keep_their_order_and_the_end_is_seen() {
    let (supervisor, fd) = pair().unwrap();
    let mut server = ControlServerEnd::new(fd).unwrap();
    for restarts in 0..3 {
        supervisor.new_custodian(UnixStream::pair().unwrap().0, restarts).unwrap();
    }
    supervisor.ask().unwrap();
    supervisor.login(7, Some(1000)).unwrap();
    supervisor.login(i32::MAX, None).unwrap();
    supervisor.drain().unwrap();
    drop(supervisor);
    for expected in 0..3 {
        let order = server.next().await.unwrap();
        assert!(matches!(order, Some(Order::NewCustodian { restarts, .. }) if restarts == expected), "{order:?}");
    }
    assert!(matches!(server.next().await.unwrap(), Some(Order::Ask)));
    assert!(matches!(server.next().await.unwrap(), Some(Order::Login { pid: 7, uid: Some(1000) })));
    assert!(matches!(server.next().await.unwrap(), Some(Order::Login { pid: i32::MAX, uid: None })));
    assert!(matches!(server.next().await.unwrap(), Some(Order::Drain)));
    assert!(server.next().await.unwrap().is_none());
}

#[tokio::test]
async fn reports_arrive_and_long_ones_are_cut_between_letters() {
    let (supervisor, fd) = pair().unwrap();
    assert_eq!(supervisor.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let server = ControlServerEnd::new(fd).unwrap();
    let reporter = server.reporter();
    reporter.ready().unwrap();
    reporter.alive().unwrap();
    reporter.custodian_hung(3).unwrap();
    reporter.replace_custodian().unwrap();
    reporter.ask_login(7).unwrap();
    reporter.reload(9).unwrap();
    reporter.reloaded(9, true).unwrap();
    reporter.reloaded(0, false).unwrap();
    reporter.status(&"é".repeat(1000)).unwrap();
    reporter.status("").unwrap();
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Ready));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Alive));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::CustodianHung { restarts: 3 }));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::ReplaceCustodian));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::AskLogin { pid: 7 }));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Reload { ticket: 9 }));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Reloaded { ticket: 9, applied: true }));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Reloaded { ticket: 0, applied: false }));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Status("é".repeat(256))));
    assert_eq!(supervisor.receive().unwrap(), Some(Report::Status(String::new())));
    drop((server, reporter));
    assert_eq!(supervisor.receive().unwrap(), None);
}

#[tokio::test]
async fn server_that_does_not_read_never_blocks_the_supervisor() {
    let (supervisor, _fd) = pair().unwrap();
    let error = (0..100_000).find_map(|_| supervisor.drain().err()).expect("the queue is bounded");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn nonsense_is_an_error_on_both_ends() {
    let (supervisor, fd) = pair().unwrap();
    let raw = fd.try_clone().unwrap();
    let mut server = ControlServerEnd::new(fd).unwrap();
    for bytes in [
        &b"X"[..],
        b"R.",
        b"A.",
        b"P.",
        b"H\0\0\0",
        b"H\0\0\0\0\0",
        b"W\0\0\0",
        b"L",
        b"Y\0",
        b"N\0\0\0\0\0",
        b"S\xff",
        &[b'S'; 2000],
    ] {
        frame::send(raw.as_fd(), bytes, None).unwrap();
        assert_eq!(supervisor.receive().unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
    }
    let (one, other) = UnixStream::pair().unwrap();
    for (bytes, fd) in [
        (&b"X"[..], None),
        (b"C\0\0\0\0", None),
        (b"C\0\0\0", Some(&one)),
        (b"?.", None),
        (b"L\0\0\0\x01\0\0\0", None),
        (b"V", None),
        (b"V.", Some(&one)),
        (b"D", Some(&other)),
    ] {
        frame::send(supervisor.as_fd(), bytes, fd.map(AsFd::as_fd)).unwrap();
        assert_eq!(server.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
    }
}
