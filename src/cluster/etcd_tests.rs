//! Addresses, and an etcd that does not answer as etcd does. A real one is read in tests/e2e.

use std::collections::VecDeque;
use std::sync::Mutex;

use keystead_wire::etcd::kv_server::{Kv, KvServer};
use keystead_wire::etcd::{KeyValue, ResponseHeader};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response};

use super::*;

#[test]
fn secrets_pass_in_the_clear_on_this_machine_only() {
    let none = Credentials::default();
    for good in ["http://127.0.0.1:2379", "http://localhost:2379/", "http://[::1]:2379", "unix:///run/etcd.sock"] {
        assert!(endpoint(good, &none).is_ok(), "{good}");
    }
    for bad in [
        "http://192.0.2.1:2379",
        "http://localhost.example.org:2379",
        "http://127.0.0.1@192.0.2.1:2379",
        "https://127.0.0.1:2379",
        "127.0.0.1:2379",
        "http://127.0.0.1",
        "http://127.0.0.1:2379/v3",
        "ftp://127.0.0.1:2379",
        "unix:etcd.sock",
        "http://",
        "",
    ] {
        assert!(matches!(endpoint(bad, &none), Err(EtcdError::Address { .. })), "{bad}");
    }
    let some = Credentials { authorities: Some("/nowhere".into()), identity: None };
    for unused in ["http://127.0.0.1:2379", "unix:///run/etcd.sock"] {
        assert!(matches!(endpoint(unused, &some), Err(EtcdError::Address { .. })), "{unused}");
    }
    assert!(matches!(endpoint("https://127.0.0.1:2379", &some), Err(EtcdError::File { .. })));
}

#[test]
fn compaction_is_told_from_an_answer_that_is_too_long() {
    let compacted = Status::new(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(Trouble::of(&compacted), Trouble::Compacted);
    let long = Status::new(Code::OutOfRange, "Error, decoded message length too large: found 9 bytes");
    assert_eq!(Trouble::of(&long), Trouble::TooLong);
    assert_eq!(Trouble::of(&Status::unavailable("etcdserver: leader changed")), Trouble::Lost);
    assert_eq!(Trouble::of(&Status::permission_denied("etcdserver: permission denied")), Trouble::Refused);
}

/// Gives one answer after another, then none.
struct Fake(Mutex<VecDeque<Result<RangeResponse, Status>>>);

#[tonic::async_trait]
impl Kv for Fake {
    async fn range(&self, _: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let next = self.0.lock().unwrap().pop_front();
        next.unwrap_or_else(|| Err(Status::permission_denied("no more answers"))).map(Response::new)
    }
}

#[derive(Default)]
struct Keys {
    seen: Vec<Vec<u8>>,
    beginnings: u32,
}

impl Reader for Keys {
    type Holds = ();

    fn look(&mut self, _key: &[u8], _value: &[u8]) {}

    fn settle(&mut self, key: &[u8], (): ()) {
        self.seen.push(key.to_vec());
    }

    fn malformed(&mut self) {}

    fn start_anew(&mut self) {
        self.seen.clear();
        self.beginnings += 1;
    }
}

fn page(keys: &[&str], more: bool) -> RangeResponse {
    let kvs = keys.iter().map(|key| KeyValue { key: key.as_bytes().to_vec(), ..KeyValue::default() });
    RangeResponse {
        header: Some(ResponseHeader { cluster_id: 7, member_id: 8, revision: 100 }),
        kvs: kvs.collect(),
        more,
    }
}

async fn read(answers: Vec<Result<RangeResponse, Status>>) -> (Result<Provenance, EtcdError>, Keys) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("etcd.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service = KvServer::new(Fake(Mutex::new(answers.into())));
    let server = tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let address = format!("unix://{}", socket.display());
    let mut etcd = Etcd::connect(&address, &Credentials::default(), Duration::from_secs(30)).await.unwrap();
    let mut keys = Keys::default();
    let prefixes = Prefixes::new(["/registry/".to_owned()]);
    let outcome = etcd.read(&prefixes, &mut keys, &mut |_| ()).await;
    server.abort();
    (outcome, keys)
}

#[tokio::test]
async fn pages_are_read_to_the_last_one_at_the_revision_of_the_first() {
    let mut later = page(&["/registry/c"], false);
    later.header.as_mut().unwrap().revision = 120;
    let (outcome, keys) = read(vec![Ok(page(&["/registry/a", "/registry/b"], true)), Ok(later)]).await;
    assert_eq!(outcome.unwrap(), Provenance { origin: Origin::Etcd { cluster: 7, member: 8 }, revision: 100 });
    assert_eq!(keys.seen, [b"/registry/a", b"/registry/b", b"/registry/c"]);
}

#[tokio::test]
async fn answers_that_no_etcd_gives_end_the_reading() {
    let first = || Ok(page(&["/registry/b"], true));
    let with = |change: fn(&mut ResponseHeader)| {
        let mut answer = page(&["/registry/c"], false);
        answer.header.as_mut().map(change);
        Ok(answer)
    };
    let headless = Ok(RangeResponse { header: None, ..page(&[], false) });
    for (name, answers) in [
        ("back", vec![first(), Ok(page(&["/registry/a"], false))]),
        ("twice", vec![first(), first()]),
        ("out of order", vec![Ok(page(&["/registry/b", "/registry/a"], false))]),
        ("before the range", vec![Ok(page(&["/elsewhere"], false))]),
        ("beyond the range", vec![Ok(page(&["/registry0"], false))]),
        ("more without end", vec![Ok(page(&[], true))]),
        ("no header", vec![headless]),
        ("no revision", vec![with(|header| header.revision = 0)]),
        ("negative revision", vec![with(|header| header.revision = -1)]),
    ] {
        let (outcome, _) = read(answers).await;
        assert!(matches!(outcome, Err(EtcdError::Nonsense(..))), "{name}: {outcome:?}");
    }
    let (outcome, _) = read(vec![first(), with(|header| header.cluster_id = 9)]).await;
    assert!(matches!(outcome, Err(EtcdError::OtherCluster(_))), "{outcome:?}");
    let (outcome, _) = read(Vec::new()).await;
    assert!(matches!(outcome, Err(EtcdError::Refused { .. })), "{outcome:?}");
}

#[tokio::test]
async fn etcd_that_is_compacted_again_and_again_is_given_up() {
    let compacted = || Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
    let first = || Ok(page(&["/registry/a"], true));
    let (outcome, keys) = read(vec![first(), compacted(), first(), compacted(), first(), compacted(), first()]).await;
    assert!(matches!(outcome, Err(EtcdError::Compacted(_))), "{outcome:?}");
    assert_eq!((keys.beginnings, keys.seen.len()), (ROUNDS, 0));
    let (outcome, keys) = read(vec![first(), compacted(), Ok(page(&["/registry/a"], false))]).await;
    assert_eq!((outcome.unwrap().revision, keys.seen.len()), (100, 1));
}

#[tokio::test]
async fn answer_beyond_the_bound_is_asked_for_again_with_fewer_keys() {
    let too_long = || Err(Status::resource_exhausted("message larger than max"));
    let (outcome, keys) = read(vec![too_long(), too_long(), Ok(page(&["/registry/a"], false))]).await;
    assert_eq!((outcome.unwrap().revision, keys.seen.len()), (100, 1));
    let (outcome, _) = read((0..6).map(|_| too_long()).collect()).await;
    assert!(matches!(outcome, Err(EtcdError::TooLong(_))), "{outcome:?}");
}
