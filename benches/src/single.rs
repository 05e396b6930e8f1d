//! One node that writes to disk, beside the store that it keeps its data in.

use std::{
    marker::PhantomData,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::NodeId;
use consensus_engine_raft::RaftEngine;
use consensus_storage_wal::WalLogStorage;
use consensus_transport_mem::MemNetwork;
use kv_state_machine::{ConsensusKvDatabase, Durability, KvOperation, KvStateMachine, Put};
use rand::Rng;
use rocksdb::{DB, WriteOptions};
use tempfile::TempDir;

use consensus_bench_report::table::{Cell, Table};

use crate::{
    engine::{Cluster, measure},
    place,
};

pub(crate) fn compare(writers: &[usize], time: Duration) -> Result<Table, String> {
    let head = ["writers", "RocksDB/s", "standalone/s", "share", "one voter/s", "share"];
    let mut table = Table::new("One node beside bare RocksDB", &head);
    for writers in writers {
        let bare = bare(*writers, time)?;
        let (standalone, voter) =
            (measure::<Node<Standalone>>(*writers, time), measure::<Node<OneVoter>>(*writers, time));
        table.push(vec![
            Cell::count(*writers),
            Cell::rate(bare),
            Cell::rate(standalone),
            Cell::percent(standalone / bare),
            Cell::rate(voter),
            Cell::percent(voter / bare),
        ]);
    }
    Ok(table)
}

/// Synced writes per second by so many threads, which RocksDB groups.
fn bare(writers: usize, time: Duration) -> Result<f64, String> {
    let dir = place::directory()?;
    let db = DB::open_default(dir.path()).map_err(|error| error.to_string())?;
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let write = || {
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        while !over.load(Ordering::Relaxed) {
            db.put_opt(key(), VALUE, &synced).expect("a disk that can be written");
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    Ok(thread::scope(|scope| {
        (0..writers).for_each(|_| drop(scope.spawn(write)));
        thread::sleep(time / 4);
        let (before, began) = (done.load(Ordering::Relaxed), Instant::now());
        thread::sleep(time);
        let rate = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        rate
    }))
}

/// How the node keeps its data.
trait Kind: Send + Sync + 'static {
    fn open(dir: &Path) -> impl Future<Output = ConsensusKvDatabase> + Send;
}

/// Applied to the store at once, and synced there.
struct Standalone;

impl Kind for Standalone {
    async fn open(dir: &Path) -> ConsensusKvDatabase {
        ConsensusKvDatabase::new_with_mock(NodeId(1), dir).expect("a store")
    }
}

/// Synced in the log, and applied to the store.
struct OneVoter;

impl Kind for OneVoter {
    async fn open(dir: &Path) -> ConsensusKvDatabase {
        let id = NodeId(1);
        let log = WalLogStorage::open(&dir.join("log"), id).expect("a log");
        let machine = KvStateMachine::open(&dir.join("state"), id, Durability::FromLog).expect("a store");
        let executor = machine.executor();
        let builder = RaftEngine::builder(id).voters([1]);
        let engine = builder.start(MemNetwork::new(1).transport(id), log, machine).await.expect("an engine");
        ConsensusKvDatabase::new(engine, executor)
    }
}

struct Node<K> {
    database: Arc<ConsensusKvDatabase>,
    _dir: Arc<TempDir>,
    kind: PhantomData<K>,
}

impl<K> Clone for Node<K> {
    fn clone(&self) -> Self {
        Self { database: self.database.clone(), _dir: self._dir.clone(), kind: PhantomData }
    }
}

impl<K: Kind> Cluster for Node<K> {
    async fn start() -> Self {
        let dir = place::directory().expect("a directory");
        let database = K::open(dir.path()).await;
        database.start().await.expect("a running engine");
        let mut status = database.status();
        status.wait_for(|status| status.leader.is_some()).await.expect("a running engine");
        Self { database: Arc::new(database), _dir: Arc::new(dir), kind: PhantomData }
    }

    async fn propose(&self) {
        let put = Put { key: key().to_vec().into(), value: Bytes::from_static(VALUE), ..Put::default() };
        self.database.execute_operation(KvOperation::Put(put)).await.expect("it is written");
    }

    async fn stop(self) {
        self.database.shutdown().await.expect("an orderly end");
    }
}

/// One of a million.
fn key() -> [u8; 8] {
    rand::rng().random_range(0..1_u64 << 20).to_be_bytes()
}

const VALUE: &[u8] = &[b'x'; 128];
