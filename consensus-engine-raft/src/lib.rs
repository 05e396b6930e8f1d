//! The Raft engine.
//!
//! [`RaftEngine`] runs the protocol of `consensus-raft-protocol`, a deterministic state machine without clock and I/O, over any
//! transport, log storage and state machine. What this is *not*: the engine decides nothing about terms, votes or commitment.
//! Those rules are in the protocol crate. The exceptions are the first entry of a new log, and recovery after the loss of a
//! majority ([`recover`]).
//!
//! ```text
//!  propose ─┐                       ┌─▶ storage thread ── LogStorage::write ──┐
//!  read ────┼─▶ one task ── turn ───┼─▶ apply thread ──── StateMachine::apply ┼─▶ back to the task
//!  network ─┘   drain, step, send   └─▶ NetworkTransport::send                ┘
//! ```
//!
//! Each turn takes the waiting inputs, at most 4,096, steps the protocol once for each, sends at most one run of entries to each peer, and
//! starts a log write unless one is in flight. So batches form under load, and without load nothing waits for a batch. A
//! storage and a state machine in memory need no threads of their own ([`RaftConfig::threads`]).
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use consensus_core::*;
//! # async fn start(transport: Arc<dyn NetworkTransport>, storage: impl LogStorage, machine: impl StateMachine)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use consensus_engine_raft::RaftEngine;
//!
//! let engine = RaftEngine::builder(NodeId(1)).voters([1, 2, 3]).start(transport, storage, machine).await?;
//! let committed = engine.propose("a command".into()).await?;
//! engine.read_barrier(ReadConsistency::Linearizable).await?;
//! engine.shutdown().await?;
//! # Ok(())
//! # }
//! ```

mod admission;
mod apply_thread;
mod builder;
mod cache;
mod config;
mod driver;
mod engine;
pub mod flight;
#[doc(hidden)]
pub mod fuzzing;
mod inbox;
mod latency;
pub mod measure;
pub mod recover;
mod snapshot_receive;
mod snapshot_send;
mod storage_thread;
mod waiters;
mod witness;
mod worker;

pub use builder::RaftBuilder;
pub use config::RaftConfig;
pub use engine::{RaftEngine, StartError};
pub use latency::{SimulatedHangs, SimulatedLatency};

// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
