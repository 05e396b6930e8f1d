//! Writes of a batch of commands, before they are written to the disk at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    alarm::Alarms,
    lease::Lease,
    range_deletions::RangeDeletion,
    segments::CountChange,
    view::{Overlay, Source},
};

/// Writes of a batch.
#[derive(Debug, Default)]
pub(crate) struct PendingWrites {
    /// Versions of keys, by place.
    pub(crate) versions: Overlay,
    /// Changes of keys, in the order of revisions.
    pub(crate) changes: Vec<Change>,
    /// Keys that were created or deleted, in order.
    pub(crate) counts: Vec<CountChange>,
    /// Changed attachments of keys to leases.
    pub(crate) attached: Attachments,
    /// Leases that were granted, changed or ended (`None`).
    pub(crate) leases: BTreeMap<i64, Option<Lease>>,
    /// Leases that were granted.
    pub(crate) granted: BTreeSet<i64>,
    /// Deletion of a range with many keys. It is the last operation of its batch.
    pub(crate) range_deletion: Option<RangeDeletionWrite>,
    /// Alarms, if they were changed.
    pub(crate) alarms: Option<Alarms>,
    /// Whether the checksum of the state is to be computed as of this batch.
    pub(crate) checks_state: bool,
    /// Number of transactions.
    pub(crate) transactions: u64,
    /// Number of leases that have expired.
    pub(crate) expired: u64,
}

/// Deletion of a range with many keys, to be written.
#[derive(Debug)]
pub(crate) struct RangeDeletionWrite {
    pub(crate) deletion: RangeDeletion,
    pub(crate) places: Range<Vec<u8>>,
    /// Living keys in the segments that are partly in the range, see [`remove_living`](crate::segments::Segments::remove_living).
    pub(crate) in_parts: (u64, u64),
}

/// A write or deletion of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Bytes,
    pub(crate) deleted: bool,
    /// Record that was written, if the same operation replaced it afterwards.
    pub(crate) replaced: Option<Bytes>,
}

/// Attachments of keys to leases that a batch changed.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    /// Whether the key is attached now, by lease and key.
    changed: BTreeMap<(i64, Bytes), bool>,
    /// Keys of each lease that were attached by the batch, or again by a rollback, in the order of these events.
    log: BTreeMap<i64, Vec<Bytes>>,
}

impl Attachments {
    /// Sets whether a key is attached to a lease. Returns what the batch had set before.
    pub(crate) fn set(&mut self, place: (i64, Bytes), is_attached: bool) -> Option<bool> {
        if is_attached {
            self.note(&place);
        }
        self.changed.insert(place, is_attached)
    }

    /// Undoes a [`set`](Self::set), which returned `before`.
    pub(crate) fn restore(&mut self, place: (i64, Bytes), before: Option<bool>) {
        // Without a change it is as in the store, where it may be attached.
        if before != Some(false) {
            self.note(&place);
        }
        match before {
            Some(is_attached) => self.changed.insert(place, is_attached),
            None => self.changed.remove(&place),
        };
    }

    fn note(&mut self, (lease, key): &(i64, Bytes)) {
        self.log.entry(*lease).or_default().push(key.clone());
    }

    /// Whether a key is attached to a lease, if the batch has changed that.
    pub(crate) fn get(&self, lease: i64, key: &Bytes) -> Option<bool> {
        self.changed.get(&(lease, key.clone())).copied()
    }

    /// Returns the first changed key of a lease at `from` or after it, and whether it is attached.
    pub(crate) fn first_of(&self, lease: i64, from: &Bytes) -> Option<(&Bytes, bool)> {
        let ((of, key), is_attached) = self.changed.range((lease, from.clone())..).next()?;
        (*of == lease).then_some((key, *is_attached))
    }

    /// All changes, in the order of leases and keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Bytes, bool)> {
        self.changed.iter().map(|((lease, key), is_attached)| (*lease, key, *is_attached))
    }

    /// The changes of a lease, in the order of keys.
    pub(crate) fn of_lease(&self, lease: i64) -> impl Iterator<Item = (&Bytes, bool)> {
        let changed = self.changed.range((lease, Bytes::new())..);
        let changed = changed.take_while(move |((of, _), _)| *of == lease);
        changed.map(|((_, key), is_attached)| (key, *is_attached))
    }

    /// Keys that may have become attached to a lease, oldest first. Grows only, until the batch ends.
    pub(crate) fn log(&self, lease: i64) -> &[Bytes] {
        self.log.get(&lease).map_or(&[], Vec::as_slice)
    }
}

impl PendingWrites {
    /// Records that a key moved from lease `before` to lease `after`; 0 means no lease.
    pub(crate) fn attach(&mut self, key: &Bytes, before: i64, after: i64, undo: &mut Option<Undo>) {
        if before == after {
            return;
        }
        for (lease, is_attached) in [(before, false), (after, true)] {
            if lease == 0 {
                continue;
            }
            let place = (lease, key.clone());
            let replaced = self.attached.set(place.clone(), is_attached);
            if let Some(undo) = undo {
                undo.attached.push((place, replaced));
            }
        }
    }

    /// Returns a lease, including the changes of this batch to `source`.
    pub(crate) fn lease(&self, source: &dyn Source, id: i64) -> Option<Lease> {
        self.leases.get(&id).copied().unwrap_or_else(|| source.lease(id))
    }

    /// Records a change of a key. `replaced` is the record that the same operation wrote before.
    pub(crate) fn change(&mut self, change: Change, replaced: Option<Bytes>) {
        if let Some(record) = replaced {
            let of_it = |other: &&mut Change| other.revision == change.revision && other.key == change.key;
            if let Some(before) = self.changes.iter_mut().rev().find(of_it) {
                before.replaced = Some(record);
            }
        }
        self.changes.push(change);
    }

    /// Undoes all changes since `undo` was created.
    pub(crate) fn roll_back(&mut self, undo: Undo) {
        for (place, before) in undo.versions.into_iter().rev() {
            match before {
                Some(bytes) => self.versions.insert(place, bytes),
                None => self.versions.remove(&place),
            };
        }
        for (place, before) in undo.attached.into_iter().rev() {
            self.attached.restore(place, before);
        }
        self.changes.truncate(undo.changes);
        self.counts.truncate(undo.counts);
    }
}

/// State to restore if an operation is rejected halfway.
#[derive(Debug)]
pub(crate) struct Undo {
    versions: Vec<(Vec<u8>, Option<Bytes>)>,
    attached: Vec<((i64, Bytes), Option<bool>)>,
    changes: usize,
    counts: usize,
}

impl Undo {
    pub(crate) fn new(written: &PendingWrites) -> Self {
        let (changes, counts) = (written.changes.len(), written.counts.len());
        Self { versions: Vec::new(), attached: Vec::new(), changes, counts }
    }

    pub(crate) fn save_version(&mut self, place: Vec<u8>, before: Option<Bytes>) {
        self.versions.push((place, before));
    }
}
