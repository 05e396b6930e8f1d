//! Watches, leases, locks and elections of the client library, on real servers.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::common::{Cluster, Server};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use kv_etcd_api::v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient};
use kv_store_client::{
    KvClient, LockError, WatchError,
    idl::{RangeRequest, WatchRequest},
    prefix_end,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

const TIME: Duration = Duration::from_secs(30);

fn below(prefix: &str) -> WatchRequest {
    WatchRequest::of(prefix, Some(prefix_end(prefix)))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(TIME, future).await.expect("in time")
}

async fn next<T, E: std::fmt::Debug>(stream: &mut (impl Stream<Item = Result<T, E>> + Unpin)) -> T {
    within(stream.try_next()).await.unwrap().expect("there is a next one")
}

async fn keys(client: &KvClient, prefix: &str) -> usize {
    client.range(RangeRequest::of(prefix, Some(prefix_end(prefix)))).await.unwrap().kvs.len()
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < TIME, "{what}: not in time");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_goes_on_over_killed_leaders_without_a_gap_or_a_repetition() {
    let mut cluster = Cluster::start(3, "", "");
    let (client, other) = (cluster.client(), cluster.client());
    let mut watch = client.watch(below("k/")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut written = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let response = other.put(format!("k/{}", n % 7), n.to_string()).await.unwrap();
                written.push((response.header.revision, n.to_string()));
            }
            written
        })
    };
    let mut told = Vec::new();
    for _ in 0..2 {
        let from = told.len();
        while told.len() < from + 50 {
            let event = next(&mut watch).await;
            told.push((event.kv.mod_revision, String::from_utf8(event.kv.value).unwrap()));
        }
        let leader = cluster.leader().await;
        cluster.servers[leader].kill();
        let from = told.len();
        while told.len() < from + 50 {
            let event = next(&mut watch).await;
            told.push((event.kv.mod_revision, String::from_utf8(event.kv.value).unwrap()));
        }
        cluster.servers[leader].start();
        let back = async |cluster: &Cluster| cluster.status(leader).await.map(|_| ());
        cluster.eventually("the server is back", back).await;
    }
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.unwrap();
    while told.len() < written.len() {
        let event = next(&mut watch).await;
        told.push((event.kv.mod_revision, String::from_utf8(event.kv.value).unwrap()));
    }
    assert_eq!(told, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_begins_after_what_was_acknowledged_and_ends_where_history_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    client.put("k", "before").await.unwrap();
    let mut watch = client.watch(WatchRequest::of("k", None)).await.unwrap();
    let after = client.put("k", "after").await.unwrap().header.revision;
    assert_eq!(next(&mut watch).await.kv.value, b"after");
    client.put("other", "x").await.unwrap();
    assert_eq!(watch.next_revision(), after + 1);
    client.compact(after + 1).await.unwrap();
    let from = |revision| WatchRequest { start_revision: Some(revision), ..WatchRequest::of("k", None) };
    let mut gone = client.watch(from(2)).await.unwrap();
    let error = within(gone.try_next()).await.unwrap_err();
    assert_eq!(error, WatchError::Compacted { oldest: after + 1 });
    assert!(within(gone.next()).await.is_none(), "it has ended");
    let wrong = within(client.watch(from(-5)).await.unwrap().try_next()).await.unwrap_err();
    assert!(matches!(wrong, WatchError::Rejected(_)), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_lives_while_it_is_held_and_its_keys_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    let lease = client.hold_lease(Duration::from_secs(1)).await.unwrap();
    let put = |id| kv_store_client::idl::PutRequest {
        lease_id: Some(id),
        ..kv_store_client::idl::PutRequest::of("k", "v")
    };
    client.put_with(put(lease.id())).await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    assert!(lease.is_held() && client.get("k").await.unwrap().is_some(), "it renews itself");
    assert!(lease.left() <= Duration::from_secs(1));
    let other = lease.clone();
    drop(lease);
    sleep(Duration::from_millis(1500)).await;
    assert!(other.is_held() && client.get("k").await.unwrap().is_some(), "there is another handle");
    let id = other.id();
    drop(other);
    eventually("its key goes", async || client.get("k").await.unwrap().is_none()).await;
    assert!(client.keep_alive(id).await.is_err());
    // The lease is revoked by another client: the handle learns of it.
    let lease = client.hold_lease(Duration::from_secs(2)).await.unwrap();
    assert_eq!(client.leases().await.unwrap(), [lease.id()]);
    client.revoke_lease(lease.id()).await.unwrap();
    within(lease.lost()).await;
    assert!(!lease.is_held());
    lease.revoke().await.expect("it is gone already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_is_lost_by_the_own_clock_when_no_server_answers() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    let ttl = Duration::from_secs(2);
    let lease = client.hold_lease(ttl).await.unwrap();
    let lock = client.lock("name", &lease).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    server.signal("-STOP");
    let stopped = Instant::now();
    within(lock.lost()).await;
    let took = stopped.elapsed();
    assert!(!lock.is_held() && took < ttl + Duration::from_millis(700), "{took:?}");
    assert!(took > ttl / 3, "{took:?}: it was renewed a moment before");
    server.signal("-CONT");
    sleep(Duration::from_millis(500)).await;
    assert!(!lease.is_held(), "what was lost stays lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lock_excludes_all_others_in_the_order_in_which_they_asked() {
    let cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    let inside = Arc::new(AtomicUsize::new(0));
    let contender = |_| {
        let (client, inside) = (cluster.client(), inside.clone());
        tokio::spawn(async move {
            let lease = client.hold_lease(Duration::from_secs(20)).await.unwrap();
            let mut revisions = Vec::new();
            for _ in 0..5 {
                let lock = client.lock("name", &lease).await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "another holder is inside");
                sleep(Duration::from_millis(2)).await;
                revisions.push((inside.load(Ordering::SeqCst), lock.revision()));
                inside.fetch_sub(1, Ordering::SeqCst);
                lock.unlock().await.unwrap();
            }
            lease.revoke().await.unwrap();
            revisions
        })
    };
    for contender in (0..6).map(contender).collect::<Vec<_>>() {
        let revisions = within(contender).await.unwrap();
        assert!(revisions.is_sorted(), "later holders have greater numbers: {revisions:?}");
    }
    assert_eq!(keys(&cluster.client(), "name/").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lock_excludes_clients_of_etcd_and_they_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    let lease = client.hold_lease(Duration::from_secs(20)).await.unwrap();
    let lock = client.lock("name", &lease).await.unwrap();
    assert_eq!(lock.key(), format!("name/{:x}", lease.id()).as_bytes());
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", server.port)).unwrap();
    let mut etcd = LockClient::new(endpoint.connect().await.unwrap());
    let request = LockRequest { name: "name".into(), lease: 0 };
    let theirs = tokio::spawn({
        let mut etcd = etcd.clone();
        async move { etcd.lock(request).await.unwrap().into_inner().key }
    });
    eventually("it waits", async || keys(&client, "name/").await == 2).await;
    assert!(!theirs.is_finished());
    lock.unlock().await.unwrap();
    let key = within(theirs).await.unwrap();
    let mut ours = pin!(client.lock("name", &lease));
    assert!(timeout(Duration::from_millis(300), &mut ours).await.is_err(), "etcd's client has it");
    etcd.unlock(UnlockRequest { key }).await.unwrap();
    within(ours).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn place_of_who_waits_no_more_is_given_up_and_a_lost_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    let [first, second, third] = [(); 3].map(|()| client.hold_lease(Duration::from_secs(20)));
    let (first, second, third) = (first.await.unwrap(), second.await.unwrap(), third.await.unwrap());
    let held = client.lock("name", &first).await.unwrap();
    assert!(timeout(Duration::from_millis(300), client.lock("name", &second)).await.is_err());
    eventually("its place is free", async || keys(&client, "name/").await == 1).await;
    // One that waits and loses its lease hears of it although the holder goes on.
    let mut waiting = pin!(client.lock("name", &third));
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    client.revoke_lease(third.id()).await.unwrap();
    assert_eq!(within(waiting).await.unwrap_err(), LockError::Lost);
    // Dropped and not unlocked: free as well.
    drop(held);
    within(client.lock("name", &second)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lock_is_lost_when_its_key_is_deleted_though_history_was_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    let lease = client.hold_lease(Duration::from_secs(20)).await.unwrap();
    let lock = client.lock("name", &lease).await.unwrap();
    let now = client.put("other", "x").await.unwrap().header.revision;
    client.compact(now).await.unwrap();
    assert!(timeout(Duration::from_millis(1500), lock.lost()).await.is_err(), "it is held");
    let mut lost = pin!(lock.lost());
    assert!(lost.as_mut().now_or_never().is_none());
    client.delete(lock.key()).await.unwrap();
    within(lost).await;
    assert!(!lock.is_held() && lease.is_held(), "the lease may hold something else");
    within(lock.lost()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopted_lease_is_kept_alive() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    assert!(client.adopt_lease(5).await.is_err(), "there is none");
    client.grant_lease(1, Some(5)).await.unwrap();
    let lease = client.adopt_lease(5).await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    assert!(lease.is_held() && client.leases().await.unwrap() == [5]);
    client.revoke_lease(5).await.unwrap();
    within(lease.lost()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn election_has_one_leader_after_the_other_and_observers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    let mut observed = pin!(client.observe("name"));
    assert!(observed.next().now_or_never().is_none() && client.leader("name").await.unwrap().is_none());
    let lease = client.hold_lease(Duration::from_secs(20)).await.unwrap();
    let other = client.hold_lease(Duration::from_secs(20)).await.unwrap();
    let leads = client.campaign("name", "one", &lease).await.unwrap();
    assert_eq!(next(&mut observed).await.value, b"one");
    let mut waiting = pin!(client.campaign("name", "two", &other));
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    leads.proclaim("one again").await.unwrap();
    assert_eq!(next(&mut observed).await.value, b"one again");
    leads.resign().await.unwrap();
    let leads = within(waiting).await.unwrap();
    assert_eq!(next(&mut observed).await.value, b"two");
    assert_eq!(client.leader("name").await.unwrap().unwrap().key, leads.key());
    // Deposed: by an operator who deletes the key.
    client.delete(leads.key()).await.unwrap();
    assert_eq!(leads.proclaim("still").await, Err(LockError::Lost));
}
