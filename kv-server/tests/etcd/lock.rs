//! Locks and elections.

use std::time::Duration;

use kv_etcd_api::{
    etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest},
    v3electionpb::{
        CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest, election_client::ElectionClient,
    },
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use tonic::Code;

use super::clients::{Alone, PATIENCE, all, channel, keys, refusal};

#[tokio::test]
async fn lock_is_held_by_one_at_a_time_and_passes_on() {
    let alone = Alone::start().await;
    let (mut kv, mut lease) = (alone.kv().await, alone.lease().await);
    let mut lock = LockClient::new(channel(alone.server.port).await);
    for id in [1, 2, 3] {
        lease.lease_grant(LeaseGrantRequest { ttl: 60, id }).await.unwrap();
    }
    let ask = |lease| LockRequest { name: "l".into(), lease };
    let first = lock.lock(ask(1)).await.unwrap().into_inner();
    assert_eq!(first.key, "l/1");
    let mut waiter = lock.clone();
    let mut second = tokio::spawn(async move { waiter.lock(ask(2)).await });
    let queued = async || {
        while !keys(&kv.clone().range(all()).await.unwrap().into_inner()).contains(&"l/2".to_owned()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, queued()).await.unwrap();
    // A client that gives up waiting leaves the queue.
    let gives_up = tokio::time::timeout(Duration::from_millis(300), lock.lock(ask(3))).await;
    assert!(gives_up.is_err() && !second.is_finished());
    let left = async || {
        while keys(&kv.clone().range(all()).await.unwrap().into_inner()).contains(&"l/3".to_owned()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, left()).await.unwrap();
    lock.unlock(UnlockRequest { key: first.key }).await.unwrap();
    let second = tokio::time::timeout(PATIENCE, &mut second).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(second.key, "l/2");
    // A waiter whose lease ends is told, though the lock is held on.
    lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 4 }).await.unwrap();
    let mut waiter = lock.clone();
    let ended = tokio::spawn(async move { waiter.lock(ask(4)).await });
    while !keys(&kv.range(all()).await.unwrap().into_inner()).contains(&"l/4".to_owned()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lease.lease_revoke(LeaseRevokeRequest { id: 4 }).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert_eq!(refusal(ended).0, Code::Unknown);
    let unknown = refusal(lock.lock(ask(99)).await);
    assert_eq!(unknown, (Code::Unknown, "etcdserver: requested lease not found".to_owned()));
}

#[tokio::test]
async fn waiter_is_told_that_the_server_stops() {
    let mut alone = Alone::start().await;
    let mut lock = LockClient::new(channel(alone.server.port).await);
    let ask = || LockRequest { name: "l".into(), lease: 0 };
    lock.lock(ask()).await.unwrap();
    let mut waiter = lock.clone();
    let waiting = tokio::spawn(async move { waiter.lock(ask()).await });
    let mut kv = alone.kv().await;
    let queued = async {
        while keys(&kv.range(all()).await.unwrap().into_inner()).len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, queued).await.unwrap();
    let stopping = tokio::task::spawn_blocking(move || alone.server.terminate());
    let told = refusal(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap());
    assert_eq!(told, (Code::Unavailable, "etcdserver: server stopped".to_owned()));
    assert_eq!(stopping.await.unwrap().0, Some(0));
}

#[tokio::test]
async fn observer_is_told_of_each_proclamation_however_slow_it_is() {
    let alone = Alone::start().await;
    let mut lease = alone.lease().await;
    for id in [1, 2] {
        lease.lease_grant(LeaseGrantRequest { ttl: 60, id }).await.unwrap();
    }
    let mut election = ElectionClient::new(channel(alone.server.port).await);
    let name = || LeaderRequest { name: "e".into() };
    let mut early = election.observe(name()).await.unwrap().into_inner();
    let stand = CampaignRequest { name: "e".into(), lease: 1, value: "0".into() };
    let first = election.campaign(stand).await.unwrap().into_inner().leader.unwrap();
    let mut late = election.observe(name()).await.unwrap().into_inner();
    // More than the observers' streams hold.
    let value = |n: usize| bytes::Bytes::from(format!("{n}").repeat(100_000 / format!("{n}").len()));
    for n in 1..=60 {
        election.proclaim(ProclaimRequest { leader: Some(first.clone()), value: value(n) }).await.unwrap();
    }
    let stand = CampaignRequest { name: "e".into(), lease: 2, value: "after".into() };
    let mut other = election.clone();
    let second = tokio::spawn(async move { other.campaign(stand).await });
    election.resign(ResignRequest { leader: Some(first) }).await.unwrap();
    second.await.unwrap().unwrap();
    for observed in [&mut early, &mut late] {
        let (mut seen, mut revision) = (Vec::new(), 0);
        while seen.last().is_none_or(|last| last != "after") {
            let told = tokio::time::timeout(PATIENCE, observed.message()).await.unwrap().unwrap().unwrap();
            let kv = told.kv.unwrap();
            assert!(kv.mod_revision > revision && told.header.unwrap().revision >= kv.mod_revision);
            revision = kv.mod_revision;
            seen.push(kv.value);
        }
        let expected: Vec<bytes::Bytes> =
            std::iter::once("0".into()).chain((1..=60).map(value)).chain(["after".into()]).collect();
        let starts: Vec<_> = seen.iter().map(|value| value.slice(..value.len().min(4))).collect();
        assert!(seen == expected, "{starts:?}");
    }
}

#[tokio::test]
async fn election_has_one_leader_who_proclaims_and_resigns() {
    let alone = Alone::start().await;
    let mut lease = alone.lease().await;
    for id in [1, 2] {
        lease.lease_grant(LeaseGrantRequest { ttl: 60, id }).await.unwrap();
    }
    let mut election = ElectionClient::new(channel(alone.server.port).await);
    let name = || LeaderRequest { name: "e".into() };
    assert_eq!(refusal(election.leader(name()).await), (Code::Unknown, "election: no leader".to_owned()));
    let stand =
        |lease, value: &str| CampaignRequest { name: "e".into(), lease, value: value.to_owned().into() };
    let first = election.campaign(stand(1, "one")).await.unwrap().into_inner().leader.unwrap();
    let written = election.leader(name()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((written.version, written.create_revision), (1, first.rev), "written once");
    let mut observed = election.observe(name()).await.unwrap().into_inner();
    let mut next = async || {
        let told = tokio::time::timeout(PATIENCE, observed.message()).await.unwrap().unwrap().unwrap();
        told.kv.unwrap().value
    };
    assert_eq!(next().await, "one");
    let mut other = election.clone();
    let second = tokio::spawn(async move { other.campaign(stand(2, "two")).await });
    election.proclaim(ProclaimRequest { leader: Some(first.clone()), value: "more".into() }).await.unwrap();
    assert_eq!(next().await, "more");
    election.resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    assert_eq!(next().await, "two");
    tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
    let late =
        refusal(election.proclaim(ProclaimRequest { leader: Some(first), value: "late".into() }).await);
    assert_eq!(late, (Code::Unknown, "election: not leader".to_owned()));
}
