//! The Raft engine.
//!
//! [`RaftEngine`] runs the pure protocol of `consensus-raft-protocol` over any transport, log storage and state machine.
//! What this is *not*: it decides nothing about terms, votes or commitment; that is all in the protocol crate, where the
//! compiler keeps clocks and I/O out.
//!
//! ```text
//!  propose ─┐                       ┌─▶ storage thread ── LogStorage::write ──┐
//!  read ────┼─▶ one task ── turn ───┼─▶ apply thread ──── StateMachine::apply ┼─▶ back to the task
//!  network ─┘   drain, step, send   └─▶ NetworkTransport::send                ┘
//! ```
//!
//! Each turn takes all that waits, steps the protocol once per event, sends at most one run of entries per peer, and
//! starts at most one log write, while none is in flight. So batches form by themselves under load and nothing waits for
//! a batch when there is none. For a storage and a state machine in memory the two threads can be done without
//! ([`RaftConfig::threads`]).
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
pub use latency::SimulatedLatency;

// The example of the README is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
