//! Power cuts and `kill -9` at every sync: whatever they leave on disk opens, with everything that was acknowledged.

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

/// The tests below run this under strace.
#[test]
#[ignore = "not a test: the workload of the tests below"]
fn workload() {
    // At each open, RocksDB moves the data of its log to a table and starts new files.
    write_in_sessions(SESSIONS, open);
}

#[test]
fn log_after_a_crash_at_any_sync_has_all_acknowledged_entries() {
    // Some images are also written to and opened again.
    try_images("workload", open, |number| usize::from(number.is_multiple_of(4)));
}

#[test]
fn log_after_a_crash_and_failed_syncs_has_all_acknowledged_entries() {
    for (first, step) in [(2, NEVER), (4, NEVER), (15, 17)] {
        try_images_with_failing_syncs("workload", FailingSyncs { first, step }, open, |number| {
            usize::from(number.is_multiple_of(4))
        });
    }
}

const SESSIONS: usize = 3;
/// Beyond the last sync.
const NEVER: usize = 10_000;
