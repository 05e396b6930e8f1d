//! A checksum over the state, to compare nodes.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    collect::Sieve,
    keys::{self, Record},
    view::{Failure, Overlay, Source, View},
};

/// A checksum of the state at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// CRC-32C over all live and historic versions in key order, newest first.
    pub hash: u32,
    /// Store revision.
    pub revision: u64,
    /// Log index applied.
    pub applied_index: u64,
    /// Term of the entry applied.
    pub term: u64,
}

/// The checksum; garbage not yet collected does not count.
pub(crate) fn hash(source: &dyn Source, compacted: u64, abandoned: &AtomicBool) -> Result<u32, Failure> {
    let overlay = Overlay::new();
    let view = View { source, overlay: &overlay };
    let (mut sieve, mut sum) = (Sieve::new(compacted), 0);
    let mut add = |bytes: &[u8]| sum = crc32c::crc32c_append(sum, bytes);
    view.versions(keys::all(), false, |version| {
        if abandoned.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        if !sieve.is_garbage(&version) {
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
