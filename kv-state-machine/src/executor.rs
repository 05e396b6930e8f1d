//! Reads of the store.

use std::sync::{Arc, atomic::AtomicBool};

use consensus_core::StateMachineError;

use crate::{
    Alarm, KeysHash, KvAnswer, KvOperation, KvRejection, REPLY_BYTES_MAX, StateHash, WHOLE_REPLY_BYTES_MAX,
    check,
    execute::{Execution, Halt, History, too_much},
    hash, keys,
    limits::Amount,
    store::{Generation, Meta, Store, read_meta},
    view::{Base, Failure, disk},
    written::Written,
};

/// What became of a read with a bound.
pub(crate) type Read = Result<KvAnswer, Halt>;

/// Executes reads on the store of a [`KvStateMachine`](crate::KvStateMachine), from any thread, each on a consistent
/// picture of it. How current that picture is, the caller has seen to (see
/// [`read_barrier`](consensus_core::ConsensusEngine::read_barrier)). Cheap to clone.
#[derive(Clone, Debug)]
pub struct KvStoreExecutor {
    store: Arc<Store>,
}

impl KvStoreExecutor {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Executes a range, however many keys are in it, or a transaction that only reads, within the bound of a command. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// Outside: the disk failed. Inside: the store does not do it.
    pub fn read(&self, operation: &KvOperation) -> Result<Result<KvAnswer, KvRejection>, Failure> {
        unhalted(self.read_within(operation, Amount::of_read(operation), &AtomicBool::new(false)), operation)
    }

    /// The same with another bound; ends early when `abandoned` is set.
    pub(crate) fn read_within(&self, operation: &KvOperation, bound: Amount, abandoned: &AtomicBool) -> Read {
        self.read_with(operation, |generation, meta| {
            read_at(&Base::new(generation), meta, operation, bound, abandoned)
        })
    }

    /// How much work a write would be, on the state as it is now; `Err`: more than a command may do. Blocks on the disk.
    pub(crate) fn look_ahead(&self, operation: &KvOperation) -> Result<Result<Amount, KvRejection>, Failure> {
        let generation = self.store.current();
        let (base, meta) = (Base::new(&generation), generation.meta());
        let history = History { revision: meta.revision, compacted: meta.compacted };
        let mut nothing = Written::default();
        let execution = Execution::new(&base, &mut nothing, history, REPLY_BYTES_MAX, Amount::OF_COMMANDS);
        match execution.run_counted(operation) {
            (Err(Halt::TooMuch), _) => Ok(Err(too_much(operation))),
            (Err(Halt::Failed(failure)), _) => Err(failure),
            (_, work) => Ok(Ok(work)),
        }
    }

    /// [`read`](Self::read) of a single key, without the disk; `None` if the operation is another, or what it reads is not in
    /// memory. Takes microseconds.
    pub fn read_in_memory(
        &self,
        operation: &KvOperation,
    ) -> Option<Result<Result<KvAnswer, KvRejection>, Failure>> {
        if !matches!(operation, KvOperation::Range(range) if range.range_end.is_none()) {
            return None;
        }
        let mut incomplete = false;
        let answer = self.read_with(operation, |generation, meta| {
            let base = Base::in_memory(generation);
            let never = AtomicBool::new(false);
            let answer = read_at(&base, meta, operation, Amount::OF_SHORT_READS, &never);
            incomplete = base.is_incomplete();
            answer
        });
        (!incomplete).then(|| unhalted(answer, operation))
    }

    fn read_with(&self, operation: &KvOperation, mut read: impl FnMut(&Generation, Meta) -> Read) -> Read {
        check::command(None, operation)?;
        if !operation.is_read_only() {
            return Err(KvRejection::invalid("a write cannot be executed as a read").into());
        }
        let generation = self.store.current();
        let mut meta = generation.meta();
        for _ in 0..READS_MAX {
            let answer = read(&generation, meta);
            // What was read may have been compacted away beneath it.
            let now = generation.meta();
            if now.compacted == meta.compacted || now.compacted <= oldest_revision(operation, meta) {
                return answer;
            }
            meta = now;
        }
        let why = "what it read was compacted away beneath it, again and again; compact less often, or to older revisions";
        Err(StateMachineError::Other(why.to_owned()).into())
    }

    /// A checksum of the whole state. Reads all of it; blocks on the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn hash(&self) -> Result<StateHash, Failure> {
        self.hash_unless(&AtomicBool::new(false))
    }

    /// The same; ends early when `abandoned` is set, with a hash of no meaning.
    pub(crate) fn hash_unless(&self, abandoned: &AtomicBool) -> Result<StateHash, Failure> {
        self.with_snapshot(|snapshot, meta| {
            let hash = hash::hash(snapshot, meta.compacted, abandoned)?;
            let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
            Ok(StateHash { hash, revision: meta.revision, applied_index, term })
        })
    }

    /// A checksum of the keys as far as a revision; 0: the newest. Ends early when `abandoned` is set.
    pub(crate) fn hash_at(
        &self,
        revision: u64,
        abandoned: &AtomicBool,
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
            let hash = hash::hash_versions(snapshot, compacted, revision, abandoned)?;
            Ok(Ok(KeysHash { hash, revision, compacted }))
        })
    }

    /// Bytes that the store has on disk.
    pub(crate) fn disk_bytes(&self) -> Result<u64, Failure> {
        self.store.current().disk_bytes()
    }

    /// The alarms that are raised.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        self.store.current().alarms().get().iter().copied().collect()
    }

    /// Rewrites the tables without what is garbage. Blocks on the disk.
    pub(crate) fn reclaim_space(&self) -> Result<(), Failure> {
        let generation = self.store.current();
        generation.db().flush().map_err(disk)?;
        generation.db().compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    /// The oldest revision that can be read; 0: nothing was compacted.
    pub(crate) fn compacted(&self) -> u64 {
        self.store.current().meta().compacted
    }

    /// The store's revision.
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

/// The store at `meta`. Later versions, which may be there by now, are passed over; that is cheaper than a snapshot.
fn read_at(
    base: &Base<'_>,
    meta: Meta,
    operation: &KvOperation,
    bound: Amount,
    abandoned: &AtomicBool,
) -> Read {
    let mut nothing = Written::default();
    let history = History { revision: meta.revision, compacted: meta.compacted };
    let bytes_max = if operation.is_whole() { WHOLE_REPLY_BYTES_MAX } else { REPLY_BYTES_MAX };
    let execution = Execution::new(base, &mut nothing, history, bytes_max, bound);
    let (result, _) = execution.without_later().abandoned_by(abandoned).run(operation)?;
    let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
    Ok(KvAnswer { revision: meta.revision, applied_index, term, result })
}

/// The oldest revision that a read looks at.
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

/// The outcome of a read as its caller is told.
pub(crate) fn unhalted(
    read: Read,
    operation: &KvOperation,
) -> Result<Result<KvAnswer, KvRejection>, Failure> {
    match read {
        Ok(answer) => Ok(Ok(answer)),
        Err(Halt::Rejected(rejection)) => Ok(Err(rejection)),
        Err(Halt::TooMuch) => Ok(Err(too_much(operation))),
        Err(Halt::Abandoned) => Err(StateMachineError::Other("nobody waits for this read".to_owned())),
        Err(Halt::Failed(failure)) => Err(failure),
    }
}

/// How often a read begins anew when history is compacted away beneath it.
const READS_MAX: usize = 4;
