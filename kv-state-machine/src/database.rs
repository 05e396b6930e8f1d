//! The database: an engine and a store.

mod auth;
mod leases;
mod space;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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
    AutoCompaction, Caller, Durability, KeyRange, KeysHash, KvAnswer, KvCommand, KvOperation, KvRejection,
    KvResult, KvStateMachine, KvStoreExecutor, Limits, Range, RangePages, Session, StateHash,
    StoreStatistics, WatchRequest, auto_compaction, check,
    concurrency::{CancelOnDrop, ConcurrencyLimits},
    execute::ExecuteError,
    executor::{Read, read_result},
    lessor::{self, TimeSource},
    limits::Amount,
    machine::{ANSWER_VERSION, COMMAND_VERSION},
    pages::PIN_DURATION,
    quota::Quota,
    watch::{WatchStream, Watches},
};

pub use self::leases::{LeaseState, random_lease_id};

/// A database that a program can embed: it executes operations through an engine and returns their responses.
#[derive(Clone)]
pub struct ConsensusKvDatabase {
    engine: Arc<dyn ConsensusEngine>,
    /// `None` on a witness.
    executor: Option<KvStoreExecutor>,
    serving: Arc<AtomicBool>,
    reserve: Option<Reserve>,
    limits: Limits,
    quota: Arc<Quota>,
    concurrency: ConcurrencyLimits,
    auto_compaction: Option<AutoCompaction>,
    time: TimeSource,
    tasks: Arc<Tasks>,
}

/// Tasks that count the time of leases and compact history. They stop with the last handle of the database.
#[derive(Debug, Default)]
struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    /// Replaces the running tasks and aborts them. Returns the aborted tasks, which stop soon.
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

/// Consistency of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The read sees every write that was acknowledged before the read started.
    #[default]
    Linearizable,
    /// Same as `Linearizable`, but without contacting other nodes while the leader has a lease. Requires that clock
    /// drift stays within the configured bound.
    Lease,
    /// The read sees what this node has applied, without delay.
    Stale,
}

/// Reason that an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The store rejected the operation.
    #[error(transparent)]
    Rejected(#[from] KvRejection),
    /// This node is not leader. The operation was not executed.
    #[error("this node is not leader: send the request to the leader")]
    NotLeader {
        /// Leader, if this node knows it.
        leader: Option<NodeId>,
    },
    /// The node cannot serve the operation, or its outcome is unknown.
    #[error("{why}")]
    Unavailable {
        /// Reason.
        why: String,
        /// Whether the operation may have been executed. If so, repeat it only with the same session number.
        maybe_applied: bool,
    },
}

/// Reason that a database did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvStartError {
    /// The directory cannot be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The engine is not running.
    #[error("the engine is not running: {0}")]
    Engine(String),
}

impl ConsensusKvDatabase {
    /// Creates a database of one node without consensus: each write is applied at once and is on disk when it is
    /// acknowledged.
    ///
    /// # Errors
    /// The directory `path` cannot be opened as `node`'s store.
    pub fn new_with_mock(node: NodeId, path: &Path) -> Result<Self, KvStartError> {
        Self::new_with_mock_on(node, KvStateMachine::open(path, node, Durability::EachBatch)?)
    }

    /// Same as [`new_with_mock`](Self::new_with_mock) on a store that was opened with other options. Its durability should
    /// be [`Durability::EachBatch`], or a crash loses acknowledged writes.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new_with_mock_on(node: NodeId, machine: KvStateMachine) -> Result<Self, KvStartError> {
        let executor = machine.executor();
        let engine = MockConsensusEngine::new(node, Box::new(machine))?.with_inline_apply();
        Ok(Self::new(Arc::new(engine), executor))
    }

    /// Creates a database on an engine. `executor` is the handle of the state machine that the engine owns.
    #[must_use]
    pub fn new(engine: Arc<dyn ConsensusEngine>, executor: KvStoreExecutor) -> Self {
        Self { executor: Some(executor), ..Self::witness(engine) }
    }

    /// Creates the database of a witness, which has no data: it leaves to the leader all operations that only the
    /// leader can execute, and all reads, including stale ones.
    #[must_use]
    pub fn witness(engine: Arc<dyn ConsensusEngine>) -> Self {
        Self {
            engine,
            executor: None,
            serving: Arc::new(AtomicBool::new(false)),
            reserve: None,
            limits: Limits::default(),
            quota: Arc::default(),
            concurrency: ConcurrencyLimits::new(),
            auto_compaction: None,
            time: TimeSource::default(),
            tasks: Arc::default(),
        }
    }

    /// Sets the limits on requests.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Limits on requests.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Enables automatic compaction of history while this node is leader. Call it before [`start`](Self::start).
    /// Default: no automatic compaction.
    #[must_use]
    pub fn with_auto_compaction(mut self, mode: Option<AutoCompaction>) -> Self {
        self.auto_compaction = mode;
        self
    }

    /// Sets the time by which leases are counted while this node is leader. Call it before [`start`](Self::start). Default: that
    /// of the machine.
    #[must_use]
    pub fn with_time_source(mut self, time: TimeSource) -> Self {
        self.time = time;
        self
    }

    /// Refuses writes while the disk has less free space than this, and accepts them again, without a restart, when it
    /// has more. A store whose disk is completely full stops. This is for engines without a log: other engines check
    /// the space of their log (as `RocksLogStorage::with_reserve` does) and transfer leadership to a node with space.
    /// Default: no reserve.
    #[must_use]
    pub fn with_reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = Some(reserve);
        self
    }

    /// Starts to serve. Operations are refused before.
    ///
    /// # Errors
    /// The engine is not running.
    #[allow(clippy::unused_async, reason = "an engine that starts asynchronously will need it")]
    pub async fn start(&self) -> Result<(), KvStartError> {
        match &self.engine.status().borrow().health {
            Health::Running => {}
            Health::ShutDown => return Err(KvStartError::Engine("it was shut down".to_owned())),
            Health::Fatal(why) => return Err(KvStartError::Engine(why.clone())),
        }
        self.serving.store(true, Ordering::Release);
        if let Some(executor) = &self.executor {
            let (engine, store) = (|| self.engine.clone(), || executor.store().clone());
            let lessor = tokio::spawn(lessor::run(engine(), store(), self.time.clone()));
            let compaction = self.auto_compaction.map(|mode| auto_compaction::run(engine(), store(), mode));
            self.tasks.replace([lessor].into_iter().chain(compaction.map(tokio::spawn)).collect());
        }
        Ok(())
    }

    /// Starts a session of watches on this node, whether or not it is leader. A session has many watches and one queue;
    /// for a single watch use [`watch`](Self::watch).
    ///
    /// # Errors
    /// This is a witness, or a thread cannot be started.
    pub fn watches(&self) -> Result<Watches, KvError> {
        let executor = self.executor.as_ref().ok_or_else(witness)?;
        Watches::new(executor.store().clone(), self.concurrency.clone())
    }

    /// Watches keys on this node, whether or not it is leader. Returns a stream of their changes.
    ///
    /// # Errors
    /// This is a witness, or a thread cannot be started.
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
    ///     let event = events.try_next().await?.ok_or("a watch of future changes does not end")?;
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
    /// See [`KvError`]: each error says whether the operation may have been executed.
    pub async fn execute_operation(&self, operation: KvOperation) -> Result<KvAnswer, KvError> {
        self.execute(operation, None, Consistency::Linearizable).await
    }

    /// Executes an operation: a write exactly once if it is in a session, a read with `consistency`.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn execute(
        &self,
        operation: KvOperation,
        session: Option<Session>,
        consistency: Consistency,
    ) -> Result<KvAnswer, KvError> {
        self.execute_as(&Caller::Server, operation, session, consistency).await
    }

    /// Same as [`execute`](Self::execute), with the permissions of a caller.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn execute_as(
        &self,
        caller: &Caller,
        operation: KvOperation,
        session: Option<Session>,
        consistency: Consistency,
    ) -> Result<KvAnswer, KvError> {
        // In a session a read also goes through the log, because its response is kept like any other.
        if operation.is_read_only() && session.is_none() {
            return self.begin_read_as(caller, operation, consistency).await?.finish().await;
        }
        self.check(session.as_ref(), &operation)?;
        self.check_permission(caller, &operation).await?;
        if let Some(reserve) = &self.reserve {
            reserve.check(0).map_err(|why| KvError::Unavailable { why, maybe_applied: false })?;
        }
        self.check_space(session.as_ref(), &operation).await?;
        let ending = match operation {
            KvOperation::RevokeLease { id } => Some(id),
            _ => None,
        };
        let answer = self.commit(caller, session, operation).await?;
        match (&answer.result, ending) {
            (KvResult::LeaseEnding, Some(id)) => self.wait_for_end_of_lease(id, answer).await,
            _ => Ok(answer),
        }
    }

    /// Proposes a command and waits until it is applied.
    async fn commit(
        &self,
        caller: &Caller,
        session: Option<Session>,
        operation: KvOperation,
    ) -> Result<KvAnswer, KvError> {
        let _permit = self.admit_heavy_command(session.as_ref(), &operation).await?;
        let command = KvCommand { session, operation, caller: caller.clone() };
        let committed = propose_command(&self.engine, &command).await.map_err(propose_error)?;
        let response: Result<KvAnswer, KvRejection> =
            codec::decode("response", ANSWER_VERSION, &committed.response)
                .map_err(|error| KvError::Unavailable { why: error.to_string(), maybe_applied: true })?;
        Ok(response?)
    }

    /// Waits until the leader has deleted all keys of a lease that has ended.
    async fn wait_for_end_of_lease(&self, id: i64, first: KvAnswer) -> Result<KvAnswer, KvError> {
        let Some(executor) = &self.executor else { return Ok(first) };
        let is_ending = || executor.store().current().leases().get(id).is_some_and(|lease| lease.is_ending);
        let began = Instant::now();
        while is_ending() {
            if began.elapsed() > LEASE_WAIT_MAX || self.engine.status().borrow().health != Health::Running {
                let why = format!("lease {id} has ended, but the leader is still deleting its keys");
                return Err(KvError::Unavailable { why, maybe_applied: true });
            }
            tokio::time::sleep(LEASE_POLL_INTERVAL).await;
        }
        let revision = executor.store().current().meta().revision;
        Ok(KvAnswer { revision, result: KvResult::Lease, ..first })
    }

    fn check(&self, session: Option<&Session>, operation: &KvOperation) -> Result<(), KvError> {
        if !self.serving.load(Ordering::Acquire) {
            return Err(KvError::Unavailable {
                why: "the database was not started yet".to_owned(),
                maybe_applied: false,
            });
        }
        check::command(session, operation)?;
        self.limits.check(operation)?;
        Ok(())
    }

    /// Refuses a command that exceeds the work limit of one command before it is proposed. Returns a permit if the
    /// command is heavy, because heavy commands are executed one at a time.
    async fn admit_heavy_command(
        &self,
        session: Option<&Session>,
        operation: &KvOperation,
    ) -> Result<Option<OwnedSemaphorePermit>, KvError> {
        // Other nodes refuse the command because they are not leader.
        let is_leader = matches!(self.engine.status().borrow().role, Role::Leader | Role::Standalone);
        let Some(executor) = self.executor.as_ref().filter(|_| is_leader && operation.may_be_heavy()) else {
            return Ok(None);
        };
        let estimate = || {
            let executor = executor.clone();
            let operation = operation.clone();
            blocking(move || executor.estimate_work(&operation))
        };
        let mut work = estimate().await?;
        if work.is_err() {
            // The state that this node has applied may be outdated.
            self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
            work = estimate().await?;
        }
        match work {
            Ok(work) if !work.is_heavy() => Ok(None),
            // A command in a session may repeat one that was executed or is in the log. That is known only when it is
            // applied, where the same limit holds.
            Err(rejection) if session.is_none() => Err(rejection.into()),
            _ => Ok(self.concurrency.heavy_command().await),
        }
    }

    /// Starts a read: waits until this node's state is as current as `consistency` requires.
    ///
    /// # Errors
    /// See [`KvError`]; nothing was executed.
    pub async fn begin_read(
        &self,
        operation: KvOperation,
        consistency: Consistency,
    ) -> Result<PendingRead, KvError> {
        self.begin_read_as(&Caller::Server, operation, consistency).await
    }

    /// Same as [`begin_read`](Self::begin_read), with the permissions of a caller.
    ///
    /// # Errors
    /// See [`KvError`]; nothing was executed.
    pub async fn begin_read_as(
        &self,
        caller: &Caller,
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
        let (caller, concurrency) = (caller.clone(), self.concurrency.clone());
        Ok(PendingRead { executor, caller, operation: Arc::new(operation), concurrency })
    }

    /// Waits until this node has applied everything that was acknowledged before.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn read_barrier(&self) -> Result<(), KvError> {
        self.engine.read_barrier(ReadConsistency::Linearizable).await.map_err(read_error)?;
        Ok(())
    }

    /// Starts to read a range page by page, at one revision.
    ///
    /// # Errors
    /// See [`KvError`]; ranges in another order than that of ascending keys, or with bounds of revisions, are rejected.
    pub async fn range_pages(&self, range: Range, consistency: Consistency) -> Result<RangePages, KvError> {
        self.range_pages_as(&Caller::Server, range, consistency).await
    }

    /// Same as [`range_pages`](Self::range_pages), with the permissions of a caller, which are checked for each page.
    ///
    /// # Errors
    /// See [`range_pages`](Self::range_pages).
    pub async fn range_pages_as(
        &self,
        caller: &Caller,
        range: Range,
        consistency: Consistency,
    ) -> Result<RangePages, KvError> {
        let read = self.begin_read_as(caller, KvOperation::Range(range.clone()), consistency).await?;
        let keys = KeyRange { key: range.key.clone(), range_end: range.range_end.clone() };
        self.check_read(caller, &keys).map_err(KvRejection::from)?;
        let (store, concurrency) = (read.executor.store().clone(), self.concurrency.clone());
        Ok(RangePages::start(store, caller.clone(), range, concurrency, PIN_DURATION)?)
    }

    /// Computes a checksum of this node's current state.
    ///
    /// # Errors
    /// The disk failed, or this is a witness.
    pub async fn hash(&self) -> Result<StateHash, KvError> {
        let executor = self.executor.clone().ok_or_else(witness)?;
        let _permit = self.concurrency.hash().await;
        let cancel = CancelOnDrop::default();
        let cancelled = cancel.flag();
        blocking(move || executor.hash_cancellable(&cancelled)).await
    }

    /// Computes a checksum of the keys on this node up to a revision; 0 means the newest one.
    ///
    /// # Errors
    /// The revision is compacted or in the future, the disk failed, or this is a witness.
    pub async fn hash_at(&self, revision: u64) -> Result<KeysHash, KvError> {
        let executor = self.executor.clone().ok_or_else(witness)?;
        let _permit = self.concurrency.hash().await;
        let cancel = CancelOnDrop::default();
        let cancelled = cancel.flag();
        Ok(blocking(move || executor.hash_at(revision, &cancelled)).await??)
    }

    /// Whether a committed change waits until the disk takes it, and nothing is applied meanwhile.
    #[must_use]
    pub fn waits_for_disk(&self) -> bool {
        self.executor.as_ref().is_some_and(|executor| executor.store().waits_for_disk())
    }

    /// Approximate bytes of the store on this node's disk; 0 on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub fn disk_bytes(&self) -> Result<u64, KvError> {
        self.executor.as_ref().map_or(Ok(0), KvStoreExecutor::disk_bytes).map_err(failure)
    }

    /// Numbers that describe the store on this node; all are 0 on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub fn statistics(&self) -> Result<StoreStatistics, KvError> {
        let executor = self.executor.as_ref();
        executor.map_or_else(|| Ok(StoreStatistics::default()), KvStoreExecutor::statistics).map_err(failure)
    }

    /// Whether this is the database of a witness.
    #[must_use]
    pub fn is_witness(&self) -> bool {
        self.executor.is_none()
    }

    /// Revision of the store on this node; 0 on a witness.
    ///
    /// # Errors
    /// The disk failed.
    pub fn revision(&self) -> Result<u64, KvError> {
        self.executor.as_ref().map_or(Ok(0), KvStoreExecutor::revision).map_err(failure)
    }

    /// Oldest revision that can be read on this node; 0 if nothing was compacted, or if this is a witness.
    #[must_use]
    pub fn compacted(&self) -> u64 {
        self.executor.as_ref().map_or(0, KvStoreExecutor::compacted)
    }

    /// Status of the engine; the receiver is notified of every change.
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
    /// The engine had already stopped because of an error.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.serving.store(false, Ordering::Release);
        for task in self.tasks.replace(Vec::new()) {
            let _ = task.await;
        }
        self.engine.shutdown().await
    }
}

/// A read that has passed its barrier.
#[derive(Debug)]
pub struct PendingRead {
    executor: KvStoreExecutor,
    caller: Caller,
    operation: Arc<KvOperation>,
    concurrency: ConcurrencyLimits,
}

impl PendingRead {
    /// Reads without the disk, which takes microseconds, less than a switch to another thread. Returns `None` if the
    /// operation is not a read of one key, or if the key is not in memory.
    ///
    /// # Errors
    /// See [`KvError`].
    #[must_use]
    pub fn in_memory(&self) -> Option<Result<KvAnswer, KvError>> {
        let answer = self.executor.read_in_memory_as(&self.caller, &self.operation)?;
        Some(answer.map_err(failure).and_then(|answer| Ok(answer?)))
    }

    /// Reads, on another thread if necessary. A read of many keys waits for a permit for a long read.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn finish(self) -> Result<KvAnswer, KvError> {
        if let Some(answer) = self.in_memory() {
            return answer;
        }
        match self.finish_if_short().await {
            Some(answer) => answer,
            None => self.finish_long().await,
        }
    }

    /// Same as [`finish`](Self::finish) for a read of at most 2,000 keys and [`SHORT_READ_BYTES_MAX`]; `None` if it is of more.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn finish_if_short(&self) -> Option<Result<KvAnswer, KvError>> {
        match self.read(Amount::OF_SHORT_READS).await {
            Ok(Err(ExecuteError::TooMuchWork)) => None,
            Ok(read) => Some(self.answer(read)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Same as [`finish`](Self::finish) for a read that is not short: waits for a permit for a long read.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn finish_long(self) -> Result<KvAnswer, KvError> {
        let _permit = self.concurrency.long_read().await;
        let read = self.read(Amount::of_read(&self.operation)).await?;
        self.answer(read)
    }

    fn answer(&self, read: Read) -> Result<KvAnswer, KvError> {
        Ok(read_result(read, &self.operation).map_err(failure)??)
    }

    async fn read(&self, bound: Amount) -> Result<Result<KvAnswer, ExecuteError>, KvError> {
        let executor = self.executor.clone();
        let (caller, operation) = (self.caller.clone(), self.operation.clone());
        let cancel = CancelOnDrop::default();
        let cancelled = cancel.flag();
        blocking(move || Ok(executor.read_within(&caller, &operation, bound, &cancelled))).await
    }
}

/// Proposes an operation to the engine.
pub(crate) async fn propose(
    engine: &Arc<dyn ConsensusEngine>,
    session: Option<Session>,
    operation: KvOperation,
) -> Result<Committed, ProposeError> {
    propose_command(engine, &KvCommand::new(session, operation)).await
}

async fn propose_command(
    engine: &Arc<dyn ConsensusEngine>,
    command: &KvCommand,
) -> Result<Committed, ProposeError> {
    engine.propose(codec::encode(COMMAND_VERSION, command).into()).await
}

fn witness() -> KvError {
    KvError::Unavailable {
        why: "this node is a witness, which has no data: send the request to another node".to_owned(),
        maybe_applied: false,
    }
}

/// Runs a read of the disk on another thread, so that it does not block the async runtime.
pub(crate) async fn blocking<T: Send + 'static>(
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

pub(crate) fn failure(error: consensus_core::StateMachineError) -> KvError {
    KvError::Unavailable { why: error.to_string(), maybe_applied: false }
}

fn propose_error(error: ProposeError) -> KvError {
    match error {
        ProposeError::NotLeader { leader } => KvError::NotLeader { leader },
        ProposeError::TransferringLeadership { to } => KvError::NotLeader { leader: Some(to) },
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

/// Time between two looks at whether the keys of an ended lease are deleted.
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time that a call waits for the end of a lease with very many keys. Less than the time limit of a forwarded call.
const LEASE_WAIT_MAX: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests;
