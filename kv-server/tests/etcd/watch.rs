//! Watches.

use kv_etcd_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest,
    WatchProgressRequest, kv_client::KvClient, request_op::Request, watch_request::RequestUnion,
};
use tonic::{Code, transport::Channel};

use super::clients::{Alone, Watching, put, told, watch};
use crate::common::Cluster;

#[tokio::test]
async fn watch_is_told_of_past_and_future_changes() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    kv.put(put("a", "1")).await.unwrap();
    let mut watching = Watching::open(alone.server.port).await;
    let created = watching.create(WatchCreateRequest { start_revision: 2, ..watch("a", "c") }).await;
    assert_eq!((created.watch_id, created.header.unwrap().revision), (0, 1), "before the first event");
    kv.put(put("b", "2")).await.unwrap();
    kv.put(put("c", "3")).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let seen: Vec<_> = watching.events(5).await.iter().map(told).collect();
    let event =
        |revision, key: &str, value: Option<&str>| (revision, key.to_owned(), value.map(str::to_owned));
    assert_eq!(seen, [event(2, "a", Some("1")), event(3, "b", Some("2")), event(5, "a", None)]);
}

#[tokio::test]
async fn previous_pairs_come_only_where_asked_for() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    kv.put(put("a", "1")).await.unwrap();
    let mut watching = Watching::open(alone.server.port).await;
    let with = watching.create(WatchCreateRequest { prev_kv: true, ..watch("a", "") }).await.watch_id;
    let without = watching.create(watch("a", "")).await.watch_id;
    kv.put(put("a", "2")).await.unwrap();
    for _ in 0..2 {
        let told = watching.next().await;
        let previous = told.events[0].prev_kv.as_ref().map(|kv| kv.value.clone());
        let expected = (told.watch_id == with).then(|| "1".into());
        assert!(told.watch_id == with || told.watch_id == without);
        assert_eq!(previous, expected);
    }
}

#[tokio::test]
async fn ids_are_chosen_refused_and_cancelled() {
    let alone = Alone::start().await;
    let mut watching = Watching::open(alone.server.port).await;
    assert_eq!(watching.create(WatchCreateRequest { watch_id: 7, ..watch("a", "") }).await.watch_id, 7);
    let taken = watching.create(WatchCreateRequest { watch_id: 7, ..watch("a", "") }).await;
    assert!(taken.canceled && taken.watch_id == -1);
    assert_eq!(taken.cancel_reason, "etcdserver: mvcc: duplicate watch ID provided on the WatchStream");
    assert_eq!(watching.create(watch("a", "")).await.watch_id, 0);
    watching.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 })).await;
    let cancelled = watching.next().await;
    assert!(cancelled.canceled && cancelled.watch_id == 7);
    assert_eq!(watching.create(WatchCreateRequest { watch_id: 7, ..watch("a", "") }).await.watch_id, 7);
}

#[tokio::test]
async fn compacted_start_is_created_then_cancelled_with_the_revision() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    for n in 0..4 {
        kv.put(put("a", &n.to_string())).await.unwrap();
    }
    kv.compact(CompactionRequest { revision: 4, physical: true }).await.unwrap();
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(WatchCreateRequest { start_revision: 2, ..watch("a", "") }).await;
    let cancelled = watching.next().await;
    assert!(cancelled.canceled && cancelled.events.is_empty());
    assert_eq!((cancelled.compact_revision, cancelled.header.unwrap().revision), (4, 0));
    assert_eq!(cancelled.cancel_reason, "");
    // The stream goes on.
    watching.create(WatchCreateRequest { start_revision: 4, ..watch("a", "") }).await;
    assert_eq!(watching.events(5).await.len(), 2);
}

#[tokio::test]
async fn progress_is_told_after_all_events_before_it() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    for n in 0..500 {
        kv.put(put("a", &n.to_string())).await.unwrap();
    }
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(WatchCreateRequest { start_revision: 2, ..watch("a", "") }).await;
    watching.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let mut seen = 0;
    let progress = loop {
        let response = watching.next().await;
        if response.watch_id == -1 {
            break response;
        }
        seen += response.events.len();
    };
    assert_eq!((seen, progress.header.unwrap().revision), (500, 501));
}

/// Writes 20,000 keys in 200 revisions, which take longer to read than the server waits between two looks at progress.
async fn write_backlog(alone: &Alone) {
    let mut kv = alone.kv().await;
    for n in 0..200 {
        let of =
            |key| RequestOp { request: Some(Request::RequestPut(put(&format!("k/{key}"), &format!("{n}")))) };
        let success = (0..100).map(of).collect();
        kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    }
}

#[tokio::test]
async fn progress_request_does_not_keep_a_backlog_from_its_watch() {
    let alone = Alone::start().await;
    write_backlog(&alone).await;
    let mut watching = Watching::open(alone.server.port).await;
    let request = WatchCreateRequest { start_revision: 2, prev_kv: true, ..watch("k/", "k0") };
    watching.create(request).await;
    watching.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    assert_eq!(watching.events(201).await.len(), 20_000);
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, 201));
}

#[tokio::test]
async fn watch_that_is_told_of_progress_each_millisecond_receives_its_backlog_first() {
    let alone = Alone::start_with(&["--watch-progress-interval", "1ms"]).await;
    write_backlog(&alone).await;
    let mut watching = Watching::open(alone.server.port).await;
    let request = WatchCreateRequest { start_revision: 2, progress_notify: true, ..watch("k/", "k0") };
    let id = watching.create(request).await.watch_id;
    assert_eq!(watching.events(201).await.len(), 20_000);
    let progress = watching.next().await;
    assert!(progress.events.is_empty());
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (id, 201));
}

#[tokio::test]
async fn watch_from_a_future_revision_keeps_progress_back_until_then() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(WatchCreateRequest { start_revision: 4, ..watch("a", "") }).await;
    watching.create(watch("other", "")).await;
    watching.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    kv.put(put("other", "1")).await.unwrap();
    kv.put(put("other", "2")).await.unwrap();
    // No answer comes before the events, as the store is not at revision 3 before them.
    assert_eq!(watching.events(3).await.len(), 2);
    let progress = watching.next().await;
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, 3));
}

#[tokio::test]
async fn thousands_of_watches_on_a_stream_are_created_told_and_cancelled() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let mut watching = Watching::open(alone.server.port).await;
    for id in 0..3000 {
        let request = WatchCreateRequest { progress_notify: true, ..watch(&format!("k{id:04}"), "l") };
        assert_eq!(watching.create(request).await.watch_id, id);
    }
    kv.put(put("k2999", "1")).await.unwrap();
    let mut told = vec![false; 3000];
    for _ in 0..3000 {
        let response = watching.next().await;
        let id = usize::try_from(response.watch_id).unwrap();
        assert!(response.events.len() == 1 && !std::mem::replace(&mut told[id], true));
    }
    for id in (0..3000).step_by(2) {
        watching.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        let cancelled = watching.next().await;
        assert!(cancelled.canceled && cancelled.watch_id == id);
    }
    assert_eq!(watching.create(watch("m", "")).await.watch_id, 3000);
}

/// A client that has written knows the revision of that, and must not be told an older one afterwards.
#[tokio::test]
async fn progress_is_not_older_than_a_write_before_the_request() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(watch("a", "")).await;
    for n in 0..200 {
        let written = kv.put(put("elsewhere", &n.to_string())).await.unwrap().into_inner();
        watching.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let progress = watching.next().await;
        assert_eq!(progress.watch_id, -1);
        let (told, written) = (progress.header.unwrap().revision, written.header.unwrap().revision);
        assert!(told >= written, "request {n}: {told} was told after {written}");
    }
}

#[tokio::test]
async fn large_revisions_come_in_fragments_where_asked_for() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(WatchCreateRequest { fragment: true, prev_kv: true, ..watch("\0", "\0") }).await;
    let value = "v".repeat(400_000);
    for _ in 0..2 {
        let success = ["a", "b", "c"]
            .map(|key| RequestOp { request: Some(Request::RequestPut(put(key, &value))) })
            .to_vec();
        kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    }
    let mut parts = Vec::new();
    while parts.iter().map(|(_, events)| events).sum::<usize>() < 6 {
        let response = watching.next().await;
        parts.push((response.fragment, response.events.len()));
    }
    assert!(parts.iter().any(|(fragment, _)| *fragment), "{parts:?}");
    assert!(!parts.last().unwrap().0, "the last part says that it is the last: {parts:?}");
}

/// Consecutive fragments for the one that takes them, a single response for the other. Both clients also watch another key
/// and ask for progress, and no response comes between the fragments: Go's client would lose events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_of_very_many_keys_comes_whole_or_in_consecutive_fragments() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    put_keys(&mut kv).await;
    let mut streams = Vec::new();
    for fragment in [false, true] {
        let mut watching = Watching::open(alone.server.port).await;
        watching.create(WatchCreateRequest { fragment, ..watch("k", "l") }).await;
        watching.create(watch("x", "")).await;
        streams.push((fragment, watching));
    }
    delete_keys(&mut kv).await;
    for n in 0..50 {
        kv.put(put("x", &n.to_string())).await.unwrap();
        for (_, watching) in &streams {
            watching.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        }
    }
    for (fragment, mut watching) in streams {
        let (mut seen, mut others, mut responses) = (0, 0, 0);
        while seen < KEYS || others < 50 {
            let response = watching.next().await;
            match response.watch_id {
                0 => {
                    seen += response.events.len();
                    responses += 1;
                    assert_eq!(response.fragment, seen < KEYS);
                }
                1 => others += response.events.len(),
                _ => {}
            }
            assert!(response.watch_id == 0 || seen == 0 || seen == KEYS, "a response between fragments");
        }
        assert_eq!((seen, others, responses > 1), (KEYS, 50, fragment), "{responses} responses");
    }
}

/// More than the node may hold for all clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_without_fragments_ends_at_a_revision_that_takes_too_much_memory() {
    let alone = Alone::start_with(&["--responses-size", "8MiB", "--connection-responses-size", "4MiB"]).await;
    let mut kv = alone.kv().await;
    put_keys(&mut kv).await;
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(watch("k", "l")).await;
    watching.create(watch("x", "")).await;
    delete_keys(&mut kv).await;
    let response = watching.next().await;
    assert!(response.watch_id == 0 && response.canceled && response.events.is_empty());
    assert!(
        response.cancel_reason.contains("2 MiB, a quarter")
            && response.cancel_reason.contains("with fragments")
    );
    kv.put(put("x", "v")).await.unwrap();
    let response = watching.next().await;
    assert_eq!((response.watch_id, response.events.len()), (1, 1), "the other watch goes on");
}

const KEYS: usize = 60_000;

async fn put_keys(kv: &mut KvClient<Channel>) {
    for part in (0..KEYS).collect::<Vec<_>>().chunks(100) {
        let put = |number: &usize| RequestOp {
            request: Some(Request::RequestPut(put(&format!("k{number:05}"), "v"))),
        };
        let success = part.iter().map(put).collect();
        kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    }
}

/// Deletes them in one call.
async fn delete_keys(kv: &mut KvClient<Channel>) {
    let delete = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    assert_eq!(kv.delete_range(delete).await.unwrap().into_inner().deleted, KEYS as i64);
}

#[tokio::test]
async fn stopping_server_ends_streams_with_an_error_so_that_clients_come_back() {
    let mut alone = Alone::start().await;
    let mut watching = Watching::open(alone.server.port).await;
    watching.create(watch("a", "")).await;
    let ended = async {
        let (code, _) = alone.server.terminate();
        code
    };
    let (status, code) = tokio::join!(watching.end(), ended);
    assert_eq!(status.expect_err("not in order").code(), Code::Unavailable);
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_that_requires_a_leader_ends_without_one_and_others_go_on() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let port = cluster.servers[(leader + 1) % 3].port;
    let mut requiring = Watching::open_with(port, &[("hasleader", "true")]).await;
    requiring.create(watch("a", "")).await;
    let mut other = Watching::open(port).await;
    other.create(watch("a", "")).await;
    cluster.servers[leader].kill();
    cluster.servers[(leader + 2) % 3].kill();
    let end = requiring.end().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: no leader"));
    other.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    assert_eq!(other.next().await.watch_id, -1);
}
