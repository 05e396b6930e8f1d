//! The traits that connect the consensus libraries.
//!
//! A replicated service has four parts. This crate defines what each part may expect of the others:
//!
//! ```text
//!   your program ── propose / read_barrier ──▶ ConsensusEngine ── apply ──▶ StateMachine (yours)
//!                                               │          │
//!                                          LogStorage   NetworkTransport ◀──▶ the other nodes
//! ```
//!
//! * [`StateMachine`] - yours: applies commands in log order, takes and restores snapshots.
//! * [`ConsensusEngine`] - agrees on the order of commands (`consensus-engine-raft`, `consensus-mock`).
//! * [`NetworkTransport`] - moves [`Message`]s, best effort (`consensus-transport-mem`, `-thrift`).
//! * [`LogStorage`] - makes the log durable, one batch per call (`consensus-storage-wal`,
//!   `consensus-storage-rocksdb`).
//!
//! What this crate is *not*: it contains no protocol, no runtime and no I/O, and depends on none of its implementations.
//!
//! # Order of calls
//! 1. Build a transport, a log storage and a state machine; hand them to an engine's `start`.
//! 2. [`ConsensusEngine::propose`] commands; each returns the state machine's response once it is committed.
//! 3. Before a read that must be current, await [`ConsensusEngine::read_barrier`], then read your own state.
//! 4. [`ConsensusEngine::shutdown`].
//!
//! [`typed`] offers commands and responses as plain Rust types. The suites of `consensus-testkit` test implementations of
//! the traits.

pub mod codec;
mod endpoint;
mod engine;
mod entry;
mod log_storage;
mod membership;
mod message;
pub mod record;
pub mod session;
mod state_machine;
mod transport;
pub mod typed;
mod types;

pub use endpoint::{Endpoint, EndpointError};
pub use engine::{
    ChangeError, Committed, ConsensusEngine, EngineStatus, Health, PeerStatus, ProposeError, ReadConsistency,
    ReadError, Role, ShutdownError, SnapshotError, TransferError,
};
pub use entry::{Entry, Payload};
pub use log_storage::{Damage, HardState, LogBatch, LogState, LogStorage, SnapshotMeta, StorageError};
pub use membership::{
    InvalidMembership, LEADERSHIPS_MAX, Leadership, Member, MemberChange, MemberKind, Membership,
};
pub use message::{
    AppendEntries, AppendOutcome, AppendResponse, CommitNotification, Message, ReadIndexRequest,
    ReadIndexResponse, SnapshotAck, SnapshotChunk, SnapshotOutcome, TimeoutNow, VoteKind, VoteRequest,
    VoteResponse,
};
pub use state_machine::{FlushWork, Snapshot, StateMachine, StateMachineError, apply_all};
pub use transport::{MessageHandler, NetworkTransport, Reachability, SendError, TransportError};
pub use types::{ClusterId, LeadershipId, LogId, LogIndex, NodeId, StorageId, Term};
