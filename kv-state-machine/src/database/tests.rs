use std::time::Duration;

use consensus_core::NodeId;

use super::*;

/// A hash of a large store takes minutes.
#[tokio::test]
async fn hashes_and_long_reads_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
    database.start().await.unwrap();
    let patience = Duration::from_secs(20);
    let reads = [database.concurrency.long_read().await, database.concurrency.long_read().await];
    tokio::time::timeout(patience, database.hash()).await.expect("does not wait for reads").unwrap();
    tokio::time::timeout(patience, database.hash_at(0)).await.expect("does not wait for reads").unwrap();
    drop(reads);
    let _hash = database.concurrency.hash().await;
    tokio::time::timeout(patience, database.concurrency.long_read()).await.expect("does not wait for a hash");
    let other = database.hash();
    assert!(tokio::time::timeout(Duration::from_millis(50), other).await.is_err(), "one hash at a time");
}
