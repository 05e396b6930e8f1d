//! Deletions of ranges with many keys.
//!
//! Such a deletion must not hold up the commands after it. When it is applied, only one record is written: its range
//! and its revision. From then on, reads treat the covered versions as deleted. A thread writes the deletions of the
//! keys afterwards, in parts, and then removes the record. Watches receive the revision when all its deletions are
//! written, and the revisions after it later.
//!
//! Nodes write the deletions at their own pace: no response, no hash and no event depends on it.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use consensus_core::{StateMachineError, codec};
use rocksdb::{IteratorMode, ReadOptions, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::{
    changes,
    keys::{self, Record},
    pending_writes::Change,
    store::{Generation, Store},
    view::{Base, Failure, Overlay, Source, View, disk, write_unlogged},
};

/// Deletions of ranges whose keys are not all deleted on disk yet, in the order of their revisions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeDeletions(Option<Arc<Vec<RangeDeletion>>>);

/// A deletion of all keys in a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RangeDeletion {
    pub(crate) revision: u64,
    /// Places of the keys.
    places: Range<Vec<u8>>,
    /// The deletions of keys before this place are written.
    next: Vec<u8>,
    /// Number of records of changes that are written.
    changes: u32,
}

impl RangeDeletion {
    pub(crate) fn new(revision: u64, places: Range<Vec<u8>>) -> Self {
        Self { revision, next: places.start.clone(), places, changes: 0 }
    }

    fn covers(&self, prefix: &[u8], after: u64, through: u64) -> bool {
        let is_within = self.places.start[..] <= *prefix && *prefix < self.places.end[..];
        after < self.revision && self.revision <= through && is_within
    }

    /// Adds the record of the deletion to a RocksDB write.
    pub(crate) fn write(&self, write: &mut WriteBatch) {
        write.put(keys::range_deletion(self.revision), codec::encode(VERSION, self));
    }
}

impl RangeDeletions {
    /// Loads the deletions of a store.
    pub(crate) fn load(db: &dyn Source) -> Result<Self, Failure> {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_lower_bound(keys::RANGE_DELETIONS.start);
        read.set_iterate_upper_bound(keys::RANGE_DELETIONS.end);
        let mut deletions = Vec::new();
        for item in db.iterate(IteratorMode::Start, read) {
            let (_, record) = item.map_err(disk)?;
            deletions.push(codec::decode("range deletion", VERSION, &record)?);
        }
        Ok(Self::of(deletions))
    }

    fn of(deletions: Vec<RangeDeletion>) -> Self {
        Self((!deletions.is_empty()).then(|| Arc::new(deletions)))
    }

    fn all(&self) -> &[RangeDeletion] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Number of deletions.
    pub(crate) fn len(&self) -> usize {
        self.all().len()
    }

    /// Revision of the first deletion.
    pub(crate) fn first_revision(&self) -> Option<u64> {
        self.all().first().map(|deletion| deletion.revision)
    }

    /// The same with one more, which is newer.
    pub(crate) fn with(&self, deletion: RangeDeletion) -> Self {
        Self::of(self.all().iter().cloned().chain([deletion]).collect())
    }

    /// The same without the deletion at a revision.
    fn without(&self, revision: u64) -> Self {
        Self::of(self.all().iter().filter(|deletion| deletion.revision != revision).cloned().collect())
    }

    /// The same with the state of one deletion replaced.
    fn replaced(&self, by: &RangeDeletion) -> Self {
        let state =
            |deletion: &RangeDeletion| if deletion.revision == by.revision { by } else { deletion }.clone();
        Self::of(self.all().iter().map(state).collect())
    }

    /// Revision at which the key with this prefix was deleted, if it was living after `after`: the first deletion of a
    /// range up to `through`.
    pub(crate) fn deleted_at(&self, prefix: &[u8], after: u64, through: u64) -> Option<u64> {
        let mut covering = self.all().iter().filter(|deletion| deletion.covers(prefix, after, through));
        covering.next().map(|deletion| deletion.revision)
    }
}

/// Runs at most one thread that writes the deletions of keys.
#[derive(Debug, Default)]
pub(crate) struct Deleter {
    running: Option<(JoinHandle<()>, Arc<Control>)>,
}

#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    /// Whether the thread has ended or is about to.
    ended: Mutex<bool>,
}

impl Deleter {
    /// Writes the deletions of a generation, unless a thread does that already.
    pub(crate) fn start(&mut self, store: &Arc<Store>) {
        if let Some((thread, control)) = &self.running
            && !thread.is_finished()
            && !*control.ended.lock().unwrap_or_else(PoisonError::into_inner)
        {
            return;
        }
        self.stop();
        let control = Arc::new(Control::default());
        let (generation, weak, shared) = (store.current(), Arc::downgrade(store), control.clone());
        let work = move || delete_all(&generation, &weak, &shared);
        match std::thread::Builder::new().name("kv-delete".to_owned()).spawn(work) {
            Ok(thread) => self.running = Some((thread, control)),
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that writes the deletions of a range; watches are delayed");
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some((thread, control)) = self.running.take() {
            control.stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

impl Drop for Deleter {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes deletions until there are no more.
fn delete_all(generation: &Generation, store: &Weak<Store>, control: &Control) {
    let mut failed = false;
    while let (Some(deletion), Some(store)) = (next(generation, control), store.upgrade()) {
        if store.are_deletions_held().load(Ordering::Relaxed) {
            std::thread::sleep(HOLD);
            continue;
        }
        let room = store.reserve_for_deletions().check(0);
        generation.wait_for_batches();
        let part = || write_part(generation, &deletion, store.tuning().deletion_part);
        match room.map_err(StateMachineError::Other).and_then(|()| part()) {
            Ok(Some(more)) => generation.update_deletions(|deletions| deletions.replaced(&more)),
            Ok(None) => {
                generation.update_deletions(|deletions| deletions.without(deletion.revision));
                store.dispatcher().batch_written();
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%error, "cannot write the deletions of a range; watches are delayed until a retry succeeds");
                }
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// The deletion to continue with; `None` ends the thread.
fn next(generation: &Generation, control: &Control) -> Option<RangeDeletion> {
    let mut ended = control.ended.lock().unwrap_or_else(PoisonError::into_inner);
    let first = generation.deletions().all().first().cloned();
    let next = first.filter(|_| !control.stop.load(Ordering::Relaxed));
    *ended = next.is_none();
    next
}

/// Writes the deletions of some keys. Returns what is left to do; `None` if nothing is. If a crash loses the write, it is
/// repeated.
fn write_part(
    generation: &Generation,
    deletion: &RangeDeletion,
    keys_max: u64,
) -> Result<Option<RangeDeletion>, Failure> {
    // A batch that attaches a key to a lease, or moves it, must come before this write or after it.
    let _exclusive = generation.exclusive_for_deletion();
    let (base, nothing) = (Base::new(generation), Overlay::new());
    // All older deletions are written; this one and newer ones do not matter at the revision before it.
    let none = RangeDeletions::default();
    let view = View { source: &base, overlay: &nothing, deletions: &none };
    let places = deletion.next.clone()..deletion.places.end.clone();
    let (living, next) = view.living_keys(places, deletion.revision - 1, keys_max)?;
    let mut write = WriteBatch::default();
    let deleted = Record::Deleted.encode();
    for (key, lease_id) in &living {
        let prefix = keys::prefix(key);
        if *lease_id != 0 && !is_attached_again(&view, &prefix, *lease_id, deletion.revision)? {
            write.delete(keys::attached(*lease_id, key));
        }
        write.put(keys::version_of(prefix, deletion.revision), &deleted);
    }
    let (revision, first) = (deletion.revision, deletion.changes);
    let changed =
        living.iter().map(|(key, _)| Change { revision, key: key.clone(), deleted: true, replaced: None });
    let changes = first + changes::write_from(first, &changed.collect::<Vec<_>>(), &mut write);
    let left = next.map(|next| RangeDeletion { next, changes, ..deletion.clone() });
    match &left {
        Some(left) => left.write(&mut write),
        None => write.delete(keys::range_deletion(revision)),
    }
    let written = write.size_in_bytes() as u64;
    write_unlogged(generation.db(), write)?;
    generation.add_written_bytes(written);
    for (key, _) in &living {
        generation.recent().note_deletion(&keys::prefix(key), revision);
    }
    Ok(left)
}

/// Whether a version after `revision` attaches the key with this prefix to a lease.
fn is_attached_again(view: &View<'_>, prefix: &[u8], lease_id: i64, revision: u64) -> Result<bool, Failure> {
    let Some((at, record)) = view.newest(prefix, u64::MAX)? else { return Ok(false) };
    let counts = keys::counts(&record)?;
    Ok(at > revision && counts.version > 0 && counts.lease_id == lease_id)
}

const VERSION: u8 = 1;
const RETRY: Duration = Duration::from_millis(500);
const HOLD: Duration = Duration::from_millis(1);
