//! Holders of one lock, which is built on leases: by the client library, and by etcd's Lock service.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_testkit::lock_history::{self, Hold, Write};
use kv_etcd_api::v3lockpb::{LockRequest, lock_client::LockClient};
use kv_store_client::{
    KvClient,
    idl::{Compare, CompareResult, CompareTarget, Operation, PutRequest, TxnRequest},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{timeline::Timeline, watchers::WATCHED};

/// Actions of the holders of the lock.
#[derive(Default)]
pub struct Locks {
    holds: Mutex<Vec<Hold>>,
    writes: Mutex<Vec<Write>>,
    /// Writes of former holders that were refused.
    refused: Mutex<u64>,
}

impl Locks {
    /// Locks, writes and unlocks with the client library, until it is told to stop. The lease is renewed meanwhile.
    pub async fn lock_by_library(
        &self,
        client: KvClient,
        holder: u64,
        seed: u64,
        timeline: &Timeline,
        stop: &AtomicBool,
    ) {
        let mut random = SmallRng::seed_from_u64(seed);
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
            let Ok(lease) = client.hold_lease(TTL).await else { continue };
            let Ok(Ok(lock)) = timeout(WAIT_MAX, client.lock(NAME, &lease)).await else { continue };
            let (token, since) = (lock.revision().unsigned_abs(), timeline.now());
            let gives_up = since + Duration::from_millis(random.random_range(20..300));
            let mut until = since;
            while until < gives_up {
                // The order matters: it is held for certain at the time that was taken before.
                let now = timeline.now();
                if !lock.is_held() {
                    break;
                }
                until = now;
                let _ = timeout(ATTEMPT, self.write(&client, lock.key(), token, timeline)).await;
            }
            self.holds.lock().unwrap().push(Hold { holder, token, since, until });
            let key = lock.key().to_vec();
            if lock.unlock().await.is_ok() {
                let executed = self.write(&client, &key, token, timeline).await;
                assert_ne!(
                    executed,
                    Some(true),
                    "a write with the token {token} was executed after the unlock"
                );
            }
        }
    }

    /// Locks by etcd's service on one server, and leaves the lock to its lease, until it is told to stop. Writes on after the lease
    /// has ended.
    pub async fn lock_by_service(
        &self,
        client: KvClient,
        port: u16,
        holder: u64,
        seed: u64,
        timeline: &Timeline,
        stop: &AtomicBool,
    ) {
        let mut random = SmallRng::seed_from_u64(seed);
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(random.random_range(500..2_000))).await;
            let sent = timeline.now();
            let Ok(granted) = client.grant_lease(TTL.as_secs().cast_signed(), None).await else { continue };
            let Some(key) = lock(port, granted.lease_id).await else { continue };
            let since = timeline.now();
            let until = sent + Duration::from_secs(granted.ttl_seconds.unsigned_abs());
            // The token is the revision at which the key was created; without the key the lease has ended.
            let Ok(Some(kv)) = client.get(key.clone()).await else { continue };
            let token = kv.create_revision.unsigned_abs();
            self.holds.lock().unwrap().push(Hold { holder, token, since, until });
            while timeline.now() < until + TTL {
                let _ = timeout(ATTEMPT, self.write(&client, &key, token, timeline)).await;
                tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
            }
        }
    }

    /// A write that is executed only if the key of the lock is the one that was created with this token. Returns whether it was
    /// executed, if that is known.
    async fn write(&self, client: &KvClient, key: &[u8], token: u64, timeline: &Timeline) -> Option<bool> {
        let is_held = Compare::new(
            key.to_vec(),
            CompareTarget::CREATE_REVISION,
            CompareResult::EQUAL,
            token.cast_signed(),
            None,
            None,
        );
        let put = Operation::Put(PutRequest::of(format!("{WATCHED}locked"), token.to_string()));
        let began = timeline.now();
        let response =
            client.txn(TxnRequest::new(vec![is_held], vec![put], Vec::new(), None, None, None)).await.ok()?;
        let revision = response.succeeded.then_some(response.header.revision.unsigned_abs());
        *self.refused.lock().unwrap() += u64::from(revision.is_none());
        self.writes.lock().unwrap().push(Write { token, began, revision });
        Some(response.succeeded)
    }

    /// Panics if two holders did not exclude each other. Returns the numbers of holds, of writes, and of writes that were
    /// refused to former holders.
    pub fn check(&self) -> (usize, usize, u64) {
        let (holds, writes) = (self.holds.lock().unwrap(), self.writes.lock().unwrap());
        if let Err(violation) = lock_history::check(&holds, &writes) {
            panic!("{violation}");
        }
        (holds.len(), writes.len(), *self.refused.lock().unwrap())
    }
}

/// Takes the lock by the service; the key that stands for it.
async fn lock(port: u16, lease: i64) -> Option<Vec<u8>> {
    let channel = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.ok()?;
    let request = LockRequest { name: NAME.into(), lease };
    let locked = timeout(WAIT_MAX, LockClient::new(channel).lock(request)).await.ok()?.ok()?;
    Some(locked.into_inner().key.to_vec())
}

const NAME: &str = "watched/locks/one";
const TTL: Duration = Duration::from_secs(2);
/// How long a lock is waited for.
const WAIT_MAX: Duration = Duration::from_secs(4);
/// How long a guarded write is waited for; it may be executed later, or never.
const ATTEMPT: Duration = Duration::from_millis(500);
