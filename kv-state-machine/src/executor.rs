//! Reads of the store.

use std::sync::{Arc, atomic::AtomicBool};

use consensus_core::StateMachineError;

use crate::{
    Alarm, AuthState, Caller, KeysHash, KvAnswer, KvOperation, KvRejection, REPLY_BYTES_MAX, StateHash,
    WHOLE_REPLY_BYTES_MAX,
    auth::RangeSet,
    check,
    execute::{ExecuteError, Execution, History, too_much_work},
    hash, keys,
    lease::LeaseTable,
    lease_checks::LeaseChecks,
    limits::Amount,
    pending_writes::{Attachments, PendingWrites},
    range_deletions::RangeDeletions,
    segments::Segments,
    store::{Generation, Meta, Published, Store, read_meta},
    view::{Base, Failure, Overlay, View, disk},
};

/// Result of a read with a work limit.
pub(crate) type Read = Result<KvAnswer, ExecuteError>;

/// Executes reads on the store of a [`KvStateMachine`](crate::KvStateMachine) from any thread. Each read sees a
/// consistent state. The caller ensures that the state is current enough (see
/// [`read_barrier`](consensus_core::ConsensusEngine::read_barrier)). Cheap to clone.
#[derive(Clone, Debug)]
pub struct KvStoreExecutor {
    store: Arc<Store>,
}

impl KvStoreExecutor {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Executes a range of any number of keys, or a transaction that only reads within the work limit of a command.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// Outer result: the disk failed. Inner result: the store rejected the operation.
    pub fn read(&self, operation: &KvOperation) -> Result<Result<KvAnswer, KvRejection>, Failure> {
        read_result(
            self.read_within(&Caller::Server, operation, Amount::of_read(operation), &AtomicBool::new(false)),
            operation,
        )
    }

    /// Same as [`read`](Self::read) with another work limit. Stops early when `cancelled` is set.
    pub(crate) fn read_within(
        &self,
        caller: &Caller,
        operation: &KvOperation,
        bound: Amount,
        cancelled: &AtomicBool,
    ) -> Read {
        self.read_with(caller, operation, |generation, state| {
            read_at(&Base::new(generation), state, operation, bound, cancelled)
        })
    }

    /// Estimates the work of a write on the current state. The inner `Err` means that it exceeds the limit of a
    /// command. Blocks on the disk.
    pub(crate) fn estimate_work(
        &self,
        operation: &KvOperation,
    ) -> Result<Result<Amount, KvRejection>, Failure> {
        let generation = self.store.current();
        let base = Base::new(&generation);
        let Published { meta, segments, deletions } = generation.published();
        let history = History { revision: meta.revision, compacted: meta.compacted };
        let mut nothing = PendingWrites::default();
        let execution = Execution::new(&base, &mut nothing, history, REPLY_BYTES_MAX, Amount::OF_COMMANDS)
            .with_deletions(deletions)
            .deletes_ranges(&segments, self.store.tuning().deletions_max)
            .with_garbage_max(GARBAGE_MAX);
        match execution.run_counted(operation) {
            (Err(ExecuteError::TooMuchWork), _) => Ok(Err(too_much_work(operation))),
            (Err(ExecuteError::Failed(failure)), _) => Err(failure),
            (Err(ExecuteError::TooMuchGarbage), _) => Err(too_much_garbage()),
            (_, work) => Ok(Ok(work)),
        }
    }

    /// Same as [`read`](Self::read) for a single key, without the disk. Takes microseconds. Returns `None` if the
    /// operation is not a read of one key, or if the key is not in memory.
    pub fn read_in_memory(
        &self,
        operation: &KvOperation,
    ) -> Option<Result<Result<KvAnswer, KvRejection>, Failure>> {
        self.read_in_memory_as(&Caller::Server, operation)
    }

    /// Same as [`read_in_memory`](Self::read_in_memory), with the permissions of a caller.
    pub(crate) fn read_in_memory_as(
        &self,
        caller: &Caller,
        operation: &KvOperation,
    ) -> Option<Result<Result<KvAnswer, KvRejection>, Failure>> {
        if !is_of_one_key(operation) {
            return None;
        }
        let mut incomplete = false;
        let answer = self.read_with(caller, operation, |generation, state| {
            let base = Base::in_memory(generation);
            let never = AtomicBool::new(false);
            let answer = read_at(&base, state, operation, Amount::OF_SHORT_READS, &never);
            incomplete = base.is_incomplete();
            answer
        });
        (!incomplete).then(|| read_result(answer, operation))
    }

    /// The caller's permissions are those of the state that is read, or of a newer one.
    fn read_with(
        &self,
        caller: &Caller,
        operation: &KvOperation,
        mut read: impl FnMut(&Generation, ReadState) -> Read,
    ) -> Read {
        check::command(None, operation)?;
        if !operation.is_read_only() {
            return Err(KvRejection::invalid("a write cannot be executed as a read").into());
        }
        self.store.measures().ranges.increment(1);
        let generation = self.store.current();
        for _ in 0..READS_MAX {
            let state = ReadState::of(&generation, operation);
            if let Some(auth) = self.store.auth().enabled() {
                auth.check_operation(caller, operation, &|_, _| Ok(true))?.map_err(KvRejection::from)?;
            }
            let meta = state.meta;
            let answer = read(&generation, state);
            // The versions may have been compacted and removed during the read.
            let now = generation.meta();
            if now.compacted == meta.compacted || now.compacted <= oldest_revision(operation, meta) {
                return answer;
            }
        }
        let why = "the revision of the read was compacted during the read, several times in a row; repeat the \
                   read, and compact less often or to older revisions";
        Err(StateMachineError::Other(why.to_owned()).into())
    }

    /// Computes a checksum of the whole state, which reads all of it. Blocks on the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn hash(&self) -> Result<StateHash, Failure> {
        self.hash_cancellable(&AtomicBool::new(false))
    }

    /// Same as [`hash`](Self::hash). Stops early when `cancelled` is set; the hash is then meaningless.
    pub(crate) fn hash_cancellable(&self, cancelled: &AtomicBool) -> Result<StateHash, Failure> {
        self.hash_from(|| {}, cancelled)
    }

    /// Same as [`hash`](Self::hash). Calls `fixed` when later changes do not count any more.
    pub(crate) fn hash_from(
        &self,
        fixed: impl FnOnce(),
        cancelled: &AtomicBool,
    ) -> Result<StateHash, Failure> {
        self.with_snapshot(|snapshot, meta| {
            fixed();
            let hash = hash::hash(snapshot, meta.compacted, cancelled)?;
            let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
            Ok(StateHash { hash, revision: meta.revision, applied_index, term })
        })
    }

    /// Computes a checksum of the keys up to a revision; 0 means the newest one. Stops early when `cancelled` is set.
    pub(crate) fn hash_at(
        &self,
        revision: u64,
        cancelled: &AtomicBool,
    ) -> Result<Result<KeysHash, KvRejection>, Failure> {
        self.with_snapshot(|snapshot, meta| {
            let (current, compacted) = (meta.revision, meta.compacted);
            let revision = if revision == 0 { current } else { revision };
            if revision > current {
                return Ok(Err(KvRejection::FutureRevision { revision, current }));
            }
            if revision < compacted {
                return Ok(Err(KvRejection::Compacted { compacted }));
            }
            let hash = hash::hash_versions(snapshot, compacted, revision, cancelled)?;
            Ok(Ok(KeysHash { hash, revision, compacted }))
        })
    }

    /// Bytes of the store on disk.
    pub(crate) fn disk_bytes(&self) -> Result<u64, Failure> {
        self.store.current().disk_bytes()
    }

    /// Alarms that are raised.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        self.store.current().alarms().get().iter().copied().collect()
    }

    /// Users and roles as of the last batch.
    pub(crate) fn auth(&self) -> Arc<AuthState> {
        self.store.auth().get()
    }

    /// Whether all keys attached to a lease are in a set. Blocks on the disk.
    pub(crate) fn are_attached_keys_in(
        &self,
        checks: &LeaseChecks,
        lease_id: i64,
        keys: &RangeSet,
    ) -> Result<bool, Failure> {
        self.in_view(|view, _| checks.are_attached_keys_in(view, lease_id, keys, &Attachments::default()))
    }

    /// Whether all keys attached to leases that have not ended are in a set. Blocks on the disk.
    pub(crate) fn are_keys_of_all_leases_in(
        &self,
        checks: &LeaseChecks,
        keys: &RangeSet,
    ) -> Result<bool, Failure> {
        self.in_view(|view, leases| {
            let counts = |id| leases.get(id).is_some_and(|lease| !lease.is_ending);
            checks.are_keys_of_all_in(view, keys, counts)
        })
    }

    fn in_view<T>(&self, f: impl FnOnce(&View<'_>, &LeaseTable) -> T) -> T {
        let generation = self.store.current();
        let (base, nothing) = (Base::new(&generation), Overlay::new());
        let deletions = generation.deletions();
        f(&View { source: &base, overlay: &nothing, deletions: &deletions }, generation.leases())
    }

    /// Rewrites the tables of RocksDB without garbage. Blocks on the disk.
    pub(crate) fn reclaim_space(&self) -> Result<(), Failure> {
        let generation = self.store.current();
        generation.check_writable()?;
        generation.db().flush().map_err(|error| generation.failed("flushing", error))?;
        generation.db().compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    /// Oldest revision that can be read; 0 if nothing was compacted.
    pub(crate) fn compacted(&self) -> u64 {
        self.store.current().meta().compacted
    }

    /// Revision of the store.
    ///
    /// # Errors
    /// The disk failed.
    pub fn revision(&self) -> Result<u64, Failure> {
        Ok(self.store.current().meta().revision)
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn with_snapshot<T>(
        &self,
        read: impl FnOnce(&rocksdb::Snapshot<'_>, Meta) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let generation = self.store.current();
        let snapshot = generation.db().snapshot();
        let meta = read_meta(snapshot.get(keys::META).map_err(disk)?)?;
        read(&snapshot, meta)
    }
}

/// State that a read sees.
#[derive(Clone, Debug)]
pub(crate) struct ReadState {
    pub(crate) meta: Meta,
    /// Segments at the revision of `meta`; `None` for a read of one key, which does not need them.
    pub(crate) segments: Option<Segments>,
    pub(crate) deletions: RangeDeletions,
}

impl ReadState {
    pub(crate) fn of(generation: &Generation, operation: &KvOperation) -> Self {
        if is_of_one_key(operation) {
            let (meta, deletions) = generation.meta_and_deletions();
            return Self { meta, segments: None, deletions };
        }
        let Published { meta, segments, deletions } = generation.published();
        Self { meta, segments: Some(segments), deletions }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// Oldest revision that could be read.
    pub(crate) fn compacted(&self) -> u64 {
        self.meta.compacted
    }
}

fn is_of_one_key(operation: &KvOperation) -> bool {
    matches!(operation, KvOperation::Range(range) if range.range_end.is_none())
}

/// Reads the state at `state`. Newer versions, which may exist by now, are skipped; that is cheaper than a snapshot.
fn read_at(
    base: &Base<'_>,
    state: ReadState,
    operation: &KvOperation,
    bound: Amount,
    cancelled: &AtomicBool,
) -> Read {
    let ReadState { meta, segments, deletions } = state;
    let mut nothing = PendingWrites::default();
    let history = History { revision: meta.revision, compacted: meta.compacted };
    let bytes_max = if operation.is_whole() { WHOLE_REPLY_BYTES_MAX } else { REPLY_BYTES_MAX };
    let execution = Execution::new(base, &mut nothing, history, bytes_max, bound);
    let execution = execution.with_segments(segments).with_deletions(deletions);
    let (result, _) = execution.hide_newer_versions().cancelled_by(cancelled).run(operation)?;
    let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
    Ok(KvAnswer { revision: meta.revision, applied_index, term, result })
}

/// Oldest revision that an operation reads.
fn oldest_revision(operation: &KvOperation, meta: Meta) -> u64 {
    match operation {
        KvOperation::Range(range) if range.revision > 0 => range.revision,
        KvOperation::Txn(txn) => {
            let parts = txn.success.iter().chain(&txn.failure);
            parts.map(|part| oldest_revision(part, meta)).min().unwrap_or(meta.revision)
        }
        _ => meta.revision,
    }
}

/// Converts the result of a read for its caller.
pub(crate) fn read_result(
    read: Read,
    operation: &KvOperation,
) -> Result<Result<KvAnswer, KvRejection>, Failure> {
    match read {
        Ok(answer) => Ok(Ok(answer)),
        Err(ExecuteError::Rejected(rejection)) => Ok(Err(rejection)),
        Err(ExecuteError::TooMuchWork) => Ok(Err(too_much_work(operation))),
        Err(ExecuteError::Cancelled) => Err(StateMachineError::Other(
            "the read was cancelled because its caller no longer waits for it".to_owned(),
        )),
        Err(ExecuteError::TooMuchGarbage) => Err(too_much_garbage()),
        Err(ExecuteError::Failed(failure)) => Err(failure),
    }
}

fn too_much_garbage() -> Failure {
    StateMachineError::Other(format!(
        "its ranges have more than {GARBAGE_MAX} keys that were deleted and compacted and are not removed from the disk yet, \
         which would delay all other requests; repeat it in some seconds"
    ))
}

/// Maximum number of keys without living versions that a command reads.
const GARBAGE_MAX: u64 = 100_000;
/// Maximum number of attempts of a read whose revision is compacted meanwhile.
const READS_MAX: usize = 4;
