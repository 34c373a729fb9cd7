//! The client against a custodian played by the test, with time under control.

use std::os::unix::net::UnixStream as StdStream;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A client and the custodian's end of its connection.
fn attached(queue: usize) -> (CustodyClient, UnixStream) {
    let client = CustodyClient::new(TIMEOUT, queue);
    let custodian = attach(&client);
    (client, custodian)
}

fn attach(client: &CustodyClient) -> UnixStream {
    let (ours, theirs) = StdStream::pair().unwrap();
    client.attach_std(ours).unwrap();
    theirs.set_nonblocking(true).unwrap();
    UnixStream::from_std(theirs).unwrap()
}

async fn read_request(custodian: &mut UnixStream) -> (u64, Request) {
    let mut prefix = [0; frames::LENGTH];
    custodian.read_exact(&mut prefix).await.unwrap();
    let mut body = vec![0; u32::from_be_bytes(prefix) as usize];
    custodian.read_exact(&mut body).await.unwrap();
    frames::decode_request(&body).unwrap()
}

async fn answer(custodian: &mut UnixStream, id: u64, reply: Reply) {
    custodian.write_all(&frames::encode_reply(id, &reply)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn custodian_s_word_on_its_process_is_kept_as_long_as_its_connection_and_is_no_answer() {
    let (client, mut custodian) = attached(8);
    assert_eq!(client.process(), None);
    let report = ProcessReport { uid: 997, system_calls_filtered: true, ..ProcessReport::default() };
    answer(&mut custodian, frames::UNASKED, Ok(Answer::Process(report))).await;
    while client.process().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.process(), Some(report));
    // The first answer is still to come, and has its longer deadline.
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.probe().await }
    });
    let (id, _) = read_request(&mut custodian).await;
    tokio::time::sleep(TIMEOUT * 2).await;
    answer(&mut custodian, id, Ok(Answer::Done)).await;
    call.await.unwrap().unwrap();
    drop(custodian);
    while client.is_attached() {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.process(), None);
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (client, mut custodian) = attached(8);
    let cmk = CmkObject { root_id: RootId::new(&[1]).unwrap(), label: String::new() };
    let (probe, list, ()) = tokio::join!(client.probe(), client.list_cmks(), async {
        let (first, _) = read_request(&mut custodian).await;
        let (second, _) = read_request(&mut custodian).await;
        answer(&mut custodian, second, Ok(Answer::Cmks(vec![cmk.clone()]))).await;
        answer(&mut custodian, first, Ok(Answer::Done)).await;
    });
    assert_eq!((probe, list), (Ok(()), Ok(vec![cmk])));
}

#[tokio::test]
async fn call_without_a_custodian_is_gone() {
    assert_eq!(CustodyClient::new(TIMEOUT, 1).probe().await, Err(CustodyError::Gone));
}

#[tokio::test(start_paused = true)]
async fn deadline_passed_times_out_and_reports_one_hang() {
    let (client, _custodian) = attached(8);
    let mut hung = client.hung();
    let (one, two) = tokio::join!(client.probe(), client.describe());
    assert_eq!((one, two.unwrap_err()), (Err(CustodyError::TimedOut), CustodyError::TimedOut));
    assert_eq!(*hung.borrow_and_update(), 1);
}

#[tokio::test]
async fn custodian_lost_fails_its_calls_and_is_noticed() {
    let (client, mut custodian) = attached(8);
    let mut disconnected = client.disconnected();
    let (reply, ()) = tokio::join!(client.probe(), async {
        read_request(&mut custodian).await;
        drop(custodian);
    });
    assert_eq!(reply, Err(CustodyError::Gone));
    disconnected.changed().await.unwrap();
    assert_eq!(client.probe().await, Err(CustodyError::Gone));
    assert!(!client.is_attached());
}

#[tokio::test]
async fn new_custodian_takes_over_and_the_old_ones_calls_are_gone() {
    let (client, mut old) = attached(8);
    let (reply, mut new) = tokio::join!(client.probe(), async {
        read_request(&mut old).await;
        attach(&client)
    });
    assert_eq!(reply, Err(CustodyError::Gone));
    let (reply, ()) = tokio::join!(client.probe(), async {
        let (id, _) = read_request(&mut new).await;
        answer(&mut new, id, Ok(Answer::Done)).await;
    });
    assert_eq!(reply, Ok(()));
    assert_eq!(*client.disconnected().borrow(), 0, "a replaced connection was reported as lost");
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_bound_are_busy_and_leave_the_others_alone() {
    let (client, _custodian) = attached(2);
    let (one, two, three) = tokio::join!(client.probe(), client.probe(), client.probe());
    assert_eq!([one, two, three], [Err(CustodyError::TimedOut), Err(CustodyError::TimedOut), Err(CustodyError::Busy)]);
}

#[tokio::test]
async fn garbage_from_the_custodian_drops_the_connection() {
    let (client, mut custodian) = attached(8);
    let (reply, ()) = tokio::join!(client.probe(), async {
        read_request(&mut custodian).await;
        custodian.write_all(&[0xff; 64]).await.unwrap();
    });
    assert_eq!(reply, Err(CustodyError::Gone));
}

#[tokio::test]
async fn answer_to_another_question_is_an_error() {
    let (client, mut custodian) = attached(8);
    let (reply, ()) = tokio::join!(client.describe(), async {
        let (id, _) = read_request(&mut custodian).await;
        answer(&mut custodian, id, Ok(Answer::Done)).await;
    });
    assert!(matches!(reply, Err(CustodyError::Device { .. })));
}

#[tokio::test]
async fn outcomes_are_counted_by_kind() {
    let client = CustodyClient::new(TIMEOUT, 1);
    let _ = client.probe().await;
    let line = OperationCount { request: "probe", outcome: "gone", count: 1 };
    assert_eq!(client.operations(), [line]);
}

#[tokio::test]
async fn call_during_a_replacement_waits_for_the_next_custodian() {
    let (client, _old) = attached(8);
    client.detach();
    let (reply, ()) = tokio::join!(client.probe(), async {
        let mut new = attach(&client);
        let (id, _) = read_request(&mut new).await;
        answer(&mut new, id, Ok(Answer::Done)).await;
    });
    assert_eq!(reply, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn replacement_that_does_not_come_leaves_calls_gone() {
    let (client, _old) = attached(8);
    client.detach();
    client.replace().await;
    assert_eq!(client.probe().await, Err(CustodyError::Gone));
}
