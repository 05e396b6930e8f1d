//! Leases, as a program embeds them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use consensus_core::{ReadConsistency, Role};
use serde::{Deserialize, Serialize};

use super::{ConsensusKvDatabase, KvError, blocking, propose, propose_error, read_error};
use crate::{KvOperation, lease, lessor, store::Store};

/// A lease as its leader knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseState {
    /// Seconds that it lives without being renewed.
    pub ttl: u64,
    /// What it has left.
    pub left: Duration,
    /// The keys that go with it, in their order, if they were asked for.
    pub keys: Vec<Bytes>,
}

/// Keys that go with a lease are deleted, at one revision, when it is revoked or its time is over.
impl ConsensusKvDatabase {
    /// Grants a lease that lives `ttl` seconds without being renewed; returns its id, which is drawn.
    ///
    /// # Errors
    /// See [`KvError`]; `ttl` is 0 or greater than [`LEASE_TTL_MAX`](crate::LEASE_TTL_MAX).
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use consensus_core::NodeId;
    /// # use kv_state_machine::{ConsensusKvDatabase, KvOperation, KvResult, Put, Range};
    /// # let dir = tempfile::tempdir()?;
    /// let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path())?;
    /// database.start().await?;
    /// let lease_id = database.grant_lease(10).await?;
    /// let put = Put { key: "worker/7".into(), value: "here".into(), lease_id, ..Put::default() };
    /// database.execute_operation(KvOperation::Put(put)).await?;
    ///
    /// assert_eq!(database.keep_alive(lease_id).await?, Some(10));
    /// let state = database.time_to_live(lease_id, true).await?.ok_or("its time is not over")?;
    /// assert!(state.left.as_secs() >= 9 && state.keys == ["worker/7"]);
    ///
    /// database.revoke_lease(lease_id).await?;
    /// let range = Range { key: "worker/7".into(), ..Range::default() };
    /// let KvResult::Range(found) = database.execute_operation(KvOperation::Range(range)).await?.result else { panic!() };
    /// assert!(found.kvs.is_empty());
    /// assert_eq!(database.keep_alive(lease_id).await?, None);
    /// # database.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub async fn grant_lease(&self, ttl: u64) -> Result<i64, KvError> {
        let id = random_lease_id();
        self.execute_operation(KvOperation::GrantLease { id, ttl }).await?;
        Ok(id)
    }

    /// Ends a lease before its time; returns the revision at which its keys were deleted.
    ///
    /// # Errors
    /// See [`KvError`]; there is no such lease ([`KvRejection::NoLease`](crate::KvRejection::NoLease)).
    pub async fn revoke_lease(&self, id: i64) -> Result<u64, KvError> {
        Ok(self.execute_operation(KvOperation::RevokeLease { id }).await?.revision)
    }

    /// Gives a lease its whole time again, on the leader. Costs no log entry, unless its remaining time was noted.
    ///
    /// Returns its seconds; `None`: there is no such lease, or its time is over.
    ///
    /// # Errors
    /// See [`KvError`]; a lease that was not renewed in time ends.
    pub async fn keep_alive(&self, id: i64) -> Result<Option<u64>, KvError> {
        let (store, term) = self.leases_of_leader().await?;
        let generation = store.current();
        let Some(lease) = generation.leases().get(id) else { return Ok(None) };
        if lease.remaining.is_some() {
            let operation = KvOperation::CheckpointLeases { remaining: vec![(id, None)], term };
            propose(&self.engine, None, operation).await.map_err(propose_error)?;
        }
        let mut leases = generation.leases().lock();
        match &mut leases.clock {
            Some(clock) if clock.term == term => Ok(clock.left(id).map(|_| {
                clock.renew(id, lease.ttl);
                lease.ttl
            })),
            _ => Err(KvError::NotLeader { leader: None }),
        }
    }

    /// A lease and what it has left, on the leader; `None`: there is no such lease, or its time is over.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn time_to_live(&self, id: i64, with_keys: bool) -> Result<Option<LeaseState>, KvError> {
        let (store, _) = self.leases_of_leader().await?;
        let generation = store.current();
        let (ttl, left) = {
            let leases = generation.leases().lock();
            let Some(lease) = leases.all.get(&id) else { return Ok(None) };
            let Some(left) = leases.clock.as_ref().and_then(|clock| clock.left(id)) else { return Ok(None) };
            (lease.ttl, left)
        };
        let keys = if with_keys {
            blocking(move || lease::attached_keys(&**generation.db(), id)).await?
        } else {
            Vec::new()
        };
        Ok(Some(LeaseState { ttl, left, keys }))
    }

    /// The ids of all leases, in their order.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn leases(&self) -> Result<Vec<i64>, KvError> {
        let executor = self.executor.as_ref().ok_or_else(|| self.left_to_leader())?;
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        let generation = executor.store().current();
        let ids = generation.leases().lock().all.keys().copied().collect();
        Ok(ids)
    }

    /// A witness has no leases, but knows who does.
    fn left_to_leader(&self) -> KvError {
        KvError::NotLeader { leader: self.engine.status().borrow().leader }
    }

    /// The store of a leader that knows all leases and counts their time, and the leader's term. A quorum has confirmed that this
    /// node is still the leader.
    async fn leases_of_leader(&self) -> Result<(Arc<Store>, u64), KvError> {
        let executor = self.executor.as_ref().ok_or_else(|| self.left_to_leader())?;
        let mut status = self.engine.status();
        let (leads, leader, term) = {
            let status = status.borrow_and_update();
            (matches!(status.role, Role::Leader | Role::Standalone), status.leader, status.term.0)
        };
        if !leads {
            return Err(KvError::NotLeader { leader });
        }
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        let store = executor.store().clone();
        for _ in 0..CLOCK_LOOKS {
            if !lessor::leads_in(&status, term) {
                break;
            }
            if store.current().leases().lock().clock.as_ref().is_some_and(|clock| clock.term == term) {
                return Ok((store, term));
            }
            // It has just been elected.
            tokio::time::sleep(CLOCK_LOOK).await;
        }
        let leader = status.borrow().leader.filter(|_| !lessor::leads_in(&status, term));
        Err(KvError::NotLeader { leader })
    }
}

/// Draws an id for a lease. It is positive, as clients show ids in hexadecimal digits.
#[must_use]
pub fn random_lease_id() -> i64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::time::Instant::now());
    (random >> 1).max(1).cast_signed()
}

/// How often, and how long each time, a call about leases waits for a leader that was just elected.
const CLOCK_LOOKS: u32 = 20;
const CLOCK_LOOK: Duration = Duration::from_millis(50);
