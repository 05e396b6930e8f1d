//! The smallest engine.
//!
//! [`MockConsensusEngine::new`] creates a single node that applies each command without a log and without messages, on the
//! state machine's thread or on the caller's task ([`with_inline_apply`](MockConsensusEngine::with_inline_apply)). With a
//! machine that makes each batch durable it is a complete standalone service.
//!
//! [`MockConsensusEngine::new_with_transport`] replicates from a fixed leader. The leader sends a command to all members as
//! `AppendEntries`, applies it when a majority has acknowledged it, and then announces it with `CommitNotification`.
//!
//! A machine that does not respond for 10 s ([`with_apply_stall_limit`](MockConsensusEngine::with_apply_stall_limit)) shows in
//! the status ([`EngineStatus::apply_stalled_since`]), also if the disk is the cause, because there is no log of its own. From
//! then on commands are refused with [`ProposeError::Stalled`] and reads go on with what is applied, until the machine responds
//! again. Commands that were accepted before wait for it, without a limit: here only the machine can tell whether they are done.
//!
//! What this is *not*: fault tolerant. There is no election, so the cluster stops when its leader fails; and there is no log
//! on disk, so a restarted leader starts a different history. It serves tests, and as the simplest example of an engine.

mod machine;
mod replicated;
mod stall;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use consensus_core::{
    ChangeError, Committed, ConsensusEngine, EngineStatus, Health, LogIndex, MemberChange, Membership,
    NetworkTransport, NodeId, ProposeError, ReadConsistency, ReadError, Role, ShutdownError, SnapshotError,
    StateMachine, TransferError, TransportError,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    machine::MachineThread,
    replicated::{INPUTS_MAX, Input, Replication},
};

/// The engine; see the [description of the crate](crate).
#[derive(Debug)]
pub struct MockConsensusEngine {
    node: NodeId,
    machine: Mutex<Option<MachineThread>>,
    /// `None` on a single node.
    replication: Option<mpsc::Sender<Input>>,
    status: watch::Receiver<Arc<EngineStatus>>,
    inline_apply: bool,
}

/// Most pending proposals; more are refused with [`ProposeError::Overloaded`].
const PROPOSALS_MAX: u64 = 65_536;

impl MockConsensusEngine {
    /// Creates a single node.
    ///
    /// # Errors
    /// The thread of the state machine cannot be started.
    pub fn new(node_id: NodeId, state_machine: Box<dyn StateMachine>) -> std::io::Result<Self> {
        let (machine, status) =
            MachineThread::spawn(node_id, state_machine, Role::Standalone, Some(node_id))?;
        Ok(Self {
            node: node_id,
            machine: Mutex::new(Some(machine)),
            replication: None,
            status,
            inline_apply: false,
        })
    }

    /// Applies a command on the task that proposes it, if no other command is pending, the last batch took less than a
    /// millisecond, and the runtime has another thread for other tasks. Concurrent commands are still collected into batches
    /// for the machine's thread. Only for a single node; without effect otherwise. Only for machines that do not wait for
    /// tasks of a runtime in `apply`, which would panic on the caller's task.
    #[must_use]
    pub fn with_inline_apply(mut self) -> Self {
        self.inline_apply = self.replication.is_none();
        self
    }

    /// Sets the time after which the status shows that the state machine does not respond. Default: 10 s.
    #[must_use]
    pub fn with_apply_stall_limit(self, limit: Duration) -> Self {
        if let Some(jobs) = self.jobs() {
            jobs.set_stall_limit(limit);
        }
        self
    }

    /// Creates a node of a cluster of `members` with the fixed leader `leader`. Both must be the same on every node.
    ///
    /// # Errors
    /// The transport cannot be started, or the thread of the state machine cannot be started.
    pub async fn new_with_transport(
        node_id: NodeId,
        state_machine: Box<dyn StateMachine>,
        transport: Arc<dyn NetworkTransport>,
        leader: NodeId,
        members: Vec<NodeId>,
    ) -> Result<Self, TransportError> {
        let role = if node_id == leader { Role::Leader } else { Role::Follower };
        let spawned = MachineThread::spawn(node_id, state_machine, role, Some(leader));
        let thread = |source| TransportError::Io { context: "starting a thread".to_owned(), source };
        let (machine, status) = spawned.map_err(thread)?;
        let replication =
            Replication::start(node_id, leader, members, transport, machine.jobs(), status.clone()).await?;
        Ok(Self {
            node: node_id,
            machine: Mutex::new(Some(machine)),
            replication: Some(replication),
            status,
            inline_apply: false,
        })
    }

    fn jobs(&self) -> Option<machine::Jobs> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(MachineThread::jobs)
    }

    fn refusal(&self) -> ProposeError {
        match &self.status.borrow().health {
            Health::Fatal(why) => ProposeError::Fatal { why: why.clone() },
            _ => ProposeError::ShutDown,
        }
    }

    fn leader_hint(&self) -> Option<NodeId> {
        let leader = self.status.borrow().leader;
        leader.filter(|leader| *leader != self.node)
    }
}

#[async_trait]
impl ConsensusEngine for MockConsensusEngine {
    async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError> {
        let jobs = self.jobs().ok_or_else(|| self.refusal())?;
        if self.status.borrow().health != Health::Running {
            return Err(self.refusal()); // Other members might commit a command that this node cannot apply.
        }
        if let Some(leader) = self.leader_hint() {
            return Err(ProposeError::NotLeader { leader: Some(leader) });
        }
        if let Some(since) = self.status.borrow().apply_stalled_since {
            let seconds = since.elapsed().as_secs_f64();
            let why = format!("the state machine does not respond, for {seconds:.1} s now");
            return Err(ProposeError::Stalled { why });
        }
        let mut command = command;
        if self.inline_apply {
            match jobs.apply_inline(command) {
                Ok(result) => return result,
                Err(not_applied) => command = not_applied,
            }
        }
        let (reply, result) = oneshot::channel();
        let queued = match &self.replication {
            None => jobs.propose(command, reply, PROPOSALS_MAX)?,
            Some(replication) => match replication.try_send(Input::Propose(command, reply)) {
                Err(mpsc::error::TrySendError::Full(_)) => {
                    return Err(ProposeError::Overloaded {
                        in_flight: INPUTS_MAX as u64,
                        in_flight_bytes: 0,
                    });
                }
                sent => sent.is_ok(),
            },
        };
        if !queued {
            return Err(self.refusal());
        }
        result.await.unwrap_or_else(|_| {
            Err(ProposeError::Unknown { why: "the engine stopped before the command was applied or refused" })
        })
    }

    async fn read_barrier(&self, consistency: ReadConsistency) -> Result<LogIndex, ReadError> {
        let status = self.status.borrow().clone();
        match &status.health {
            Health::Running => {}
            Health::ShutDown => return Err(ReadError::ShutDown),
            Health::Fatal(why) => return Err(ReadError::Fatal { why: why.clone() }),
        }
        match self.leader_hint() {
            Some(leader) if !matches!(consistency, ReadConsistency::Stale) => {
                Err(ReadError::NotLeader { leader: Some(leader) })
            }
            // The leader is fixed, and acknowledges a command only after it has applied it.
            _ => Ok(status.applied),
        }
    }

    fn status(&self) -> watch::Receiver<Arc<EngineStatus>> {
        self.status.clone()
    }

    async fn change_membership(&self, _changes: Vec<MemberChange>) -> Result<Arc<Membership>, ChangeError> {
        Err(ChangeError::Unsupported)
    }

    async fn transfer_leadership(&self, _to: Option<NodeId>) -> Result<NodeId, TransferError> {
        Err(TransferError::Unsupported)
    }

    async fn compact_log(&self) -> Result<LogIndex, SnapshotError> {
        Err(SnapshotError::NoLog)
    }

    async fn shutdown(&self) -> Result<(), ShutdownError> {
        if let Some(replication) = &self.replication {
            let (done, stopped) = oneshot::channel();
            if replication.send(Input::Shutdown(done)).await.is_ok() {
                let _ = stopped.await;
            }
        }
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(machine) = machine {
            let _ = tokio::task::spawn_blocking(move || drop(machine)).await;
        }
        match &self.status.borrow().health {
            Health::Fatal(why) => Err(ShutdownError(why.clone())),
            _ => Ok(()),
        }
    }
}
