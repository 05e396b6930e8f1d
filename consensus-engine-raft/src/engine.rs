//! The public handle of an engine.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use consensus_core::{
    ChangeError, Committed, ConsensusEngine, EngineStatus, Entry, HardState, Health, LeadershipId, LogBatch,
    LogId, LogIndex, LogState, LogStorage, MemberChange, MemberKind, Membership, Message, MessageHandler,
    NetworkTransport, NodeId, Payload, ProposeError, ReadConsistency, ReadError, ShutdownError, SnapshotAck,
    SnapshotChunk, SnapshotError, SnapshotOutcome, StateMachine, StorageError, TransferError, TransportError,
};
use consensus_raft_protocol::{ConfigError, InterruptedInstall, Raft, Restored};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use crate::{
    RaftBuilder, RaftConfig,
    admission::Admission,
    apply_thread::Applier,
    config::new_leadership,
    driver::Driver,
    flight::Recorded,
    inbox::{Arrival, Inbox, Input},
    latency::Latency,
    measure::{self, ProposalTiming},
    snapshot_receive::{Received, Receiver},
    storage_thread::LogWriter,
    waiters::Waiter,
    witness::WitnessMachine,
    worker::{self, Worker},
};

/// Raft engine of one node. Dropping it stops the engine without transferring leadership;
/// [`shutdown`](ConsensusEngine::shutdown) stops it gracefully.
#[derive(Debug)]
pub struct RaftEngine {
    inbox: Inbox,
    status: watch::Receiver<Arc<EngineStatus>>,
    proposals: Arc<Admission>,
    reads: Arc<Admission>,
    command_bytes_max: u64,
    /// Whether a metrics recorder is installed.
    is_measured: bool,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// Why an engine did not start. Nothing is running then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is invalid.
    #[error("raft configuration: {0}")]
    Config(#[from] ConfigError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The transport did not start.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Log and state machine belong to different nodes, or one of them was restored to an earlier state.
    #[error(
        "the state machine has applied entry {applied}, but the log holds the entries after {purged}, up to {last}: they do not belong together; restore log and state from the same copy, or replace the node: remove it from the cluster, empty its data directory, and add it again"
    )]
    Mismatch {
        /// Last entry that the state machine has applied.
        applied: LogId,
        /// Last purged entry.
        purged: LogId,
        /// Last entry of the log.
        last: LogId,
    },
    /// The log has another entry where the state machine has applied its last one: log and state are of different histories,
    /// for instance of two clusters in which the node had the same id.
    #[error(
        "the state machine has applied entry {applied}, and the log has entry {logged} at that index: they are of different histories, as when the state of another cluster was put beside this log; restore log and state from the same copy, or replace the node: remove it from the cluster, empty its data directory, and add it again"
    )]
    OtherHistory {
        /// Last entry that the state machine has applied.
        applied: LogId,
        /// Entry of the log at that index.
        logged: LogId,
    },
    /// The system refused to start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A witness was started as a node with data, or vice versa. It would lack data that the other members rely on.
    #[error(
        "node {node} is a {kind} in its cluster, but was started as {started}: start it as a {kind}, or remove it from the cluster and add it again with an empty disk"
    )]
    OtherKind {
        /// Id of the node.
        node: NodeId,
        /// Kind of the member in the configuration.
        kind: MemberKind,
        /// Kind as which it was started.
        started: &'static str,
    },
    /// The task that loads the log was cancelled, because the runtime is shutting down.
    #[error("the runtime is shutting down")]
    Runtime,
}

impl RaftEngine {
    /// Returns a builder with the default settings of node `id`; [`RaftBuilder::start`] calls [`start`](Self::start).
    pub fn builder(id: NodeId) -> RaftBuilder {
        RaftBuilder::new(id)
    }

    /// Starts the engine of one node: loads the log, applies the entries that are known to be committed, and joins the
    /// cluster.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        config: RaftConfig,
        transport: Arc<dyn NetworkTransport>,
        storage: Arc<dyn LogStorage>,
        machine: Box<dyn StateMachine>,
    ) -> Result<Arc<Self>, StartError> {
        config.validate()?;
        let applied = machine.applied();
        let (own, loading, bootstrap) = (config.protocol.id, storage.clone(), config.bootstrap.clone());
        let load = move || load(&*loading, own, bootstrap, applied);
        let log = worker::call(config.threads, load).await.map_err(|_| StartError::Runtime)??;
        Self::run(config, transport, storage, machine, log, applied).await
    }

    /// Starts a [witness](consensus_core::MemberKind::Witness): it votes and counts towards quorums, keeps a log without
    /// commands, and has no state machine.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_witness(
        mut config: RaftConfig,
        transport: Arc<dyn NetworkTransport>,
        storage: Arc<dyn LogStorage>,
    ) -> Result<Arc<Self>, StartError> {
        config.validate()?;
        config.protocol.witness = true;
        let (own, loading, bootstrap) = (config.protocol.id, storage.clone(), config.bootstrap.clone());
        // A witness has no state that an interrupted snapshot installation could have left incomplete.
        let load = move || load_witness(&*loading, own, bootstrap);
        let log = worker::call(config.threads, load).await.map_err(|_| StartError::Runtime)??;
        let applied = log.purged.last;
        Self::run(config, transport, storage, Box::new(WitnessMachine(applied)), log, applied).await
    }

    async fn run(
        mut config: RaftConfig,
        transport: Arc<dyn NetworkTransport>,
        storage: Arc<dyn LogStorage>,
        machine: Box<dyn StateMachine>,
        log: LogState,
        applied: LogId,
    ) -> Result<Arc<Self>, StartError> {
        if config.protocol.leadership == LeadershipId::NONE {
            config.protocol.leadership = new_leadership();
        }
        let restored = Restored { log, applied: applied.index };
        let raft = Raft::new(config.protocol.clone(), restored, std::time::Duration::ZERO)?;
        let (node, witness) = (raft.id(), config.protocol.witness);
        if let Some(kind) = raft.membership().get(node).map(|member| member.kind)
            && (kind == MemberKind::Witness) != witness
        {
            let started = if witness { "a witness" } else { "a node with data" };
            return Err(StartError::OtherKind { node, kind, started });
        }
        let raft = Recorded::new(raft, config.flight_recorder.as_ref());
        let (inbox, inputs) = mpsc::unbounded_channel();
        let span = tracing::error_span!("raft", node = %config.protocol.id);
        let writer = LogWriter::new(storage.clone());
        let applier = Applier::new(machine, witness, storage.clone(), config.apply_read_bytes_max);
        let (writer, applier) = if config.threads {
            (
                Worker::spawn("raft-log", span.clone(), inbox.clone(), writer)?,
                Worker::spawn("raft-apply", span.clone(), inbox.clone(), applier)?,
            )
        } else if let Some(simulated) = &config.simulated_latency {
            (
                Worker::late(Latency::of_writes(simulated), inbox.clone(), writer),
                Worker::late(Latency::of_machine(simulated), inbox.clone(), applier),
            )
        } else {
            (Worker::inline(writer), Worker::inline(applier))
        };
        let handler = Handler {
            span: span.clone(),
            threads: config.threads,
            inbox: inbox.clone(),
            messages: Admission::new(u64::MAX, config.inbox_bytes_max),
            snapshots: Arc::new(tokio::sync::Mutex::new(Receiver::new(
                config.snapshot_dir.clone(),
                config.snapshot_reserve_bytes,
            ))),
        };
        let (proposals, reads) = (
            Admission::new(config.proposals_max, config.proposal_bytes_max),
            Admission::new(config.reads_max, u64::MAX),
        );
        let command_bytes_max = config.command_bytes_max;
        let is_measured = measure::Stages::new().are_recorded();
        let (driver, status) = Driver::new(
            config,
            raft,
            applied.index,
            transport.clone(),
            storage,
            (inbox.clone(), inputs),
            proposals.clone(),
            writer,
            applier,
        );
        transport.start(Arc::new(handler)).await?;
        let task = tokio::spawn(driver.supervised().instrument(span));
        Ok(Arc::new(Self {
            inbox,
            status,
            proposals,
            reads,
            command_bytes_max,
            is_measured,
            task: Mutex::new(Some(task)),
        }))
    }

    /// Returns the error that stopped the engine, if there was one.
    fn stopped(&self) -> Option<String> {
        match &self.status.borrow().health {
            Health::Fatal(why) => Some(why.clone()),
            _ => None,
        }
    }

    fn why_stopped(&self) -> String {
        self.stopped().unwrap_or_else(|| "the engine is shut down".to_owned())
    }
}

/// Loads the log, completes an interrupted snapshot installation, and writes the first configuration into an empty log.
fn load(
    storage: &dyn LogStorage,
    own: NodeId,
    bootstrap: Option<Membership>,
    applied: LogId,
) -> Result<LogState, StartError> {
    let mut log = load_sound(storage, own)?;
    if let Some(todo) = Raft::interrupted_install(&log.hard_state, applied.index) {
        let hard_state = Some(HardState { installing: None, ..log.hard_state.clone() });
        storage.write(match todo {
            InterruptedInstall::Finish(meta) => LogBatch {
                hard_state,
                truncate_after: Some(meta.last.index),
                purge: Some(meta),
                ..LogBatch::default()
            },
            InterruptedInstall::Discard => LogBatch { hard_state, ..LogBatch::default() },
        })?;
        log = storage.load()?;
    }
    if let (Some(membership), true) = (bootstrap, log.is_new()) {
        // The entry is the same on every node, and its term is before that of any leader: as if replicated by a leader of
        // term 0.
        let entry = Entry { id: LogId::new(0, 1), payload: Payload::Membership(membership) };
        storage.write(LogBatch { entries: vec![entry], ..LogBatch::default() })?;
        log = storage.load()?;
    }
    let (purged, last) = (log.purged.last, log.last());
    // A state machine may be ahead of a truncated log; entries are applied again only after the log has caught up.
    let is_cut = log.hard_state.lost_through.is_some();
    if applied.index < purged.index || (applied.index > last.index && !is_cut) {
        return Err(StartError::Mismatch { applied, purged, last });
    }
    let logged = logged_at(&log, applied.index).filter(|logged| *logged != applied);
    logged.map_or(Ok(log), |logged| Err(StartError::OtherHistory { applied, logged }))
}

/// The entry at `index`, if the log has it or was purged just up to it.
fn logged_at(log: &LogState, index: LogIndex) -> Option<LogId> {
    let purged = log.purged.last;
    let Some(place) = index.0.checked_sub(purged.index.0 + 1) else {
        return Some(purged).filter(|purged| purged.index == index);
    };
    log.entries.get(usize::try_from(place).ok()?).map(|(id, _)| *id)
}

/// Loads the log. A log with damaged entries is truncated before them if the other voters do not need this node's
/// acknowledgements of them; the leader then sends the entries again (I16 of the protocol).
fn load_sound(storage: &dyn LogStorage, own: NodeId) -> Result<LogState, StartError> {
    let log = storage.load()?;
    let Some(damage) = &log.damage else { return Ok(log) };
    let Some(cut) = Raft::repair(&log, own) else { return Err(damage.to_error().into()) };
    tracing::warn!(
        position = damage.position, why = damage.why, after = %log.last(), through = %damage.last,
        "the log is damaged; its damaged end is removed and fetched again from the other members"
    );
    storage.write(cut)?;
    Ok(storage.load()?)
}

fn load_witness(
    storage: &dyn LogStorage,
    own: NodeId,
    bootstrap: Option<Membership>,
) -> Result<LogState, StartError> {
    let state = storage.load()?;
    let installing = state.hard_state.installing.map(|meta| meta.last);
    load(storage, own, bootstrap, installing.unwrap_or(state.purged.last))
}

#[async_trait]
impl ConsensusEngine for RaftEngine {
    async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError> {
        let (bytes, limit) = (command.len() as u64, self.command_bytes_max);
        if bytes > limit {
            measure::refused("too_large");
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let permit = self.proposals.admit(bytes);
        let permit = permit.map_err(|(in_flight, in_flight_bytes)| {
            measure::refused("overloaded");
            ProposeError::Overloaded { in_flight, in_flight_bytes }
        })?;
        let (reply, answer) = oneshot::channel();
        // No other node has seen the command, and a stopped engine applies nothing.
        let refused = || self.stopped().map_or(ProposeError::ShutDown, |why| ProposeError::Fatal { why });
        let waiter = Waiter { reply, permit, timing: ProposalTiming::start(self.is_measured) };
        self.inbox.send(Input::Propose(command, waiter)).map_err(|_| refused())?;
        answer.await.unwrap_or_else(|_| {
            Err(ProposeError::Unknown { why: "the engine stopped before the outcome was known" })
        })
    }

    async fn read_barrier(&self, consistency: ReadConsistency) -> Result<LogIndex, ReadError> {
        let gone = || self.stopped().map_or(ReadError::ShutDown, |why| ReadError::Fatal { why });
        // Reads whose result depends on the time are decided by the engine's task, which has the clock.
        if consistency == ReadConsistency::Stale {
            let status = self.status.borrow();
            return match &status.health {
                Health::Running => Ok(status.applied),
                Health::ShutDown => Err(ReadError::ShutDown),
                Health::Fatal(why) => Err(ReadError::Fatal { why: why.clone() }),
            };
        }
        let permit = self.reads.admit(0).map_err(|(waiting, _)| ReadError::Overloaded { waiting })?;
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Input::Read(consistency, reply, permit)).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    fn status(&self) -> watch::Receiver<Arc<EngineStatus>> {
        self.status.clone()
    }

    async fn change_membership(&self, changes: Vec<MemberChange>) -> Result<Arc<Membership>, ChangeError> {
        let gone = || ChangeError::NotRunning { why: self.why_stopped() };
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Input::ChangeMembership(changes, reply)).map_err(|_| gone())?;
        answer
            .await
            .unwrap_or(Err(ChangeError::Unknown { why: "the engine stopped before the outcome was known" }))
    }

    async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        let gone = || TransferError::NotRunning { why: self.why_stopped() };
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Input::Transfer(to, reply)).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn compact_log(&self) -> Result<LogIndex, SnapshotError> {
        let gone = || SnapshotError::NotRunning(self.why_stopped());
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Input::Compact(reply)).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn shutdown(&self) -> Result<(), ShutdownError> {
        let (reply, done) = oneshot::channel();
        if self.inbox.send(Input::Shutdown(Some(reply))).is_ok() {
            let _ = done.await; // If the engine failed meanwhile, the error is returned below.
        }
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
        self.stopped().map_or(Ok(()), |why| Err(ShutdownError(why)))
    }
}

impl Drop for RaftEngine {
    fn drop(&mut self) {
        let _ = self.inbox.send(Input::Shutdown(None));
    }
}

/// Receives messages from the transport.
struct Handler {
    span: tracing::Span,
    threads: bool,
    inbox: Inbox,
    messages: Arc<Admission>,
    snapshots: Arc<tokio::sync::Mutex<Receiver>>,
}

#[async_trait]
impl MessageHandler for Handler {
    fn on_message(&self, from: NodeId, message: Message) {
        // A message beyond the limit is dropped, as on a network; the sender repeats it.
        if let Ok(permit) = self.messages.admit(message.size_bytes()) {
            let _ = self.inbox.send(Input::Message(from, message, permit));
        }
    }

    async fn on_snapshot_chunk(&self, from: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        let (term, mut receiver) = (chunk.term, self.snapshots.clone().lock_owned().await);
        let refused = SnapshotAck { term, outcome: SnapshotOutcome::Refused };
        let span = self.span.clone();
        let take = move || span.in_scope(|| receiver.take(from, &chunk));
        let received = worker::call(self.threads, take).await;
        match received {
            Ok(Received::Respond(outcome)) => SnapshotAck { term, outcome },
            Ok(Received::Blocked(why)) => {
                let _ = self.inbox.send(Input::SnapshotBlocked(why)); // The engine is ending.
                refused
            }
            Ok(Received::Complete(meta, file)) => {
                let bytes = file.metadata().map_or(0, |file| file.len());
                let (reply, answer) = oneshot::channel();
                let arrival = Arrival { from, term, meta, file, reply };
                if self.inbox.send(Input::SnapshotArrived(arrival)).is_err() {
                    return refused;
                }
                let ack = answer.await.unwrap_or(refused);
                let mut receiver = self.snapshots.lock().await;
                match ack.outcome {
                    SnapshotOutcome::Installed => receiver.installed(),
                    _ => receiver.not_installed(bytes),
                }
                ack
            }
            Err(_) => refused,
        }
    }
}
