//! An engine and a store together.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use consensus_core::{
    ConsensusEngine, EngineStatus, Health, NodeId, ProposeError, ReadConsistency, ReadError, Role,
    ShutdownError, StorageError, codec,
};
use consensus_mock::MockConsensusEngine;
use consensus_storage_rocksdb::Reserve;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{
    Durability, KvAnswer, KvCommand, KvOperation, KvRejection, KvStateMachine, KvStoreExecutor, Limits,
    Session, StateHash, check,
    execute::Halt,
    executor::unhalted,
    lanes::{Abandon, Lanes},
    limits::Amount,
    machine::{ANSWER_VERSION, COMMAND_VERSION},
};

/// The database as a program embeds it: operations in, answers out.
#[derive(Clone)]
pub struct ConsensusKvDatabase {
    engine: Arc<dyn ConsensusEngine>,
    /// `None` on a witness.
    executor: Option<KvStoreExecutor>,
    serving: Arc<AtomicBool>,
    reserve: Option<Reserve>,
    limits: Limits,
    lanes: Lanes,
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
        let engine = MockConsensusEngine::new(node, Box::new(machine))?.at_once();
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
            lanes: Lanes::new(),
        }
    }

    /// Sets what is taken from callers.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
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
        Ok(())
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
        let _place = self.look_ahead(session.as_ref(), &operation).await?;
        let command = codec::encode(COMMAND_VERSION, &KvCommand { session, operation });
        let committed = self.engine.propose(command.into()).await.map_err(propose_error)?;
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
        let no_data =
            || KvError::Unavailable { why: "a witness has no data".to_owned(), maybe_applied: false };
        let executor = self.executor.clone().ok_or_else(no_data)?;
        let _place = self.lanes.long_read().await;
        let abandon = Abandon::default();
        let abandoned = abandon.flag();
        blocking(move || executor.hash_unless(&abandoned)).await
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
