//! Checksums of the state, to compare nodes.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

use rocksdb::{IteratorMode, ReadOptions};

use crate::{
    alarm::Alarms,
    auth,
    collect::GarbageFilter,
    keys::{self, Record},
    range_deletions::RangeDeletions,
    view::{Failure, Overlay, Source, View, disk},
};

/// Checksum of the state at a log position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// CRC-32C over all live and historic versions in key order, newest first, and over the leases, alarms, users and
    /// roles.
    pub hash: u32,
    /// Store revision.
    pub revision: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// Term of the last applied entry.
    pub term: u64,
}

/// Checksum of the keys up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeysHash {
    /// CRC-32C over all live and historic versions up to the revision in key order, newest first.
    pub hash: u32,
    /// The revision.
    pub revision: u64,
    /// Oldest revision that can be read; 0 if nothing was compacted.
    pub compacted: u64,
}

/// Computes the checksum of the state. Garbage does not count, whether it is collected or not.
pub(crate) fn hash(source: &dyn Source, compacted: u64, cancelled: &AtomicBool) -> Result<u32, Failure> {
    let mut sum = hash_versions(source, compacted, u64::MAX, cancelled)?;
    let mut add = |bytes: &[u8]| sum = crc32c::crc32c_append(sum, bytes);
    hash_leases(source, &mut add)?;
    Alarms::hash(source, &mut add)?;
    auth::hash(source, &mut add)?;
    Ok(sum)
}

/// Computes the checksum of the versions up to a revision.
pub(crate) fn hash_versions(
    source: &dyn Source,
    compacted: u64,
    revision: u64,
    cancelled: &AtomicBool,
) -> Result<u32, Failure> {
    let (overlay, deletions) = (Overlay::new(), RangeDeletions::load(source)?);
    let view = View { source, overlay: &overlay, deletions: &deletions };
    let (mut filter, mut sum) = (GarbageFilter::new(compacted), 0);
    let mut add = |bytes: &[u8]| sum = crc32c::crc32c_append(sum, bytes);
    view.versions(keys::all(), |version| {
        if cancelled.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        if version.revision <= revision && !filter.is_garbage(&version) {
            add(&(version.key.len() as u64).to_be_bytes());
            add(&version.key);
            add(&version.revision.to_be_bytes());
            if let Record::Live(kv) = &version.record {
                add(&kv.create_revision.to_be_bytes());
                add(&kv.version.to_be_bytes());
                add(&kv.lease_id.to_be_bytes());
                add(&(kv.value.len() as u64).to_be_bytes());
                add(&kv.value);
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(sum)
}

/// Adds the leases, and the keys attached to each.
fn hash_leases(source: &dyn Source, add: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
    let (overlay, deletions) = (Overlay::new(), RangeDeletions::load(source)?);
    let view = View { source, overlay: &overlay, deletions: &deletions };
    let mut read = ReadOptions::default();
    read.set_total_order_seek(true);
    read.set_iterate_lower_bound(keys::LEASES.start);
    read.set_iterate_upper_bound(keys::LEASES.end);
    for item in source.iterate(IteratorMode::Start, read) {
        let (place, lease) = item.map_err(disk)?;
        add(&place);
        add(&lease);
        let id = place[1..].try_into().map(i64::from_be_bytes).unwrap_or_default();
        for key in view.attached_keys(id, usize::MAX)? {
            add(&(key.len() as u64).to_be_bytes());
            add(&key);
        }
    }
    Ok(())
}
