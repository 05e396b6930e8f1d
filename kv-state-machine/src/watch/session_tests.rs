use consensus_core::NodeId;

use super::*;
use crate::{ConsensusKvDatabase, KeyRange, KvOperation, Put};

async fn database(dir: &tempfile::TempDir) -> ConsensusKvDatabase {
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
    database.start().await.unwrap();
    database
}

fn of(key: &'static str) -> WatchRequest {
    WatchRequest { keys: KeyRange { key: key.into(), range_end: None }, ..WatchRequest::default() }
}

/// Its watches refer to the queue, and the queue to the watches whose events wait in it.
#[tokio::test]
async fn session_with_events_that_wait_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let database = database(&dir).await;
    let mut watches = database.watches().unwrap();
    watches.add(of("k"));
    let queue = Arc::downgrade(&watches.queue);
    let put = Put { key: "k".into(), ..Put::default() };
    database.execute_operation(KvOperation::Put(put)).await.unwrap();
    while watches.queue.waiting().news.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(watches);
    assert!(queue.upgrade().is_none());
}

/// It has fallen behind, and its session has not noticed yet.
#[tokio::test]
async fn removed_watch_is_not_in_the_index_later() {
    let dir = tempfile::tempdir().unwrap();
    let database = database(&dir).await;
    let mut watches = database.watches().unwrap();
    let (watch, _) = watches.begin(of("k"), false);
    let store = watches.store.clone();
    store.dispatcher().registry().index.remove(&watch);
    watch.queue.fall_behind(watch.clone(), 2);
    assert!(watches.remove(watch.id));
    assert!(watches.take().is_none() && watches.behind.is_empty());
    assert_eq!(store.dispatcher().registry().index.len(), 0);
}
