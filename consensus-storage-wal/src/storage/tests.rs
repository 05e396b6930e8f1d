//! Conformance on a disk that fails.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use consensus_core::NodeId;
use consensus_testkit::log_storage::run_failing_disk_suite;

use super::WalLogStorage;

#[test]
fn passes_the_suite_of_failing_disks() {
    run_failing_disk_suite(
        || (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false))),
        |(dir, broken)| {
            let storage = WalLogStorage::open(dir.path(), NodeId(1)).unwrap();
            storage.writer().broken = broken.clone();
            storage
        },
        |(_, broken), fail| broken.store(fail, Ordering::Relaxed),
    );
}
