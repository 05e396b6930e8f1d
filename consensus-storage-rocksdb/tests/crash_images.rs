//! Power cuts and `kill -9` at every sync of a log storage: whatever they leave opens, and holds what was acknowledged.

use std::{collections::BTreeMap, path::Path};

use consensus_core::{LogStorage, NodeId};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_testkit::{
    crash_images::{self, Image},
    log_storage::workload::{Content, batches, contents, one_more},
};

fn open(dir: &Path) -> RocksLogStorage {
    RocksLogStorage::open(&dir.join("node-1/log"), NodeId(1)).unwrap()
}

/// Run by [`what_a_crash_leaves_at_any_sync_is_whole`] under strace.
#[test]
#[ignore = "not a test: the workload of the one below"]
fn the_workload() {
    let Some(dir) = crash_images::workload_dir() else { return };
    let batches = batches();
    let mut done = 0;
    // Opened again and again: RocksDB moves what it finds to a table and begins new files.
    for session in batches.chunks(batches.len().div_ceil(SESSIONS)) {
        let storage = open(&dir);
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
    let storage = RocksLogStorage::open(&dir.path().join("node-1/log"), NodeId(1));
    let storage = storage.unwrap_or_else(|error| panic!("{image} does not open: {error}"));
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
    storage.write(one_more(&found)).unwrap();
    let before = Content::of(&storage);
    drop(storage);
    assert_eq!(Content::of(&open(dir.path())), before, "{image}: after one more write");
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
        // Every few images are also written to and opened again.
        check(image, &contents, tried.values().sum::<usize>().is_multiple_of(4));
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
