//! Space of the store: its quota, and the alarms.

use consensus_core::{ProposeError, ReadConsistency, Role};

use super::{ConsensusKvDatabase, KvError, blocking, failure, propose, propose_error, read_error, witness};
use tokio::sync::watch;

use crate::{Alarm, AlarmKind, CheckedState, KvOperation, KvStoreExecutor, Session, StoreSnapshot};

impl ConsensusKvDatabase {
    /// Refuses a command that adds data if the store of this node, the leader, would exceed the quota, or if the alarm
    /// is raised.
    ///
    /// The alarm precedes the command in the log, and the command is refused when it is applied, too. For a command in
    /// a session only that check counts, because the command may repeat one that was executed.
    pub(super) async fn check_space(
        &self,
        session: Option<&Session>,
        operation: &KvOperation,
    ) -> Result<(), KvError> {
        if !operation.adds_data() {
            return Ok(());
        }
        // Other nodes refuse the command because they are not leader.
        let (is_leader, node) = {
            let status = self.engine.status();
            let status = status.borrow();
            (matches!(status.role, Role::Leader | Role::Standalone), status.node_id)
        };
        let Some(executor) = self.executor.as_ref().filter(|_| is_leader) else { return Ok(()) };
        let is_raised = || executor.alarms().iter().any(|alarm| alarm.kind == AlarmKind::NoSpace);
        let generation = executor.store().current();
        let quota = self.limits.quota_bytes;
        if self.quota.is_exceeded(&generation, quota, operation.added_bytes()).map_err(failure)? {
            let alarm = Alarm { kind: AlarmKind::NoSpace, node: Some(node) };
            if !executor.alarms().contains(&alarm) {
                propose(&self.engine, None, KvOperation::RaiseAlarm(alarm)).await.map_err(not_proposed)?;
                tracing::warn!(
                    quota,
                    "the store exceeds its quota (quota_size): raised the alarm NOSPACE, so writes are refused; \
                     delete keys, compact, then disarm the alarm"
                );
            }
        } else if !is_raised() {
            return Ok(());
        } else {
            // A command that this node has not applied yet may have disarmed the alarm.
            self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        }
        // The alarm CORRUPT may be raised too: the response must be the same as when the command is applied.
        match executor.store().current().alarms().get().refusal(operation) {
            Some(refusal) if session.is_none() => Err(refusal.into()),
            _ => Ok(()),
        }
    }

    /// Whether the store on this node exceeds its quota ([`quota_bytes`](crate::Limits::quota_bytes)); `false` on a witness.
    ///
    /// The leader checks this before it proposes a command. On other nodes the caller has to check, and to send
    /// [`KvOperation::RaiseAlarm`] to the leader.
    ///
    /// # Errors
    /// The disk failed.
    pub fn exceeds_quota(&self) -> Result<bool, KvError> {
        let Some(executor) = &self.executor else { return Ok(false) };
        let generation = executor.store().current();
        self.quota.is_exceeded(&generation, self.limits.quota_bytes, 0).map_err(failure)
    }

    /// Alarms that are raised in the state that this node has applied; none on a witness.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        self.executor.as_ref().map_or_else(Vec::new, KvStoreExecutor::alarms)
    }

    /// Alarms that are raised, as of a linearizable read.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn current_alarms(&self) -> Result<Vec<Alarm>, KvError> {
        let executor = self.executor.as_ref().ok_or_else(witness)?;
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        Ok(executor.alarms())
    }

    /// Takes a copy of the store on this node at its current revision. At most two copies exist at a time: a third call
    /// waits until one is dropped.
    ///
    /// # Errors
    /// The disk failed, or this is a witness.
    pub async fn snapshot(&self) -> Result<StoreSnapshot, KvError> {
        let executor = self.executor.clone().ok_or_else(witness)?;
        let permit = self.concurrency.snapshot().await;
        blocking(move || StoreSnapshot::take(executor.store(), permit)).await
    }

    /// Result of the last check of this node's state ([`KvOperation::CheckState`]), and of each later one; `None` on a
    /// witness.
    #[must_use]
    pub fn checked_states(&self) -> Option<watch::Receiver<CheckedState>> {
        self.executor.as_ref().map(|executor| executor.store().checked().subscribe())
    }

    /// Greatest member id that is in use, was in use, or is reserved ([`KvOperation::ReserveMemberIds`]), in the state
    /// that this node has applied; 0 on a witness.
    #[must_use]
    pub fn last_member_id(&self) -> u64 {
        self.executor.as_ref().map_or(0, |executor| executor.store().current().meta().last_member_id)
    }

    /// Reclaims the disk space of deleted and compacted versions on this node, sooner than background compactions of
    /// RocksDB would, by rewriting its tables. Reads and writes continue meanwhile. Does nothing on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn reclaim_space(&self) -> Result<(), KvError> {
        let Some(executor) = self.executor.clone() else { return Ok(()) };
        let _permit = self.concurrency.long_read().await;
        blocking(move || executor.reclaim_space()).await
    }
}

/// Error of a command that was not proposed because the command before it failed.
fn not_proposed(error: ProposeError) -> KvError {
    match propose_error(error) {
        KvError::Unavailable { why, .. } => KvError::Unavailable { why, maybe_applied: false },
        error => error,
    }
}
