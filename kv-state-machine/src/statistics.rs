//! Numbers that describe a store at a moment, for metrics.

use crate::{
    KvStoreExecutor,
    store::{MEMTABLE_BYTES, Published, TABLE_BYTES},
    view::Failure,
};

/// Numbers that describe a store. They are read from memory, one after another: changes may happen in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStatistics {
    /// Revision of the store.
    pub revision: u64,
    /// Oldest revision that can be read; 0 if nothing was compacted.
    pub compacted: u64,
    /// Number of keys at that revision.
    pub keys: u64,
    /// Number of leases.
    pub leases: u64,
    /// Number of sessions of watches.
    pub watch_sessions: u64,
    /// Number of watches.
    pub watches: u64,
    /// Number of watches that have to read changes from disk to catch up.
    pub watches_behind: u64,
    /// Deletions of large ranges that are being carried out.
    pub range_deletions: u64,
    /// Numbers of RocksDB.
    pub rocksdb: RocksDbStatistics,
}

/// Numbers of the RocksDB database of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RocksDbStatistics {
    /// Bytes of tables on disk.
    pub table_bytes: u64,
    /// Bytes of memtables.
    pub memtable_bytes: u64,
    /// Bytes of the block cache.
    pub cache_bytes: u64,
    /// Bytes of indexes and filters that are not in the block cache.
    pub reader_bytes: u64,
    /// Estimated bytes that compaction has to rewrite.
    pub pending_compaction_bytes: u64,
    /// Compactions that run.
    pub running_compactions: u64,
    /// Flushes of memtables that run.
    pub running_flushes: u64,
    /// Tables of level 0.
    pub level0_tables: u64,
    /// 1 if RocksDB has stopped writes.
    pub is_write_stopped: u64,
    /// Errors of flushes and compactions since the database was opened.
    pub background_errors: u64,
}

impl KvStoreExecutor {
    /// Numbers that describe the store.
    ///
    /// # Errors
    /// RocksDB failed.
    pub fn statistics(&self) -> Result<StoreStatistics, Failure> {
        let store = self.store();
        let generation = store.current();
        let Published { meta, segments, deletions } = generation.published();
        let watches = store.dispatcher().counts();
        let property = |name| generation.property(name);
        Ok(StoreStatistics {
            revision: meta.revision,
            compacted: meta.compacted,
            keys: segments.living_keys(),
            leases: generation.leases().lock().all.len() as u64,
            watch_sessions: watches.sessions as u64,
            watches: watches.watches as u64,
            watches_behind: watches.watches.saturating_sub(watches.current) as u64,
            range_deletions: deletions.len() as u64,
            rocksdb: RocksDbStatistics {
                table_bytes: property(TABLE_BYTES)?,
                memtable_bytes: property(MEMTABLE_BYTES)?,
                cache_bytes: property("rocksdb.block-cache-usage")?,
                reader_bytes: property("rocksdb.estimate-table-readers-mem")?,
                pending_compaction_bytes: property("rocksdb.estimate-pending-compaction-bytes")?,
                running_compactions: property("rocksdb.num-running-compactions")?,
                running_flushes: property("rocksdb.num-running-flushes")?,
                level0_tables: property("rocksdb.num-files-at-level0")?,
                is_write_stopped: property("rocksdb.is-write-stopped")?,
                background_errors: property("rocksdb.background-errors")?,
            },
        })
    }
}
