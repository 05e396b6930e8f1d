//! Power cuts and `kill -9` at every sync: whatever they leave on disk opens, with everything that was acknowledged.

use std::path::Path;

use consensus_core::{NodeId, StorageError};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{
    crash_images::FailingSyncs,
    log_storage::workload::{try_images, try_images_with_failing_syncs, write_in_sessions},
};

fn open(dir: &Path) -> Result<WalLogStorage, StorageError> {
    WalLogStorage::open_with_segment_bytes(&dir.join("node-1/log"), NodeId(1), SEGMENT_BYTES)
}

/// The tests below run this under strace.
#[test]
#[ignore = "not a test: the workload of the tests below"]
fn workload() {
    write_in_sessions(SESSIONS, open);
}

#[test]
fn log_after_a_crash_at_any_sync_has_all_acknowledged_entries() {
    // Writes after each crash: longer and shorter than the torn write, and in another segment.
    try_images("workload", open, |_| 3);
}

#[test]
fn log_after_a_crash_and_failed_syncs_has_all_acknowledged_entries() {
    for (first, step) in [(2, NEVER), (3, NEVER), (4, NEVER), (5, 7), (6, 9), (11, 13)] {
        try_images_with_failing_syncs("workload", FailingSyncs { first, step }, open, |_| 1);
    }
}

const SESSIONS: usize = 3;
/// Beyond the last sync.
const NEVER: usize = 10_000;
/// Short enough that segments are created, purged and reused.
const SEGMENT_BYTES: u64 = 16 << 10;
