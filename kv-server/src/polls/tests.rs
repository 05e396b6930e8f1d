use consensus_core::NodeId;
use kv_state_machine::{KeyValue, KvOperation, Put, Txn};

use super::*;
use crate::{answers::NodeBudget, config::Routing};

fn event(mod_revision: u64, value_bytes: usize) -> Arc<WatchEvent> {
    let value = vec![0; value_bytes].into();
    let kv = KeyValue { key: "k".into(), value, create_revision: 2, mod_revision, version: 1, lease_id: 0 };
    Arc::new(WatchEvent { deleted: false, kv, previous: None })
}

#[test]
fn answer_has_whole_revisions_as_far_as_they_fit() {
    let events =
        [event(2, 1 << 20), event(3, 1 << 20), event(3, 1 << 20), event(4, 1 << 20), event(4, 1 << 20)];
    let part = part_of(&events, 0);
    assert_eq!((part.len, part.next), (3, Some((4, 0))));
    assert_eq!((part_of(&events[..3], 0).len, part_of(&events[..3], 0).next), (3, None));
    assert_eq!(part_of(&[], 0), Part { len: 0, bytes: 0, next: None });
}

#[test]
fn revision_larger_than_an_answer_comes_in_parts() {
    let events: Vec<_> = (0..7).map(|_| event(5, 1 << 20)).collect();
    let part = part_of(&events, 0);
    assert_eq!((part.len, part.next), (3, Some((5, 3))));
    let part = part_of(&events[3..], 3);
    assert_eq!((part.len, part.next), (3, Some((5, 6))));
    let part = part_of(&events[6..], 6);
    assert_eq!((part.len, part.next), (1, None));
    // One event is answered however large it is.
    let large = [event(5, 6 << 20), event(5, 1)];
    assert_eq!((part_of(&large, 0).len, part_of(&large, 0).next), (1, Some((5, 1))));
}

#[test]
fn request_that_makes_no_sense_is_refused() {
    let of =
        |key: &str, end: Option<&str>| idl::WatchRequest::of(key, end.map(|end| end.as_bytes().to_vec()));
    assert!(checked(of("k", None)).is_ok() && checked(of("k", Some("\0"))).is_ok());
    for wrong in [
        of("", None),
        of("k", Some("k")),
        of("k", Some("a")),
        idl::WatchRequest { wait_ms: Some(-1), ..of("k", None) },
        idl::WatchRequest { start_revision: Some(-1), ..of("k", None) },
        idl::WatchRequest { start_event: Some(-1), ..of("k", None) },
    ] {
        assert!(matches!(checked(wrong.clone()), Err(Fault::Invalid(_))), "{wrong:?}");
    }
}

struct Server {
    router: RoutingManager,
    room: Room,
    polls: ConnectionPolls,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
        database.start().await.unwrap();
        let router = RoutingManager::new(NodeId(0), database, None, Routing::Forward, 10);
        let room = NodeBudget::new(64 << 20, 16 << 20).connection().room();
        Self { router, room, polls: NodePolls::default().connection(), _dir: dir }
    }

    async fn run(&self, operation: KvOperation) -> u64 {
        self.router.database().execute_operation(operation).await.unwrap().revision
    }

    async fn poll(&mut self, request: idl::WatchRequest) -> Result<idl::WatchResponse, Fault> {
        match self.polls.poll(&self.router, &Caller::Server, request, &mut self.room).await {
            Ok(Reply::Watch(response)) => Ok(response),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault),
        }
    }
}

fn put(key: &str, value: Vec<u8>) -> KvOperation {
    KvOperation::Put(Put { key: key.to_owned().into(), value: value.into(), ..Put::default() })
}

fn from(revision: i64, event: i64) -> idl::WatchRequest {
    let (start_revision, start_event) = (Some(revision), Some(event));
    idl::WatchRequest { start_revision, start_event, ..idl::WatchRequest::of("k", Some(b"l".to_vec())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_one_after_another_tell_every_event_once_also_of_a_large_revision() {
    let mut server = Server::start().await;
    server.run(put("k/before", vec![1])).await;
    let success = (0..7).map(|n| put(&format!("k/{n}"), vec![0; 1 << 20])).collect();
    server.run(KvOperation::Txn(Txn { success, ..Txn::default() })).await;
    let last = server.run(put("k/after", vec![1])).await;
    server.run(put("other", vec![1])).await;
    let (mut told, mut revision, mut event) = (Vec::new(), 1, 0);
    while revision <= last as i64 {
        let response = server.poll(from(revision, event)).await.unwrap();
        assert!(response.events.iter().map(|event| event.kv.value.len()).sum::<usize>() <= PART_BYTES_MAX);
        told.extend(response.events.into_iter().map(|event| String::from_utf8(event.kv.key).unwrap()));
        (revision, event) = (response.next_revision, response.next_event);
    }
    let expected = ["k/before", "k/0", "k/1", "k/2", "k/3", "k/4", "k/5", "k/6", "k/after"];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poll_without_events_waits_as_long_as_it_may_and_learns_of_newer_revisions() {
    let mut server = Server::start().await;
    let last = server.run(put("other", vec![1])).await as i64;
    let start = Instant::now();
    let response = server.poll(idl::WatchRequest { wait_ms: Some(200), ..from(1, 0) }).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!((response.events, response.next_revision), (Vec::new(), last + 1));
    // One from the future has not come nearer.
    assert_eq!(server.poll(from(100, 0)).await.unwrap().next_revision, 100);
    // Nobody waits at a connection that is over.
    server.polls.end();
    let response =
        server.poll(idl::WatchRequest { wait_ms: Some(60_000), ..from(last + 1, 0) }).await.unwrap();
    assert!(response.events.is_empty() && start.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poll_of_compacted_history_says_what_is_left() {
    let mut server = Server::start().await;
    for n in 0..5 {
        server.run(put("k", vec![n])).await;
    }
    server.run(KvOperation::Compact { revision: 4 }).await;
    let fault = server.poll(from(2, 0)).await.unwrap_err();
    assert_eq!(fault, Fault::Compacted(idl::Compacted { compacted_revision: 4 }));
    assert_eq!(server.poll(from(4, 0)).await.unwrap().events.len(), 3);
}

#[tokio::test]
async fn poll_beyond_the_bound_is_refused() {
    let mut server = Server::start().await;
    let held = server.polls.connection.clone().acquire_many_owned(CONNECTION_POLLS_MAX as u32).await.unwrap();
    let fault = server.poll(from(1, 0)).await.unwrap_err();
    assert!(
        matches!(&fault, Fault::Unavailable(why) if why.message.contains("512 polls of this connection")),
        "{fault}"
    );
    drop(held);
    server.poll(from(1, 0)).await.unwrap();
}
