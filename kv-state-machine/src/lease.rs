//! Leases in the replicated state: which ones exist, and their remaining time at the last checkpoint.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use consensus_core::{StateMachineError, codec};
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::{
    keys,
    lessor::Clock,
    pending_writes::PendingWrites,
    view::{Failure, disk},
};

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Time to live in seconds: the lease expires if it is not renewed for this time.
    pub ttl: u64,
    /// Remaining time in seconds at the last checkpoint; `None` means the whole time to live.
    pub remaining: Option<u64>,
    /// Whether the lease has ended, but still has keys that must be deleted. Then it exists only for its deletion.
    pub(crate) is_ending: bool,
}

/// Leases of a store as of the last batch, and on a leader their expiry times.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable(Mutex<Leases>);

/// Content of a [`LeaseTable`].
#[derive(Debug, Default)]
pub(crate) struct Leases {
    pub(crate) all: BTreeMap<i64, Lease>,
    /// Expiry times; `None` unless this node counts the time as leader.
    pub(crate) clock: Option<Clock>,
}

impl Leases {
    /// A lease that has not ended.
    pub(crate) fn get(&self, id: i64) -> Option<Lease> {
        self.all.get(&id).filter(|lease| !lease.is_ending).copied()
    }
}

impl LeaseTable {
    pub(crate) fn load(db: &DB) -> Result<Self, Failure> {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_range(keys::LEASES.start.to_vec()..keys::LEASES.end.to_vec());
        let mut all = BTreeMap::new();
        for item in db.iterator_opt(IteratorMode::Start, read) {
            let (place, bytes) = item.map_err(disk)?;
            let id = place[1..].try_into().map(i64::from_be_bytes);
            let id =
                id.map_err(|_| StateMachineError::Other(format!("lease key {place:02x?} is damaged")))?;
            all.insert(id, codec::decode("lease", VERSION, &bytes)?);
        }
        Ok(Self(Mutex::new(Leases { all, clock: None })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Leases> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease, which may have ended.
    pub(crate) fn get(&self, id: i64) -> Option<Lease> {
        self.lock().all.get(&id).copied()
    }

    /// Publishes the lease changes of a batch.
    pub(crate) fn publish(&self, written: &PendingWrites) {
        if written.leases.is_empty() {
            return;
        }
        let Leases { all, clock } = &mut *self.lock();
        for (id, lease) in &written.leases {
            match lease {
                Some(lease) => {
                    all.insert(*id, *lease);
                    let is_started = written.granted.contains(id) || lease.is_ending;
                    if let (true, Some(clock)) = (is_started, &mut *clock) {
                        clock.start(*id, *lease);
                    }
                }
                None => {
                    all.remove(id);
                    if let Some(clock) = &mut *clock {
                        clock.stop(*id);
                    }
                }
            }
        }
    }
}

/// Adds the lease changes of a batch to a RocksDB write.
pub(crate) fn write(written: &PendingWrites, write: &mut WriteBatch) {
    for (id, lease) in &written.leases {
        match lease {
            Some(lease) => write.put(keys::lease(*id), codec::encode(VERSION, lease)),
            None => write.delete(keys::lease(*id)),
        }
    }
    for (lease, key, is_attached) in written.attached.iter() {
        let place = keys::attached(lease, key);
        if is_attached { write.put(place, []) } else { write.delete(place) }
    }
}

/// Calls `f` with the keys attached to a lease on disk, in key order, until it returns `Break`.
pub(crate) fn visit_attached_keys(
    source: &dyn crate::view::Source,
    id: i64,
    mut f: impl FnMut(Bytes) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let mut read = ReadOptions::default();
    read.set_total_order_seek(true);
    let bounds = keys::attached_to(id);
    read.set_iterate_lower_bound(bounds.start.clone());
    read.set_iterate_upper_bound(bounds.end.clone());
    let mut found = source.raw(read);
    found.seek_to_first();
    while let Some(place) = found.key() {
        if f(keys::attached_key(place))?.is_break() {
            return Ok(());
        }
        found.next();
    }
    found.status().map_err(disk)
}

const VERSION: u8 = 1;
