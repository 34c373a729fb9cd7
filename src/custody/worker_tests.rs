//! The worker with a device that the test plays.

use std::sync::mpsc::{Sender, channel};

use super::*;

/// Answers a request only when the test lets it.
struct Played {
    permits: Mutex<Receiver<()>>,
    closed: Sender<()>,
}

impl Custodian for Played {
    fn serve(&self, _: usize, _: Request) -> Result<Answer, CustodyError> {
        self.permits.lock().unwrap().recv().unwrap();
        Ok(Answer::Done)
    }

    fn close(&self) {
        self.closed.send(()).unwrap();
    }
}

struct Rig {
    server: UnixStream,
    permits: Sender<()>,
    closed: Receiver<()>,
    worker: thread::JoinHandle<Result<(), WorkerError>>,
}

fn rig(sessions: usize, queue: usize) -> Rig {
    let (server, custodian) = UnixStream::pair().unwrap();
    let (permits, take) = channel();
    let (closed, closes) = channel();
    let device = Arc::new(Played { permits: Mutex::new(take), closed });
    let worker = thread::spawn(move || serve(custodian, device, sessions, queue));
    Rig { server, permits, closed: closes, worker }
}

fn ask(server: &mut UnixStream, id: u64) {
    server.write_all(&frames::encode_request(id, &Request::Probe)).unwrap();
}

fn reply(server: &mut UnixStream) -> (u64, frames::Reply) {
    let mut prefix = [0; frames::LENGTH];
    server.read_exact(&mut prefix).unwrap();
    let mut body = vec![0; u32::from_be_bytes(prefix) as usize];
    server.read_exact(&mut body).unwrap();
    frames::decode_reply(&body).unwrap()
}

#[test]
fn end_of_the_connection_closes_the_device_and_ends_the_worker() {
    let mut rig = rig(2, 4);
    ask(&mut rig.server, 1);
    rig.permits.send(()).unwrap();
    assert!(matches!(reply(&mut rig.server), (1, Ok(Answer::Done))));
    drop(rig.server);
    rig.worker.join().unwrap().unwrap();
    rig.closed.recv().unwrap();
}

#[test]
fn requests_beyond_the_queue_are_busy_at_once_and_the_others_still_served() {
    let mut rig = rig(1, 2);
    (0..16).for_each(|id| ask(&mut rig.server, id));
    // Two wait and one may be with the device; the rest is refused while the device answers nothing.
    let refused: Vec<_> = (0..13).map(|_| reply(&mut rig.server)).collect();
    assert!(refused.iter().all(|(_, reply)| matches!(reply, Err(CustodyError::Busy))));
    (0..3).for_each(|_| rig.permits.send(()).unwrap());
    let mut rest: Vec<_> = (0..3).map(|_| reply(&mut rig.server)).collect();
    // How many were refused depends on when the device took the first one.
    rest.retain(|(_, reply)| matches!(reply, Ok(Answer::Done)));
    assert!(rest.len() >= 2);
}

#[test]
fn what_is_no_request_ends_the_worker() {
    for garbage in [&[0xff; 64][..], &[0, 0, 0, 1, 9]] {
        let mut rig = rig(1, 1);
        rig.server.write_all(garbage).unwrap();
        assert!(matches!(rig.worker.join().unwrap(), Err(WorkerError::Protocol(_))));
    }
}

#[test]
fn half_a_request_ends_the_worker() {
    let mut rig = rig(1, 1);
    let frame = frames::encode_request(1, &Request::Probe);
    rig.server.write_all(&frame[..frame.len() - 1]).unwrap();
    drop(rig.server);
    assert!(matches!(rig.worker.join().unwrap(), Err(WorkerError::Connection(_))));
}
