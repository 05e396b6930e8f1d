//! A multi-version key-value store as a replicated state machine.
//!
//! ```text
//!  KvOperation ─▶ ConsensusKvDatabase ─▶ ConsensusEngine ─▶ KvStateMachine ─▶ KvStoreExecutor ─▶ RocksDB
//!                        └── reads: barrier, then ────────────────────────────────┘
//! ```
//!
//! * [`KvOperation`], [`KvResult`]: the operations and their results.
//! * [`KvStateMachine`]: applies committed operations. Each batch is one atomic RocksDB write that includes the applied
//!   position. Snapshots are RocksDB checkpoints.
//! * [`KvStoreExecutor`]: a handle to read the same store from any thread.
//! * [`ConsensusKvDatabase`]: an engine and an executor, as a database that a program can embed.
//!
//! # The model
//! The store has a *revision*: 1 when empty, incremented by every operation that writes. A key keeps its versions. Each
//! version records the revision at which the key was created (`create_revision`), the revision at which it was written
//! (`mod_revision`), and the number of writes since the creation (`version`). Every revision can be read until it is
//! compacted. The model and its names are those of etcd.
//!
//! Keys can be attached to a *lease*, and are deleted when it expires or is revoked. A client can *watch* keys and
//! receives each change ([`ConsensusKvDatabase::grant_lease`], [`ConsensusKvDatabase::watch`]).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! use consensus_core::NodeId;
//! use kv_state_machine::{ConsensusKvDatabase, KvOperation, KvResult, Put, Range};
//!
//! let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path())?;
//! database.start().await?;
//! let put = Put { key: "k".into(), value: "v".into(), ..Put::default() };
//! let answer = database.execute_operation(KvOperation::Put(put)).await?;
//! assert_eq!(answer.revision, 2);
//! let range = Range { key: "k".into(), ..Range::default() };
//! let KvResult::Range(found) = database.execute_operation(KvOperation::Range(range)).await?.result else { panic!() };
//! assert_eq!(found.kvs[0].value, "v");
//! # database.shutdown().await?;
//! # Ok(()) }
//! ```

mod alarm;
mod auth;
mod auto_compaction;
mod backup;
mod changes;
mod check;
mod collect;
mod concurrency;
mod database;
mod execute;
mod executor;
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod import;
mod keys;

mod lease;
mod lease_checks;
mod lessor;
mod limits;
mod machine;
mod measure;
mod operation;
mod pages;
mod pending_writes;
mod pins;
mod quota;
mod range_deletions;
mod recent;
mod scan;
mod segments;
mod session;
mod size;
mod snapshot;
mod state_check;
mod statistics;
mod store;
mod view;
mod watch;
mod work;

pub use alarm::{Alarm, AlarmKind};
pub use auth::{
    Admission, AuthOperation, AuthRejection, AuthSecret, AuthState, AuthUser, Caller, Password, PasswordHash,
    Permission, PermissionKind, ROOT, SECRET_BYTES_MIN,
};
pub use auto_compaction::AutoCompaction;
pub use backup::Restore;
pub use changes::WatchEvent;
pub use consensus_core::session::Session;
pub use database::{ConsensusKvDatabase, Consistency, KvError, KvStartError, LeaseState, random_lease_id};
pub use executor::KvStoreExecutor;
pub use hash::{KeysHash, StateHash};
pub use import::{ImportedVersion, Importer};
pub use lease::Lease;
pub use lessor::TimeSource;
pub use limits::{
    KEY_BYTES_MAX, LEASE_TTL_MAX, Limits, OPERATIONS_MAX, PERMISSIONS_MAX, REPLY_BYTES_MAX, ROLES_MAX,
    ROLES_OF_USER_MAX, SESSION_REPLY_BYTES_MAX, SHORT_READ_BYTES_MAX, TXN_DEPTH_MAX, USERS_MAX,
    VALUE_BYTES_MAX, WHOLE_REPLY_BYTES_MAX, WORK_BYTES_MAX, WORK_KEYS_MAX,
};
pub use machine::{Durability, KvStateMachine};
pub use operation::{
    Compare, CompareResult, CompareTarget, Delete, Deleted, Found, Keep, KeyRange, KeyValue, KvAnswer,
    KvCommand, KvOperation, KvRejection, KvResult, Put, PutDone, Range, RevisionBounds, Sort, SortBy, Txn,
    TxnDone, Versionstamp,
};
pub use pages::{RangeEnd, RangePage, RangePages};
pub use snapshot::StoreSnapshot;
pub use state_check::CheckedState;
pub use statistics::{RocksDbStatistics, StoreStatistics};
pub use watch::{WatchId, WatchNews, WatchRequest, WatchStream, Watches};
