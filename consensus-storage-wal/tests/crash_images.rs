//! Power cuts and `kill -9` at every sync of a log storage: whatever they leave opens, and holds what was acknowledged.

use std::{collections::BTreeMap, path::Path};

use consensus_core::{LogStorage, NodeId};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{
    crash_images::{self, Image},
    log_storage::workload::{Content, batches, contents, one_more},
};

fn open(dir: &Path) -> Result<WalLogStorage, consensus_core::StorageError> {
    WalLogStorage::open_with_segment_bytes(&dir.join("node-1/log"), NodeId(1), SEGMENT_BYTES)
}

/// Run by [`what_a_crash_leaves_at_any_sync_is_whole`] under strace.
#[test]
#[ignore = "not a test: the workload of the one below"]
fn the_workload() {
    let Some(dir) = crash_images::workload_dir() else { return };
    let batches = batches();
    let mut done = 0;
    for session in batches.chunks(batches.len().div_ceil(SESSIONS)) {
        let storage = open(&dir).unwrap();
        println!("storage {}", storage.load().unwrap().storage);
        for batch in session {
            storage.write(batch.clone()).unwrap();
            done += 1;
            println!("acknowledged {done}");
        }
    }
}

fn check(image: &Image, contents: &[Content], goes_on: bool) {
    let dir = tempfile::tempdir().unwrap();
    image.write_to(dir.path()).unwrap();
    let acknowledged: usize = image.told("acknowledged").map_or(0, |n| n.parse().unwrap());
    let storage = open(dir.path()).unwrap_or_else(|error| panic!("{image} does not open: {error}"));
    let found = Content::of(&storage);
    // The batch under way may be there too, whole.
    let may = &contents[acknowledged..contents.len().min(acknowledged + 2)];
    assert!(may.contains(&found), "{image}: not what was acknowledged: {found:?}");
    if let Some(identity) = image.told("storage") {
        assert_eq!(storage.load().unwrap().storage.to_string(), identity, "{image}");
    }
    if !goes_on {
        return;
    }
    // Longer and shorter than what may have been torn, and in another segment.
    for _ in 0..3 {
        storage.write(one_more(&Content::of(&storage))).unwrap();
    }
    let before = Content::of(&storage);
    drop(storage);
    assert_eq!(Content::of(&open(dir.path()).unwrap()), before, "{image}: after more writes");
}

#[test]
fn what_a_crash_leaves_at_any_sync_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let recording = match crash_images::record("the_workload", place.path()) {
        Ok(recording) => recording,
        Err(why) => return println!("SKIPPED, no crash images are tried: {why}"),
    };
    let contents = contents(&batches());
    let mut tried: BTreeMap<_, usize> = BTreeMap::new();
    let syncs = recording.images(|image| {
        check(image, &contents, true);
        *tried.entry(image.survives).or_default() += 1;
    });
    let images: usize = tried.values().sum();
    println!("{syncs} syncs, {images} images: {tried:?}");
    assert!(
        syncs > batches().len() && tried.len() == 5,
        "the recording is not of the workload: {syncs} {tried:?}"
    );
}

const SESSIONS: usize = 3;
/// So short that segments come, go and come back.
const SEGMENT_BYTES: u64 = 16 << 10;
