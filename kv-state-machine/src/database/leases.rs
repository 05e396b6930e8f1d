//! Operations on leases.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use consensus_core::{ReadConsistency, Role};
use serde::{Deserialize, Serialize};

use super::{ConsensusKvDatabase, KvError, auth::LeasesOf, blocking, propose, propose_error, read_error};
use crate::{
    Caller, KeyRange, KvOperation, KvRejection,
    auth::AccessKind,
    lessor::{self, Renewal},
    store::{Generation, Store},
    view::{Base, Overlay, View},
};

/// State of a lease, as known to the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseState {
    /// Time to live in seconds: the lease expires if it is not renewed for this time.
    pub ttl: u64,
    /// Remaining time.
    pub left: Duration,
    /// Keys attached to the lease, in key order; empty if they were not requested.
    pub keys: Vec<Bytes>,
}

/// The keys attached to a lease are deleted when the lease is revoked or expires: at one revision, or 10,000 at a time
/// ([`WORK_KEYS_MAX`](crate::WORK_KEYS_MAX)) at as many revisions as it takes.
impl ConsensusKvDatabase {
    /// Grants a lease that expires if it is not renewed for `ttl` seconds. Returns its id, which is random.
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
    /// let state = database.time_to_live(lease_id, true).await?.ok_or("the lease has not expired")?;
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

    /// Revokes a lease. Returns a revision at which all of its keys are deleted.
    ///
    /// # Errors
    /// See [`KvError`]; there is no such lease ([`KvRejection::NoLease`](crate::KvRejection::NoLease)).
    pub async fn revoke_lease(&self, id: i64) -> Result<u64, KvError> {
        Ok(self.execute_operation(KvOperation::RevokeLease { id }).await?.revision)
    }

    /// Renews a lease for its whole time to live, on the leader. This needs no log entry, unless the remaining time of
    /// the lease was checkpointed, or is being checkpointed.
    ///
    /// Returns the time to live in seconds; `None` if there is no such lease or it has expired.
    ///
    /// # Errors
    /// See [`KvError`]. A lease that is not renewed in time expires.
    pub async fn keep_alive(&self, id: i64) -> Result<Option<u64>, KvError> {
        self.keep_alive_as(&Caller::Server, id).await
    }

    /// Same as [`keep_alive`](Self::keep_alive), by a caller that must be permitted to write all keys of the lease.
    ///
    /// # Errors
    /// See [`keep_alive`](Self::keep_alive).
    pub async fn keep_alive_as(&self, caller: &Caller, id: i64) -> Result<Option<u64>, KvError> {
        let (store, term) = self.leases_of_leader().await?;
        self.check_leases(caller, AccessKind::Write, LeasesOf::Lease(id)).await?;
        let (generation, status) = (store.current(), self.engine.status());
        let mut replaced = None;
        while lessor::is_leader_of_term(&status, term) {
            let (ttl, renewal) = {
                let mut leases = generation.leases().lock();
                let Some(lease) = leases.get(id) else { return Ok(None) };
                let Some(clock) = leases.clock.as_mut().filter(|clock| clock.term == term) else { break };
                (lease.ttl, clock.renew(id, lease, replaced))
            };
            match renewal {
                Renewal::Renewed => {
                    store.measures().leases_renewed.increment(1);
                    return Ok(Some(ttl));
                }
                Renewal::Expired => return Ok(None),
                Renewal::CheckpointPending => tokio::time::sleep(CHECKPOINT_POLL_INTERVAL).await,
                Renewal::ReplaceCheckpoints(checkpoints) => {
                    let operation = KvOperation::CheckpointLeases { remaining: vec![(id, None)], term };
                    propose(&self.engine, None, operation).await.map_err(propose_error)?;
                    replaced = Some(checkpoints);
                }
            }
        }
        Err(KvError::NotLeader { leader: None })
    }

    /// Returns the state of a lease, on the leader; `None` if there is no such lease or it has expired.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn time_to_live(&self, id: i64, with_keys: bool) -> Result<Option<LeaseState>, KvError> {
        self.time_to_live_as(&Caller::Server, id, with_keys).await
    }

    /// Same as [`time_to_live`](Self::time_to_live), by a caller that must be a user, and be permitted to read all keys that it
    /// requests.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn time_to_live_as(
        &self,
        caller: &Caller,
        id: i64,
        with_keys: bool,
    ) -> Result<Option<LeaseState>, KvError> {
        let (store, _) = self.leases_of_leader().await?;
        let generation = store.current();
        self.check_user(caller).map_err(KvRejection::from)?;
        let (ttl, left) = {
            let leases = generation.leases().lock();
            let Some(lease) = leases.get(id) else { return Ok(None) };
            let Some(left) = leases.clock.as_ref().and_then(|clock| clock.left(id)) else { return Ok(None) };
            (lease.ttl, left)
        };
        let keys = if with_keys { self.readable_keys(caller, generation, id).await? } else { Vec::new() };
        Ok(Some(LeaseState { ttl, left, keys }))
    }

    /// Returns the keys attached to a lease, in key order, on any node that has data; none if there is no such lease.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, KvError> {
        self.lease_keys_as(&Caller::Server, id).await
    }

    /// Same as [`lease_keys`](Self::lease_keys), by a caller that must be permitted to read all of them.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn lease_keys_as(&self, caller: &Caller, id: i64) -> Result<Vec<Bytes>, KvError> {
        let executor = self.executor.as_ref().ok_or_else(|| self.witness_error())?;
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        self.readable_keys(caller, executor.store().current(), id).await
    }

    async fn readable_keys(
        &self,
        caller: &Caller,
        generation: Arc<Generation>,
        id: i64,
    ) -> Result<Vec<Bytes>, KvError> {
        // Before they are read: there may be many.
        self.check_leases(caller, AccessKind::Read, LeasesOf::Lease(id)).await?;
        let keys = attached_keys(generation, id).await?;
        if self.is_auth_enabled() {
            for key in &keys {
                let key = KeyRange { key: key.clone(), range_end: None };
                self.check_read(caller, &key).map_err(KvRejection::from)?;
            }
        }
        Ok(keys)
    }

    /// Returns the ids of all leases in ascending order.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn leases(&self) -> Result<Vec<i64>, KvError> {
        self.leases_as(&Caller::Server).await
    }

    /// Same as [`leases`](Self::leases), by a caller that must be permitted to read all keys of all leases.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn leases_as(&self, caller: &Caller) -> Result<Vec<i64>, KvError> {
        let executor = self.executor.as_ref().ok_or_else(|| self.witness_error())?;
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        // Before they are read: there may be many.
        self.check_leases(caller, AccessKind::Read, LeasesOf::All).await?;
        let ids: Vec<_> = {
            let generation = executor.store().current();
            let leases = generation.leases().lock();
            leases.all.iter().filter(|(_, lease)| !lease.is_ending).map(|(id, _)| *id).collect()
        };
        self.check_leases(caller, AccessKind::Read, LeasesOf::All).await?;
        Ok(ids)
    }

    /// Error of a witness, which has no leases but knows the leader.
    fn witness_error(&self) -> KvError {
        KvError::NotLeader { leader: self.engine.status().borrow().leader }
    }

    /// Returns the store and the term of this node if it is leader, knows all leases and counts their time. A quorum
    /// has confirmed that this node is still leader.
    async fn leases_of_leader(&self) -> Result<(Arc<Store>, u64), KvError> {
        let executor = self.executor.as_ref().ok_or_else(|| self.witness_error())?;
        let mut status = self.engine.status();
        let (is_leader, leader, term) = {
            let status = status.borrow_and_update();
            (matches!(status.role, Role::Leader | Role::Standalone), status.leader, status.term.0)
        };
        if !is_leader {
            return Err(KvError::NotLeader { leader });
        }
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        let store = executor.store().clone();
        for _ in 0..CLOCK_POLLS_MAX {
            if !lessor::is_leader_of_term(&status, term) {
                break;
            }
            if store.current().leases().lock().clock.as_ref().is_some_and(|clock| clock.term == term) {
                return Ok((store, term));
            }
            // This node was just elected and does not count the time of leases yet.
            tokio::time::sleep(CLOCK_POLL_INTERVAL).await;
        }
        let leader = status.borrow().leader.filter(|_| !lessor::is_leader_of_term(&status, term));
        Err(KvError::NotLeader { leader })
    }
}

/// Reads the keys attached to a lease from the disk.
async fn attached_keys(generation: Arc<Generation>, id: i64) -> Result<Vec<Bytes>, KvError> {
    blocking(move || {
        let (base, nothing) = (Base::new(&generation), Overlay::new());
        let deletions = generation.deletions();
        View { source: &base, overlay: &nothing, deletions: &deletions }.attached_keys(id, usize::MAX)
    })
    .await
}

/// Returns a random id for a lease. It is positive because clients show ids as hexadecimal digits.
#[must_use]
pub fn random_lease_id() -> i64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::time::Instant::now());
    (random >> 1).max(1).cast_signed()
}

/// Maximum number of polls, and the time between two, while a request waits for a new leader to start counting time.
const CLOCK_POLLS_MAX: u32 = 20;
const CLOCK_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two looks at whether a checkpoint is still pending.
const CHECKPOINT_POLL_INTERVAL: Duration = Duration::from_millis(10);
