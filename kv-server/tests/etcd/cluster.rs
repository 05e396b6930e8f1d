//! Several nodes: every one of them serves, and a failed leader stops nothing.

use std::time::{Duration, Instant};

use kv_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, MemberListRequest, MoveLeaderRequest,
    PutRequest, RangeRequest, StatusRequest, WatchCreateRequest, cluster_client::ClusterClient,
    kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

use super::{
    clients::{PATIENCE, Watching, all, channel, keys, put, refusal, told, watch},
    gateway::ask_with,
};
use crate::common::Cluster;

/// Puts until it succeeds. A put with an unknown outcome is repeated.
async fn put_surely(kv: &mut KvClient<Channel>, key: &str, value: &str) -> i64 {
    let begun = Instant::now();
    loop {
        match kv.put(put(key, value)).await {
            Ok(done) => return done.into_inner().header.unwrap().revision,
            Err(status) => assert!(begun.elapsed() < PATIENCE, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_on_a_follower_survives_the_leader_without_a_gap() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let port = cluster.servers[follower].port;
    let mut kv = KvClient::new(channel(port).await);
    let mut watching = Watching::open(port).await;
    watching.create(watch("k", "")).await;
    for n in 0..20 {
        put_surely(&mut kv, "k", &n.to_string()).await;
    }
    cluster.servers[leader].kill();
    let mut last = 0;
    for n in 20..40 {
        last = put_surely(&mut kv, "k", &n.to_string()).await;
    }
    let seen: Vec<_> = watching.events(last).await.iter().map(told).collect();
    assert!(seen.windows(2).all(|two| two[0].0 < two[1].0), "in order, each once: {seen:?}");
    let mut values: Vec<u32> = seen.into_iter().filter_map(|(_, _, value)| value?.parse().ok()).collect();
    values.dedup(); // A put whose fate was unknown may be there twice.
    assert_eq!(values, (0..40).collect::<Vec<_>>());
    // A later watch on another node receives the same history.
    let other = 3 - leader - follower;
    let mut later = Watching::open(cluster.servers[other].port).await;
    later.create(WatchCreateRequest { start_revision: 2, ..watch("k", "") }).await;
    let mut again: Vec<u32> =
        later.events(last).await.iter().filter_map(|event| told(event).2?.parse().ok()).collect();
    again.dedup();
    assert_eq!(again, values);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_is_renewed_through_any_node_and_outlives_its_leader_but_not_its_time() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let port = cluster.servers[(leader + 1) % 3].port;
    let (mut kv, mut lease) = (KvClient::new(channel(port).await), LeaseClient::new(channel(port).await));
    for id in [1, 2] {
        lease.lease_grant(LeaseGrantRequest { ttl: 4, id }).await.unwrap();
    }
    kv.put(PutRequest { lease: 1, ..put("renewed", "") }).await.unwrap();
    kv.put(PutRequest { lease: 2, ..put("left", "") }).await.unwrap();
    let granted = Instant::now();
    let mut renew = async || -> Result<i64, Status> {
        let request = futures::stream::iter([LeaseKeepAliveRequest { id: 1 }]);
        let mut answers = lease.lease_keep_alive(request).await?.into_inner();
        Ok(answers.message().await?.map_or(0, |answer| answer.ttl))
    };
    assert_eq!(renew().await.unwrap(), 4);
    cluster.servers[leader].kill();
    let mut left_until = None;
    while granted.elapsed() < Duration::from_secs(12) {
        match renew().await {
            Ok(ttl) => assert_eq!(ttl, 4, "after {:?}", granted.elapsed()),
            Err(status) => {
                assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status}");
            }
        }
        if let Ok(found) = kv.range(all()).await {
            let there = keys(&found.into_inner());
            assert!(there.contains(&"renewed".to_owned()), "after {:?}", granted.elapsed());
            if !there.contains(&"left".to_owned()) {
                left_until.get_or_insert(granted.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left_until = left_until.expect("the other lease ends");
    assert!(left_until >= Duration::from_secs(4), "{left_until:?}");
}

/// Makes a call until it succeeds. It may fail only after it has waited for a leader.
async fn waiting_for_a_leader<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let begun = Instant::now();
    loop {
        let called = Instant::now();
        match call().await {
            Ok(answer) => return answer,
            Err(status) => {
                assert_timed_out(&status, called.elapsed());
                assert!(begun.elapsed() < PATIENCE, "{status}");
            }
        }
    }
}

fn assert_timed_out(status: &Status, after: Duration) {
    let said = (status.code(), status.message());
    assert_eq!(said, (Code::Unavailable, "etcdserver: request timed out"), "after {after:?}");
    assert!(after >= Duration::from_secs(2), "it did not wait: {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linearizable_reads_wait_for_the_end_of_an_election() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let channel = channel(cluster.servers[follower].port).await;
    let kv = KvClient::new(channel.clone());
    put_surely(&mut kv.clone(), "a", "1").await;
    cluster.servers[leader].kill();
    let range = waiting_for_a_leader(async || kv.clone().range(all()).await);
    let stream = waiting_for_a_leader(async || kv.clone().range_stream(all()).await);
    let members = waiting_for_a_leader(async || {
        ClusterClient::new(channel.clone()).member_list(MemberListRequest { linearizable: true }).await
    });
    let leases = waiting_for_a_leader(async || {
        LeaseClient::new(channel.clone()).lease_leases(LeaseLeasesRequest {}).await
    });
    let (range, _, members, _) = tokio::join!(range, stream, members, leases);
    assert_eq!((keys(range.get_ref()), members.get_ref().members.len()), (vec!["a".to_owned()], 3));
    // Without a quorum they fail in the words of etcd, and reads of this node go on.
    cluster.servers[other].kill();
    let begun = Instant::now();
    let failed = loop {
        let called = Instant::now();
        match kv.clone().range(all()).await {
            // The failure was not noticed yet.
            Ok(_) => assert!(begun.elapsed() < PATIENCE),
            Err(status) => break (status, called.elapsed()),
        }
    };
    assert_timed_out(&failed.0, failed.1);
    let serializable = RangeRequest { serializable: true, ..all() };
    assert_eq!(keys(&kv.clone().range(serializable).await.unwrap().into_inner()), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_require_a_leader_are_refused_and_their_streams_end_without_one() {
    fn requiring<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        request
    }
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let port = cluster.servers[(leader + 1) % 3].port;
    let channel = channel(port).await;
    let (mut kv, mut lease) = (KvClient::new(channel.clone()), LeaseClient::new(channel));
    put_surely(&mut kv, "a", "1").await;
    lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 1 }).await.unwrap();
    let requests = || {
        let first = futures::stream::iter([LeaseKeepAliveRequest { id: 1 }]);
        futures::StreamExt::chain(first, futures::stream::pending())
    };
    let mut required = lease.lease_keep_alive(requiring(requests())).await.unwrap().into_inner();
    let mut other = lease.lease_keep_alive(requests()).await.unwrap().into_inner();
    for answers in [&mut required, &mut other] {
        assert_eq!(answers.message().await.unwrap().unwrap().id, 1);
    }
    cluster.servers[leader].kill();
    cluster.servers[(leader + 2) % 3].kill();
    let ended = tokio::time::timeout(PATIENCE, required.message()).await.expect("an end in time");
    let no_leader = (Code::Unavailable, "etcdserver: no leader".to_owned());
    assert_eq!(refusal(ended), no_leader);
    let read = || RangeRequest { serializable: true, ..all() };
    assert_eq!(refusal(kv.range(requiring(read())).await), no_leader);
    assert_eq!(refusal(lease.lease_keep_alive(requiring(requests())).await), no_leader);
    assert_eq!(keys(&kv.range(read()).await.unwrap().into_inner()), ["a"]);
    let serializable = r#"{"key": "YQ==", "serializable": true}"#;
    let (status, text) =
        ask_with(port, "POST", "/v3/kv/range", "Grpc-Metadata-hasleader: true\r\n", serializable).await;
    assert!(status == 503 && text.contains("etcdserver: no leader"), "{status} {text}");
    assert_eq!(ask_with(port, "POST", "/v3/kv/range", "", serializable).await.0, 200);
    let more = tokio::time::timeout(Duration::from_millis(500), other.message()).await;
    assert!(more.is_err(), "a stream that requires no leader goes on: {more:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_leader_are_told_and_the_leader_moves() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let (of_leader, of_follower) =
        (channel(cluster.servers[leader].port).await, channel(cluster.servers[follower].port).await);
    let list = MemberListRequest { linearizable: true };
    let members = ClusterClient::new(of_follower.clone()).member_list(list).await.unwrap().into_inner();
    assert_eq!(members.members.len(), 3);
    let status = |channel: &Channel| {
        let mut client = MaintenanceClient::new(channel.clone());
        async move { client.status(StatusRequest {}).await.unwrap().into_inner() }
    };
    let (first, second) = (status(&of_leader).await, status(&of_follower).await);
    let ids = (first.header.unwrap(), second.header.unwrap());
    assert_eq!((first.leader, second.leader), (ids.0.member_id, ids.0.member_id));
    assert_eq!(ids.0.cluster_id, ids.1.cluster_id);
    assert!(
        members.members.iter().any(|member| member.id == ids.1.member_id && !member.client_ur_ls.is_empty())
    );
    let to_follower = MoveLeaderRequest { target_id: ids.1.member_id };
    let refused = refusal(MaintenanceClient::new(of_follower.clone()).move_leader(to_follower).await);
    assert_eq!(refused, (Code::FailedPrecondition, "etcdserver: not leader".to_owned()));
    let nobody = MoveLeaderRequest { target_id: 5 };
    let refused = refusal(MaintenanceClient::new(of_leader.clone()).move_leader(nobody).await);
    assert_eq!(refused, (Code::FailedPrecondition, "etcdserver: bad leader transferee".to_owned()));
    MaintenanceClient::new(of_leader).move_leader(to_follower).await.unwrap();
    cluster
        .eventually("the follower leads", async |_: &Cluster| {
            (status(&of_follower).await.leader == ids.1.member_id).then_some(())
        })
        .await;
}
