//! Which keys each revision changed, by revision: what a watch that begins in the past reads.

use consensus_core::codec;
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};

use crate::{
    KeyValue,
    keys::{self, Record},
    view::{Base, Failure, Overlay, View, disk},
    written::Change,
};

/// A change as it is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The key was deleted: of `kv` only the key and the `mod_revision` count.
    pub deleted: bool,
    /// The key as it is afterwards.
    pub kv: KeyValue,
    /// The key as it was before; `None` too if nobody asked for it, or if that was compacted away.
    pub previous: Option<KeyValue>,
}

/// Adds to a write which keys a batch changed.
pub(crate) fn write(changes: &[Change], write: &mut WriteBatch) {
    for (number, chunk) in (0..).zip(changes.chunks(CHUNK_LEN)) {
        if let Some(last) = chunk.last() {
            write.put(keys::changes(last.revision, number), codec::encode(VERSION, &chunk));
        }
    }
}

/// Changes that were read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) changes: Vec<Change>,
    /// Up to this revision nothing is missing.
    pub(crate) through: u64,
}

/// Reads the changes of the revisions from `from` to `to` of which `wanted` is true, until about so many were looked at; always
/// whole revisions.
pub(crate) fn read(
    db: &DB,
    from: u64,
    to: u64,
    looked_at_max: usize,
    mut wanted: impl FnMut(&Change) -> bool,
) -> Result<Read, Failure> {
    let mut read = ReadOptions::default();
    read.set_total_order_seek(true);
    read.set_iterate_lower_bound(keys::changes(from, 0));
    read.set_iterate_upper_bound(keys::CHANGES_END.to_vec());
    let (mut found, mut looked_at) = (Read { changes: Vec::new(), through: to }, 0);
    let mut revision = 0;
    'all: for item in db.iterator_opt(IteratorMode::Start, read) {
        let (_, bytes) = item.map_err(disk)?;
        let chunk: Vec<Change> = codec::decode("changes", VERSION, &bytes)?;
        for change in chunk {
            if change.revision < from {
                continue;
            }
            if change.revision > to {
                break 'all;
            }
            if change.revision > revision && looked_at >= looked_at_max {
                found.through = change.revision - 1;
                break 'all;
            }
            revision = change.revision;
            looked_at += 1;
            if wanted(&change) {
                found.changes.push(change);
            }
        }
    }
    Ok(found)
}

/// The event of a change; `None` if what was written is gone, as it was compacted away.
pub(crate) fn event(base: &Base<'_>, change: &Change, previous: bool) -> Result<Option<WatchEvent>, Failure> {
    let nothing = Overlay::new();
    let view = View { source: base, overlay: &nothing };
    let live = |revision: u64| -> Result<Option<KeyValue>, Failure> {
        let version = view.of_key(&change.key, revision)?;
        Ok(version.and_then(|version| match version.record {
            Record::Live(kv) => Some(kv),
            Record::Deleted => None,
        }))
    };
    let previous = if previous { live(change.revision - 1)? } else { None };
    let kv = if let Some(record) = &change.replaced {
        match Record::decode(change.key.clone(), change.revision, record)? {
            Record::Live(kv) => kv,
            Record::Deleted => deleted(change),
        }
    } else if change.deleted {
        deleted(change)
    } else {
        match live(change.revision)? {
            Some(kv) if kv.mod_revision == change.revision => kv,
            _ => return Ok(None),
        }
    };
    Ok(Some(WatchEvent { deleted: change.deleted, kv, previous }))
}

/// Of a deletion only key and revision are told.
fn deleted(change: &Change) -> KeyValue {
    let (key, mod_revision) = (change.key.clone(), change.revision);
    KeyValue { key, value: <_>::default(), create_revision: 0, mod_revision, version: 0, lease_id: 0 }
}

/// Removes what no watch can ask for any more.
pub(crate) fn forget(compacted: u64, write: &mut WriteBatch) {
    write.delete_range(keys::changes(0, 0), keys::changes(compacted, 0));
}

const VERSION: u8 = 1;
/// Changes in one record.
const CHUNK_LEN: usize = 256;
