//! The log on RocksDB and the log in files of its own, on the same disk: writes from one thread, for docs/measurements.md.
//!
//! `cargo run --release -p consensus-storage-rocksdb --example log_storages [DIRECTORY]`

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use consensus_core::{Entry, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, SnapshotMeta};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_storage_wal::WalLogStorage;

fn main() {
    let place = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    println!("| storage | entries a write | writes/s | CPU per entry | p50 | p99 | worst |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for count in [1, 16, 256] {
        let dirs = [(); 2].map(|()| tempfile::tempdir_in(&place).expect("a directory"));
        let wal = WalLogStorage::open(dirs[0].path(), NodeId(1)).expect("it opens");
        let rocksdb = RocksLogStorage::open(dirs[1].path(), NodeId(1)).expect("it opens");
        let mut both = [Measured::new("WAL", &wal, count), Measured::new("RocksDB", &rocksdb, count)];
        let begin = Instant::now();
        // In turn, so that what else the disk has to do hits both.
        while begin.elapsed() < RUN {
            both.iter_mut().for_each(Measured::write_some);
        }
        both.iter_mut().for_each(Measured::print);
        drop((wal, rocksdb));
        if count == 256 {
            reopen("WAL", dirs[0].path(), |path| WalLogStorage::open(path, NodeId(1)).expect("it opens"));
            reopen("RocksDB", dirs[1].path(), |path| {
                RocksLogStorage::open(path, NodeId(1)).expect("it opens")
            });
        }
    }
}

struct Measured<'a> {
    name: &'a str,
    storage: &'a dyn LogStorage,
    /// Entries a write.
    count: u64,
    payload: bytes::Bytes,
    last: u64,
    purged: u64,
    times: Vec<Duration>,
    cpu: Duration,
}

impl<'a> Measured<'a> {
    fn new(name: &'a str, storage: &'a dyn LogStorage, count: u64) -> Self {
        let (payload, times) = (vec![b'x'; 160].into(), Vec::new());
        Self { name, storage, count, payload, last: 0, purged: 0, times, cpu: Duration::ZERO }
    }

    fn write_some(&mut self) {
        let cpu = cpu_time();
        for _ in 0..TURN {
            let entry = |n| Entry::command(LogId::new(1, self.last + n), self.payload.clone());
            let entries = (1..=self.count).map(entry).collect();
            self.last += self.count;
            let mut batch = LogBatch { entries, ..LogBatch::default() };
            // As an engine does, that compacts its log now and then.
            if self.last - self.purged >= 2 * KEPT_ENTRIES {
                self.purged = self.last - KEPT_ENTRIES;
                let membership = Membership::of_voters([1, 2, 3]);
                batch.purge = Some(SnapshotMeta { last: LogId::new(1, self.purged), membership });
            }
            let write = Instant::now();
            self.storage.write(batch).expect("the disk works");
            self.times.push(write.elapsed());
        }
        self.cpu += cpu_time() - cpu;
    }

    fn print(&mut self) {
        self.times.sort_unstable();
        let (times, ms) = (&self.times, |time: Duration| time.as_secs_f64() * 1e3);
        let took: Duration = times.iter().sum();
        println!(
            "| {} | {} | {:.0} | {:.2} µs | {:.3} ms | {:.3} ms | {:.1} ms |",
            self.name,
            self.count,
            times.len() as f64 / took.as_secs_f64(),
            self.cpu.as_secs_f64() * 1e6 / self.last as f64,
            ms(times[times.len() / 2]),
            ms(times[times.len() * 99 / 100]),
            ms(times[times.len() - 1]),
        );
    }
}

fn reopen<S: LogStorage>(name: &str, path: &Path, open: impl Fn(&Path) -> S) {
    let begin = Instant::now();
    let storage = open(path);
    let state = storage.load().expect("it is whole");
    let opened = begin.elapsed();
    let (begin, mut read, mut after) = (Instant::now(), 0, state.purged.last.index);
    while after < state.last().index {
        let entries = storage.read(after, LogIndex(u64::MAX), 1 << 20).expect("it is whole");
        read += entries.len();
        after = LogIndex(after.0 + entries.len() as u64);
    }
    println!(
        "\n{name}: {} entries opened in {opened:?}, {read} read in {:?}\n",
        state.entries.len(),
        begin.elapsed()
    );
}

/// Of the process, all threads.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

const RUN: Duration = Duration::from_secs(12);
/// Writes to one storage before it is the other's turn.
const TURN: usize = 20;
/// About as many as `kv-server` keeps.
const KEPT_ENTRIES: u64 = 100_000;
