//! Power cuts and `kill -9` at every sync of a log storage: whatever they leave opens, and holds what was acknowledged.

use std::path::Path;

use consensus_core::{NodeId, StorageError};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_testkit::{
    crash_images::FailingSyncs,
    log_storage::workload::{try_images, try_images_with_failing_syncs, write_in_sessions},
};

fn open(dir: &Path) -> Result<RocksLogStorage, StorageError> {
    RocksLogStorage::open(&dir.join("node-1/log"), NodeId(1))
}

/// Run by [`what_a_crash_leaves_at_any_sync_is_whole`] under strace.
#[test]
#[ignore = "not a test: the workload of the one below"]
fn the_workload() {
    // Opened again and again: RocksDB moves what it finds to a table and begins new files.
    write_in_sessions(SESSIONS, open);
}

#[test]
fn what_a_crash_leaves_at_any_sync_is_whole() {
    // Every few images are also written to and opened again.
    try_images("the_workload", open, |number| usize::from(number.is_multiple_of(4)));
}

#[test]
fn what_a_crash_leaves_after_syncs_that_failed_is_whole() {
    for (first, step) in [(2, NEVER), (4, NEVER), (15, 17)] {
        try_images_with_failing_syncs("the_workload", FailingSyncs { first, step }, open, |number| {
            usize::from(number.is_multiple_of(4))
        });
    }
}

const SESSIONS: usize = 3;
/// Beyond the last sync.
const NEVER: usize = 10_000;
