//! Reads of the store.

use std::sync::Arc;

use crate::{
    KvAnswer, KvOperation, KvRejection, REPLY_BYTES_MAX, StateHash, check,
    execute::{Execution, Halt, History},
    hash, keys,
    store::{Generation, Meta, Store, read_meta},
    view::{Base, Failure, Overlay, disk},
};

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

    /// Executes a range, or a transaction that only reads. Blocks on the disk.
    ///
    /// # Errors
    /// Outside: the disk failed. Inside: the store does not do it.
    pub fn read(&self, operation: &KvOperation) -> Result<Result<KvAnswer, KvRejection>, Failure> {
        self.read_with(operation, |generation, meta| {
            read_at(&Base::new(generation.db(), generation.recent()), meta, operation)
        })
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
            let base = Base::in_memory(generation.db(), generation.recent());
            let answer = read_at(&base, meta, operation);
            incomplete = base.is_incomplete();
            answer
        });
        (!incomplete).then_some(answer)
    }

    fn read_with(
        &self,
        operation: &KvOperation,
        mut read: impl FnMut(&Generation, Meta) -> Result<Result<KvAnswer, KvRejection>, Failure>,
    ) -> Result<Result<KvAnswer, KvRejection>, Failure> {
        if let Err(rejection) = check::command(None, operation) {
            return Ok(Err(rejection));
        }
        if !operation.is_read_only() {
            return Ok(Err(KvRejection::invalid("a write cannot be executed as a read")));
        }
        let generation = self.store.current();
        let mut meta = generation.meta();
        loop {
            let answer = read(&generation, meta);
            // What was read may have been compacted away beneath it.
            let now = generation.meta();
            if now.compacted == meta.compacted {
                return answer;
            }
            meta = now;
        }
    }

    /// A checksum of the whole state. Reads all of it; blocks on the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn hash(&self) -> Result<StateHash, Failure> {
        self.with_snapshot(|snapshot, meta| {
            let hash = hash::hash(snapshot, meta.compacted)?;
            let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
            Ok(StateHash { hash, revision: meta.revision, applied_index, term })
        })
    }

    /// The store's revision.
    ///
    /// # Errors
    /// The disk failed.
    pub fn revision(&self) -> Result<u64, Failure> {
        Ok(self.store.current().meta().revision)
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
) -> Result<Result<KvAnswer, KvRejection>, Failure> {
    let mut nothing = Overlay::new();
    let history = History { revision: meta.revision, compacted: meta.compacted };
    match Execution::new(base, &mut nothing, history, REPLY_BYTES_MAX).without_later().run(operation) {
        Ok((result, _)) => {
            let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
            Ok(Ok(KvAnswer { revision: meta.revision, applied_index, term, result }))
        }
        Err(Halt::Rejected(rejection)) => Ok(Err(rejection)),
        Err(Halt::Failed(failure)) => Err(failure),
    }
}
