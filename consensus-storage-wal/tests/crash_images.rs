//! Power cuts and `kill -9` at every sync of a log storage: whatever they leave opens, and holds what was acknowledged.

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

/// Run by [`what_a_crash_leaves_at_any_sync_is_whole`] under strace.
#[test]
#[ignore = "not a test: the workload of the one below"]
fn the_workload() {
    write_in_sessions(SESSIONS, open);
}

#[test]
fn what_a_crash_leaves_at_any_sync_is_whole() {
    // Longer and shorter than what may have been torn, and in another segment.
    try_images("the_workload", open, |_| 3);
}

#[test]
fn what_a_crash_leaves_after_syncs_that_failed_is_whole() {
    for (first, step) in [(2, NEVER), (3, NEVER), (4, NEVER), (5, 7), (6, 9), (11, 13)] {
        try_images_with_failing_syncs("the_workload", FailingSyncs { first, step }, open, |_| 1);
    }
}

const SESSIONS: usize = 3;
/// Beyond the last sync.
const NEVER: usize = 10_000;
/// So short that segments come, go and come back.
const SEGMENT_BYTES: u64 = 16 << 10;
