//! A multi-version key-value store as a replicated state machine.
//!
//! ```text
//!  KvOperation ─▶ ConsensusKvDatabase ─▶ ConsensusEngine ─▶ KvStateMachine ─▶ KvStoreExecutor ─▶ RocksDB
//!                        └── reads: barrier, then ────────────────────────────────┘
//! ```
//!
//! * [`KvOperation`], [`KvResult`]: what can be asked, what comes back.
//! * [`KvStateMachine`]: applies committed operations, each batch one atomic RocksDB write that carries the applied
//!   position; takes snapshots as checkpoints.
//! * [`KvStoreExecutor`]: a handle for reads of the same store, from any thread.
//! * [`ConsensusKvDatabase`]: an engine and an executor together - the database as a program embeds it.
//!
//! # The model
//! The store has a *revision*: 1 when empty, one more with every operation that writes. A key keeps its versions; each
//! knows the revision at which the key came into being (`create_revision`), at which it was written (`mod_revision`), and
//! how many writes that makes (`version`). Any revision can be read until it is compacted. It is etcd's model, and names
//! follow it.
//!
//! Keys can go with a *lease*, which ends unless it is renewed, and its keys with it; and a client can *watch* keys: it is
//! told of each change ([`ConsensusKvDatabase::grant_lease`], [`ConsensusKvDatabase::watch`]).
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
mod auto_compaction;
mod changes;
mod check;
mod collect;
mod database;
mod execute;
mod executor;
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod keys;
mod lanes;
mod lease;
mod lessor;
mod limits;
mod machine;
mod operation;
mod quota;
mod recent;
mod scan;
mod session;
mod size;
mod snapshot;
mod store;
mod view;
mod watch;
mod work;
mod written;

pub use alarm::{Alarm, AlarmKind};
pub use auto_compaction::AutoCompaction;
pub use changes::WatchEvent;
pub use consensus_core::session::Session;
pub use database::{ConsensusKvDatabase, Consistency, KvError, KvStartError, LeaseState, random_lease_id};
pub use executor::KvStoreExecutor;
pub use hash::{KeysHash, StateHash};
pub use lease::Lease;
pub use limits::{
    KEY_BYTES_MAX, LEASE_TTL_MAX, Limits, OPERATIONS_MAX, REPLY_BYTES_MAX, SESSION_REPLY_BYTES_MAX,
    TXN_DEPTH_MAX, VALUE_BYTES_MAX, WHOLE_REPLY_BYTES_MAX, WORK_BYTES_MAX, WORK_KEYS_MAX,
};
pub use machine::{Durability, KvStateMachine};
pub use operation::{
    Compare, CompareResult, CompareTarget, Delete, Deleted, Found, Keep, KeyRange, KeyValue, KvAnswer,
    KvCommand, KvOperation, KvRejection, KvResult, Put, PutDone, Range, RevisionBounds, Sort, SortBy, Txn,
    TxnDone, Versionstamp,
};
pub use snapshot::StoreSnapshot;
pub use watch::{WatchId, WatchNews, WatchRequest, WatchStream, Watches};
