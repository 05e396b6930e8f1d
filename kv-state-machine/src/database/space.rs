//! The space that the store takes: its quota, and the alarms.

use consensus_core::{ProposeError, ReadConsistency, Role};

use super::{ConsensusKvDatabase, KvError, blocking, failure, propose, propose_error, read_error, witness};
use crate::{Alarm, AlarmKind, KvOperation, KvStoreExecutor, Session, StoreSnapshot};

impl ConsensusKvDatabase {
    /// Refuses a command that adds data, on the leader, when its store would exceed the quota or the alarm is raised.
    ///
    /// The alarm comes before the command in the log, and refuses it there, too. A command of a session is left to that: it may
    /// repeat one that was executed.
    pub(super) async fn check_space(
        &self,
        session: Option<&Session>,
        operation: &KvOperation,
    ) -> Result<(), KvError> {
        if !operation.adds_data() {
            return Ok(());
        }
        // The others refuse it as they do not lead.
        let (leads, node) = {
            let status = self.engine.status();
            let status = status.borrow();
            (matches!(status.role, Role::Leader | Role::Standalone), status.node_id)
        };
        let Some(executor) = self.executor.as_ref().filter(|_| leads) else { return Ok(()) };
        let is_raised = || executor.alarms().iter().any(|alarm| alarm.kind == AlarmKind::NoSpace);
        let generation = executor.store().current();
        let quota = self.limits.quota_bytes;
        if self.quota.is_exceeded(&generation, quota, operation.added_bytes()).map_err(failure)? {
            let alarm = Alarm { kind: AlarmKind::NoSpace, node: Some(node) };
            if !executor.alarms().contains(&alarm) {
                propose(&self.engine, None, KvOperation::RaiseAlarm(alarm)).await.map_err(not_begun)?;
                tracing::warn!(
                    quota,
                    "the store exceeds its quota (quota_size): the alarm NOSPACE is raised"
                );
            }
        } else if !is_raised() {
            return Ok(());
        } else {
            // It may have been disarmed by a command that this node has yet to apply.
            self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        }
        // The other alarm may be raised, too: the answer is that of the log.
        match executor.store().current().alarms().get().refusal(operation) {
            Some(refusal) if session.is_none() => Err(refusal.into()),
            _ => Ok(()),
        }
    }

    /// Whether the store on this node exceeds its quota ([`quota_bytes`](crate::Limits::quota_bytes)); `false` on a witness.
    ///
    /// The leader finds that out before it proposes a command; for other nodes somebody has to ask, and have the leader execute
    /// [`KvOperation::RaiseAlarm`].
    ///
    /// # Errors
    /// The disk failed.
    pub fn exceeds_quota(&self) -> Result<bool, KvError> {
        let Some(executor) = &self.executor else { return Ok(false) };
        let generation = executor.store().current();
        self.quota.is_exceeded(&generation, self.limits.quota_bytes, 0).map_err(failure)
    }

    /// The alarms that are raised, as far as this node has applied; none on a witness.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        self.executor.as_ref().map_or_else(Vec::new, KvStoreExecutor::alarms)
    }

    /// The alarms that are raised, as current as a linearizable read.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn current_alarms(&self) -> Result<Vec<Alarm>, KvError> {
        let executor = self.executor.as_ref().ok_or_else(witness)?;
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        Ok(executor.alarms())
    }

    /// A copy of the store on this node, as it is now. Of copies that are kept at once there are two at most: a third waits.
    ///
    /// # Errors
    /// The disk failed, or this is a witness.
    pub async fn snapshot(&self) -> Result<StoreSnapshot, KvError> {
        let executor = self.executor.clone().ok_or_else(witness)?;
        let place = self.lanes.snapshot().await;
        blocking(move || StoreSnapshot::take(executor.store(), place)).await
    }

    /// The greatest id of a member that is in use, was in use, or is reserved
    /// ([`KvOperation::ReserveMemberIds`]), as far as this node has applied; 0 on a witness.
    #[must_use]
    pub fn last_member_id(&self) -> u64 {
        self.executor.as_ref().map_or(0, |executor| executor.store().current().meta().last_member_id)
    }

    /// Gives back to the disk what was deleted and compacted, sooner than the store does by itself: rewrites its tables on this
    /// node. Reads and writes go on meanwhile. Does nothing on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn reclaim_space(&self) -> Result<(), KvError> {
        let Some(executor) = self.executor.clone() else { return Ok(()) };
        let _place = self.lanes.long_read().await;
        blocking(move || executor.reclaim_space()).await
    }
}

/// The error of a command that was not proposed, as one before it could not be.
fn not_begun(error: ProposeError) -> KvError {
    match propose_error(error) {
        KvError::Unavailable { why, .. } => KvError::Unavailable { why, maybe_applied: false },
        error => error,
    }
}
