//! A durable [`LogStorage`](consensus_core::LogStorage) on RocksDB.
//!
//! Each call is one RocksDB write batch with one sync. Records have their own checksums ([`consensus_core::record`]) in
//! addition to RocksDB's, and a mark outside of RocksDB records how much was written ([`MarkedDb`]). The directory
//! records its node and format ([`DataDir`]), and is refused to every other node. What this is *not*: the fastest possible
//! log. RocksDB writes it twice, to its own log and later to a table.
//!
//! ```no_run
//! # fn open() -> Result<(), consensus_core::StorageError> {
//! use consensus_core::{LogStorage, NodeId};
//! use consensus_storage_rocksdb::RocksLogStorage;
//!
//! let storage = RocksLogStorage::open("./data/node-1/log".as_ref(), NodeId(1))?;
//! let state = storage.load()?;
//! # Ok(())
//! # }
//! ```

mod manifest;
mod marked_db;
mod storage;

pub use consensus_storage_dir::{DataDir, DirKind, Reserve};
pub use marked_db::{Expected, MarkedDb, open_files_max, open_files_max_for};
pub use storage::RocksLogStorage;
