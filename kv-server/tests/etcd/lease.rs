//! Leases.

use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use kv_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, kv_client::KvClient, lease_client::LeaseClient,
};
use tonic::Code;

use super::clients::{Alone, PATIENCE, all, channel, keys, put, refusal};
use crate::common::Cluster;

#[tokio::test]
async fn lease_is_granted_renewed_told_of_and_revoked() {
    let alone = Alone::start().await;
    let (mut kv, mut lease) = (alone.kv().await, alone.lease().await);
    let granted = lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 77 }).await.unwrap().into_inner();
    assert_eq!((granted.id, granted.ttl), (77, 60));
    let again = refusal(lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 77 }).await);
    assert_eq!(again, (Code::FailedPrecondition, "etcdserver: lease already exists".to_owned()));
    let long = refusal(lease.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 0 }).await);
    assert_eq!(long, (Code::OutOfRange, "etcdserver: too large lease TTL".to_owned()));
    kv.put(PutRequest { lease: 77, ..put("a", "1") }).await.unwrap();
    let ask = LeaseTimeToLiveRequest { id: 77, keys: true };
    let told = lease.lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((told.granted_ttl, told.keys), (60, vec!["a".into()]));
    assert!((50..60).contains(&told.ttl), "{}", told.ttl);
    let requests = [77, 78, 77].map(|id| LeaseKeepAliveRequest { id });
    let mut renewed = lease.lease_keep_alive(futures::stream::iter(requests)).await.unwrap().into_inner();
    let mut times = Vec::new();
    while let Some(answer) = renewed.message().await.unwrap() {
        times.push((answer.id, answer.ttl));
    }
    assert_eq!(times, [(77, 60), (78, 0), (77, 60)], "in order; a lease that is not there has no time");
    lease.lease_revoke(LeaseRevokeRequest { id: 77 }).await.unwrap();
    assert!(keys(&kv.range(all()).await.unwrap().into_inner()).is_empty());
    let gone = refusal(lease.lease_revoke(LeaseRevokeRequest { id: 77 }).await);
    assert_eq!(gone, (Code::NotFound, "etcdserver: requested lease not found".to_owned()));
    let told = lease.lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!((told.id, told.ttl, told.granted_ttl), (77, -1, 0));
    assert!(lease.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases.is_empty());
}

#[tokio::test]
async fn lease_that_nobody_renews_ends_with_its_keys() {
    let alone = Alone::start().await;
    let (mut kv, mut lease) = (alone.kv().await, alone.lease().await);
    let begun = Instant::now();
    let granted = lease.lease_grant(LeaseGrantRequest { ttl: 1, id: 0 }).await.unwrap().into_inner();
    assert_eq!(granted.ttl, 2, "no lease is shorter");
    assert!(granted.id > 0);
    kv.put(PutRequest { lease: granted.id, ..put("a", "1") }).await.unwrap();
    while !keys(&kv.range(all()).await.unwrap().into_inner()).is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed().as_secs() >= 2);
}

/// They are more than fit into a message between nodes, which all writes through the follower share with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_lease_through_a_follower_are_all_there_and_disturb_no_write() {
    const KEYS: usize = 1200;
    const KEY_BYTES: usize = 15 << 10;
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let follower = channel(cluster.servers[(leader + 1) % 3].port).await;
    let (mut kv, lease) = (KvClient::new(follower.clone()), LeaseClient::new(follower));
    let mut lease = lease.max_decoding_message_size(64 << 20);
    lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 77 }).await.unwrap();
    let leading = KvClient::new(channel(cluster.servers[leader].port).await);
    let key = |n: usize| format!("{n:0width$}", width = KEY_BYTES);
    let puts = futures::stream::iter(0..KEYS).map(|n| {
        let mut leading = leading.clone();
        let request = PutRequest { lease: 77, ..put(&key(n), "") };
        async move { leading.put(request).await }
    });
    puts.buffer_unordered(16).try_for_each(async |_| Ok(())).await.unwrap();
    let mut told = std::pin::pin!(lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 77, keys: true }));
    let told = loop {
        tokio::select! {
            told = &mut told => break told.unwrap().into_inner(),
            written = kv.put(put("other", "v")) => written.unwrap(),
        };
    };
    assert_eq!((told.granted_ttl, told.keys.len()), (600, KEYS));
    assert!(told.keys.iter().enumerate().all(|(n, found)| *found == key(n).as_bytes()));
    kv.put(put("other", "after")).await.unwrap();
}
