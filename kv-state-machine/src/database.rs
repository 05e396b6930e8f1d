//! An engine and a store together.

mod leases;
mod space;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use consensus_core::{
    Committed, ConsensusEngine, EngineStatus, Health, NodeId, ProposeError, ReadConsistency, ReadError, Role,
    ShutdownError, StorageError, codec,
};
use consensus_mock::MockConsensusEngine;
use consensus_storage_rocksdb::Reserve;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    task::JoinHandle,
};

use crate::{
    AutoCompaction, Durability, KeysHash, KvAnswer, KvCommand, KvOperation, KvRejection, KvStateMachine,
    KvStoreExecutor, Limits, Session, StateHash, WatchRequest, auto_compaction, check,
    execute::Halt,
    executor::unhalted,
    lanes::{Abandon, Lanes},
    lessor,
    limits::Amount,
    machine::{ANSWER_VERSION, COMMAND_VERSION},
    quota::Quota,
    watch::{WatchStream, Watches},
};

pub use self::leases::{LeaseState, random_lease_id};

/// The database as a program embeds it: operations in, answers out.
#[derive(Clone)]
pub struct ConsensusKvDatabase {
    engine: Arc<dyn ConsensusEngine>,
    /// `None` on a witness.
    executor: Option<KvStoreExecutor>,
    serving: Arc<AtomicBool>,
    reserve: Option<Reserve>,
    limits: Limits,
    quota: Arc<Quota>,
    lanes: Lanes,
    auto_compaction: Option<AutoCompaction>,
    tasks: Arc<Tasks>,
}

/// The tasks that count the time of leases and compact history. They end with the last handle of the database.
#[derive(Debug, Default)]
struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    /// Has these tasks run in place of those from before, which are returned and end soon.
    fn replace(&self, tasks: Vec<JoinHandle<()>>) -> Vec<JoinHandle<()>> {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), tasks);
        before.iter().for_each(JoinHandle::abort);
        before
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.replace(Vec::new());
    }
}

/// How current a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before it began.
    #[default]
    Linearizable,
    /// The same without asking anybody, while the leader has a lease; clocks must keep to the bound that was set.
    Lease,
    /// What this node has applied, at once.
    Stale,
}

/// Why an operation has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The store did not do it.
    #[error(transparent)]
    Rejected(#[from] KvRejection),
    /// This node does not lead. Nothing was done.
    #[error("node does not lead")]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The node cannot serve it, or does not know what became of it.
    #[error("{why}")]
    Unavailable {
        /// Why.
        why: String,
        /// Whether it may have been done; if so, repeat it only under the same session number.
        maybe_applied: bool,
    },
}

/// Why a database did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvStartError {
    /// The directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No thread could be had.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The engine is not running.
    #[error("the engine is not running: {0}")]
    Engine(String),
}

impl ConsensusKvDatabase {
    /// A database of one node without consensus: each write is applied at once and is on disk when it is acknowledged.
    ///
    /// # Errors
    /// The directory `path` cannot be opened as `node`'s store.
    pub fn new_with_mock(node: NodeId, path: &Path) -> Result<Self, KvStartError> {
        let machine = KvStateMachine::open(path, node, Durability::EachBatch)?;
        let executor = machine.executor();
        let engine = MockConsensusEngine::new(node, Box::new(machine))?.with_inline_apply();
        Ok(Self::new(Arc::new(engine), executor))
    }

    /// A database on an engine that owns the state machine of which `executor` is the handle.
    #[must_use]
    pub fn new(engine: Arc<dyn ConsensusEngine>, executor: KvStoreExecutor) -> Self {
        Self { executor: Some(executor), ..Self::witness(engine) }
    }

    /// The database on a witness, which has no data: whatever only the leader can do it leaves to the leader, and reads
    /// too, how stale they may be notwithstanding.
    #[must_use]
    pub fn witness(engine: Arc<dyn ConsensusEngine>) -> Self {
        Self {
            engine,
            executor: None,
            serving: Arc::new(AtomicBool::new(false)),
            reserve: None,
            limits: Limits::default(),
            quota: Arc::default(),
            lanes: Lanes::new(),
            auto_compaction: None,
            tasks: Arc::default(),
        }
    }

    /// Sets what is taken from callers.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What is taken from callers.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Has history compacted while this node leads. Call it before [`start`](Self::start). Default: no automatic compaction.
    #[must_use]
    pub fn with_auto_compaction(mut self, mode: Option<AutoCompaction>) -> Self {
        self.auto_compaction = mode;
        self
    }

    /// Has writes refused while the disk has less room than this; they are taken again, without a restart, when it has. A
    /// store whose disk is full to the last byte stops. For engines without a log: the others' logs see to it (as
    /// `RocksLogStorage::with_reserve` does), and hand over to a node with room. Default: none.
    #[must_use]
    pub fn with_reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = Some(reserve);
        self
    }

    /// Begins to serve; until then operations are refused.
    ///
    /// # Errors
    /// The engine is not running.
    #[allow(clippy::unused_async, reason = "an engine that must be waited for will need it")]
    pub async fn start(&self) -> Result<(), KvStartError> {
        match &self.engine.status().borrow().health {
            Health::Running => {}
            Health::ShutDown => return Err(KvStartError::Engine("it was shut down".to_owned())),
            Health::Fatal(why) => return Err(KvStartError::Engine(why.clone())),
        }
        self.serving.store(true, Ordering::Release);
        if let Some(executor) = &self.executor {
            let (engine, store) = (|| self.engine.clone(), || executor.store().clone());
            let lessor = tokio::spawn(lessor::run(engine(), store()));
            let compaction = self.auto_compaction.map(|mode| auto_compaction::run(engine(), store(), mode));
            self.tasks.replace([lessor].into_iter().chain(compaction.map(tokio::spawn)).collect());
        }
        Ok(())
    }

    /// Begins a session of watches on this node, whether or not it leads: many watches, one queue. For one watch there is
    /// [`watch`](Self::watch).
    ///
    /// # Errors
    /// This is a witness, or no thread can be had.
    pub fn watches(&self) -> Result<Watches, KvError> {
        let executor = self.executor.as_ref().ok_or_else(witness)?;
        Watches::new(executor.store().clone(), self.lanes.clone())
    }

    /// Watches keys on this node, whether or not it leads: a stream of their changes.
    ///
    /// # Errors
    /// This is a witness, or no thread can be had.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use consensus_core::NodeId;
    /// # use kv_state_machine::{ConsensusKvDatabase, KeyRange, KvError, KvOperation, KvRejection, Put, WatchRequest};
    /// # let dir = tempfile::tempdir()?;
    /// use futures::TryStreamExt;
    ///
    /// let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path())?;
    /// database.start().await?;
    /// let keys = KeyRange { key: "config/".into(), range_end: Some("config0".into()) };
    /// let mut events = database.watch(WatchRequest { keys: keys.clone(), ..WatchRequest::default() })?;
    /// for value in ["1", "2"] {
    ///     let put = Put { key: "config/size".into(), value: value.into(), ..Put::default() };
    ///     database.execute_operation(KvOperation::Put(put)).await?;
    /// }
    /// for value in ["1", "2"] {
    ///     let event = events.try_next().await?.ok_or("a watch of what is to come has no end")?;
    ///     assert_eq!((&event.kv.key[..], event.kv.value), (&b"config/size"[..], value.into()));
    /// }
    ///
    /// // A watch from a revision that was compacted away ends with the oldest one that is left.
    /// database.execute_operation(KvOperation::Compact { revision: 3 }).await?;
    /// let mut events = database.watch(WatchRequest { keys, start_revision: 2, ..WatchRequest::default() })?;
    /// let error = events.try_next().await.unwrap_err();
    /// assert_eq!(error, KvError::Rejected(KvRejection::Compacted { compacted: 3 }));
    /// assert_eq!(events.try_next().await, Ok(None));
    /// # drop(events);
    /// # database.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub fn watch(&self, request: WatchRequest) -> Result<WatchStream, KvError> {
        Ok(WatchStream::new(self.watches()?, request))
    }

    /// Executes an operation; reads are linearizable.
    ///
    /// # Errors
    /// See [`KvError`]: each says whether it may have been done.
    pub async fn execute_operation(&self, operation: KvOperation) -> Result<KvAnswer, KvError> {
        self.execute(operation, None, Consistency::Linearizable).await
    }

    /// Executes an operation, a write in `session` exactly once, a read with `consistency`.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn execute(
        &self,
        operation: KvOperation,
        session: Option<Session>,
        consistency: Consistency,
    ) -> Result<KvAnswer, KvError> {
        // In a session even a read goes through the log: its answer is kept like any other.
        if operation.is_read_only() && session.is_none() {
            return self.begin_read(operation, consistency).await?.finish().await;
        }
        self.check(session.as_ref(), &operation)?;
        if let Some(reserve) = &self.reserve {
            reserve.check(0).map_err(|why| KvError::Unavailable { why, maybe_applied: false })?;
        }
        self.check_space(session.as_ref(), &operation).await?;
        let _place = self.look_ahead(session.as_ref(), &operation).await?;
        let committed = propose(&self.engine, session, operation).await.map_err(propose_error)?;
        let answer: Result<KvAnswer, KvRejection> =
            codec::decode("answer", ANSWER_VERSION, &committed.response)
                .map_err(|error| KvError::Unavailable { why: error.to_string(), maybe_applied: true })?;
        Ok(answer?)
    }

    fn check(&self, session: Option<&Session>, operation: &KvOperation) -> Result<(), KvError> {
        if !self.serving.load(Ordering::Acquire) {
            return Err(KvError::Unavailable { why: "not started yet".to_owned(), maybe_applied: false });
        }
        check::command(session, operation)?;
        self.limits.check(operation)?;
        Ok(())
    }

    /// Refuses a command that is more work than one command may be, before it is in the log; for one that is much work, a
    /// place among those that are executed one after another.
    async fn look_ahead(
        &self,
        session: Option<&Session>,
        operation: &KvOperation,
    ) -> Result<Option<OwnedSemaphorePermit>, KvError> {
        // The others refuse it as they do not lead.
        let leads = matches!(self.engine.status().borrow().role, Role::Leader | Role::Standalone);
        let Some(executor) = self.executor.as_ref().filter(|_| leads && operation.may_be_heavy()) else {
            return Ok(None);
        };
        let look = || {
            let executor = executor.clone();
            let operation = operation.clone();
            blocking(move || executor.look_ahead(&operation))
        };
        let mut work = look().await?;
        if work.is_err() {
            // What this node has applied may be old.
            self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
            work = look().await?;
        }
        match work {
            Ok(work) if !work.is_heavy() => Ok(None),
            // In a session it may be a repetition of one that was executed, or is in the log: only there it is known, and where
            // it is applied the same bound holds.
            Err(rejection) if session.is_none() => Err(rejection.into()),
            _ => Ok(self.lanes.heavy_command().await),
        }
    }

    /// Begins a read: afterwards what it will see is as current as `consistency` says.
    ///
    /// # Errors
    /// See [`KvError`]; nothing was done.
    pub async fn begin_read(
        &self,
        operation: KvOperation,
        consistency: Consistency,
    ) -> Result<PendingRead, KvError> {
        self.check(None, &operation)?;
        let Some(executor) = self.executor.clone() else {
            return Err(KvError::NotLeader { leader: self.engine.status().borrow().leader });
        };
        let consistency = match consistency {
            Consistency::Linearizable => ReadConsistency::Linearizable,
            Consistency::Lease => ReadConsistency::Lease,
            Consistency::Stale => ReadConsistency::Stale,
        };
        self.engine.read_barrier(consistency).await.map_err(read_error)?;
        Ok(PendingRead { executor, operation: Arc::new(operation), lanes: self.lanes.clone() })
    }

    /// A checksum over this node's own state, as it is now.
    ///
    /// # Errors
    /// The disk failed, or this is a witness.
    pub async fn hash(&self) -> Result<StateHash, KvError> {
        let executor = self.executor.clone().ok_or_else(witness)?;
        let _place = self.lanes.long_read().await;
        let abandon = Abandon::default();
        let abandoned = abandon.flag();
        blocking(move || executor.hash_unless(&abandoned)).await
    }

    /// A checksum over the keys on this node as far as a revision; 0: the newest.
    ///
    /// # Errors
    /// The revision is compacted or in the future, the disk failed, or this is a witness.
    pub async fn hash_at(&self, revision: u64) -> Result<KeysHash, KvError> {
        let executor = self.executor.clone().ok_or_else(witness)?;
        let _place = self.lanes.long_read().await;
        let abandon = Abandon::default();
        let abandoned = abandon.flag();
        Ok(blocking(move || executor.hash_at(revision, &abandoned)).await??)
    }

    /// Bytes that the store has on this node's disk, about; 0 on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub fn disk_bytes(&self) -> Result<u64, KvError> {
        self.executor.as_ref().map_or(Ok(0), KvStoreExecutor::disk_bytes).map_err(failure)
    }

    /// Whether this is the database on a witness.
    #[must_use]
    pub fn is_witness(&self) -> bool {
        self.executor.is_none()
    }

    /// The store's revision on this node; 0 on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub fn revision(&self) -> Result<u64, KvError> {
        self.executor.as_ref().map_or(Ok(0), KvStoreExecutor::revision).map_err(failure)
    }

    /// The oldest revision that can be read on this node; 0: nothing was compacted, or this is a witness.
    #[must_use]
    pub fn compacted(&self) -> u64 {
        self.executor.as_ref().map_or(0, KvStoreExecutor::compacted)
    }

    /// The engine's state, now and at every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<EngineStatus>> {
        self.engine.status()
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn ConsensusEngine> {
        &self.engine
    }

    /// Stops serving and stops the engine.
    ///
    /// # Errors
    /// The engine had stopped before of an error of its own.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.serving.store(false, Ordering::Release);
        for task in self.tasks.replace(Vec::new()) {
            let _ = task.await;
        }
        self.engine.shutdown().await
    }
}

/// A read whose barrier has passed.
#[derive(Debug)]
pub struct PendingRead {
    executor: KvStoreExecutor,
    operation: Arc<KvOperation>,
    lanes: Lanes,
}

impl PendingRead {
    /// Its answer, if it is one key that can be read without the disk; `None` if not. Takes microseconds, which is sooner than
    /// a thread is found for it.
    ///
    /// # Errors
    /// See [`KvError`].
    #[must_use]
    pub fn in_memory(&self) -> Option<Result<KvAnswer, KvError>> {
        let answer = self.executor.read_in_memory(&self.operation)?;
        Some(answer.map_err(failure).and_then(|answer| Ok(answer?)))
    }

    /// Reads, on another thread if need be. A read of many keys waits until there is a place for it among the long ones.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn finish(self) -> Result<KvAnswer, KvError> {
        if let Some(answer) = self.in_memory() {
            return answer;
        }
        let short = self.read(Amount::OF_SHORT_READS).await?;
        let read = match short {
            Err(Halt::TooMuch) => {
                let _place = self.lanes.long_read().await;
                self.read(Amount::of_read(&self.operation)).await?
            }
            read => read,
        };
        Ok(unhalted(read, &self.operation).map_err(failure)??)
    }

    async fn read(&self, bound: Amount) -> Result<Result<KvAnswer, Halt>, KvError> {
        let executor = self.executor.clone();
        let operation = self.operation.clone();
        let abandon = Abandon::default();
        let abandoned = abandon.flag();
        blocking(move || Ok(executor.read_within(&operation, bound, &abandoned))).await
    }
}

/// Has an operation put into the log.
pub(crate) async fn propose(
    engine: &Arc<dyn ConsensusEngine>,
    session: Option<Session>,
    operation: KvOperation,
) -> Result<Committed, ProposeError> {
    let command = codec::encode(COMMAND_VERSION, &KvCommand { session, operation });
    engine.propose(command.into()).await
}

fn witness() -> KvError {
    KvError::Unavailable { why: "a witness has no data".to_owned(), maybe_applied: false }
}

/// Reads of the disk do not hold up the runtime.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, consensus_core::StateMachineError> + Send + 'static,
) -> Result<T, KvError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result.map_err(failure),
        Err(error) => Err(KvError::Unavailable {
            why: format!("the read was cancelled: {error}"),
            maybe_applied: false,
        }),
    }
}

fn failure(error: consensus_core::StateMachineError) -> KvError {
    KvError::Unavailable { why: error.to_string(), maybe_applied: false }
}

fn propose_error(error: ProposeError) -> KvError {
    match error {
        ProposeError::NotLeader { leader } => KvError::NotLeader { leader },
        ProposeError::TooLarge { .. } => KvRejection::Invalid(error.to_string()).into(),
        _ => KvError::Unavailable { why: error.to_string(), maybe_applied: error.maybe_applied() },
    }
}

fn read_error(error: ReadError) -> KvError {
    match error {
        ReadError::NotLeader { leader } => KvError::NotLeader { leader },
        _ => KvError::Unavailable { why: error.to_string(), maybe_applied: false },
    }
}
