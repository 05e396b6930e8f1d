//! Leases.

use std::time::Instant;

use kv_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest,
};
use tonic::Code;

use super::clients::{Alone, PATIENCE, all, keys, put, refusal};

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
