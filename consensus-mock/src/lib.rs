//! The smallest engine.
//!
//! [`MockConsensusEngine::new`] is one node that applies at once: no log, no messages, no overhead but the hop to the
//! state machine's thread, or not even that ([`at_once`](MockConsensusEngine::at_once)). With a machine that makes each batch
//! durable it is a complete standalone service.
//!
//! [`MockConsensusEngine::new_with_transport`] replicates from a fixed leader: a command is sent to all as
//! `AppendEntries`, applied when a majority has acknowledged it, and then announced by `CommitNotification`.
//!
//! What this is *not*: fault tolerant. There is no election, so without its leader the cluster stands still; and no log
//! on disk, so a leader that restarts begins another history. It serves tests, and shows what an engine is made of.

mod machine;
mod replicated;

use std::sync::{Arc, Mutex, PoisonError};

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

/// See the [crate's description](crate).
#[derive(Debug)]
pub struct MockConsensusEngine {
    node: NodeId,
    machine: Mutex<Option<MachineThread>>,
    /// `None` on a node that stands alone.
    replication: Option<mpsc::Sender<Input>>,
    status: watch::Receiver<Arc<EngineStatus>>,
    at_once: bool,
}

/// Most proposals that wait for the state machine; more are refused as overload.
const PROPOSALS_MAX: u64 = 65_536;

impl MockConsensusEngine {
    /// A single node.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn new(node_id: NodeId, state_machine: Box<dyn StateMachine>) -> std::io::Result<Self> {
        let (machine, status) =
            MachineThread::spawn(node_id, state_machine, Role::Standalone, Some(node_id))?;
        Ok(Self {
            node: node_id,
            machine: Mutex::new(Some(machine)),
            replication: None,
            status,
            at_once: false,
        })
    }

    /// Has a command that comes alone applied on the task that proposes it, if the last one took less than a millisecond and the
    /// runtime has another thread for other tasks; what comes together makes one batch for the machine's thread still. For
    /// machines that use no runtime themselves: to wait for one there would be an error. For a node that stands alone.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = self.replication.is_none();
        self
    }

    /// A node of a cluster of `members`, led by `leader` for ever; both the same on every node.
    ///
    /// # Errors
    /// The transport does not start, or no thread can be had.
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
            at_once: false,
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
            return Err(self.refusal()); // Others might still commit what this node can no longer apply.
        }
        if let Some(leader) = self.leader_hint() {
            return Err(ProposeError::NotLeader { leader: Some(leader) });
        }
        let mut command = command;
        if self.at_once {
            match jobs.propose_here(command) {
                Ok(answer) => return answer,
                Err(back) => command = back,
            }
        }
        let (reply, answer) = oneshot::channel();
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
        answer.await.unwrap_or_else(|_| Err(ProposeError::Unknown { why: "the engine stopped meanwhile" }))
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
            // There is one leader for ever, and it acknowledges what it has applied.
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
