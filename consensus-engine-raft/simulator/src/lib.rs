//! Simulation of whole Raft clusters from a seed.
//!
//! Runs the protocol of `consensus-raft-protocol`, the same code as in the engine, with simulated disks, networks, clocks,
//! clients and state machines. A simulated hour takes about a second, and every run can be repeated exactly. At
//! every step the properties of Raft are checked on all nodes. At the end all faults stop: the cluster must
//! converge, serve requests and have all acknowledged data, and the results of the clients must be linearizable.
//!
//! ```text
//!  seed ─▶ Plan ─▶ World: Nodes (Raft, SimDisk, SimMachine + guest) ◀─ messages, time ─▶ checks at each step ─▶ Outcome
//!                    ▲ clients, faults
//! ```
//!
//! What this is *not*: the driver of `consensus-engine-raft`, transports and real storages are not included. They have their own
//! tests (`docs/testing.md`), and `consensus-testkit` has suites for your implementations.
//!
//! # Your state machine
//! Write a [`Guest`], which creates instances of your state machine and commands for it. [`run_guest`] runs it on every node of
//! the clusters, beside `SimMachine`. It is crashed, restarted, left behind and sent snapshots, and every response is
//! compared. Pass the suite of `consensus_testkit::state_machine` first: it finds most mistakes faster.
//! ```
//! use bytes::Bytes;
//! use consensus_core::{codec, typed::{Application, InMemory}};
//! use consensus_raft_simulator::{Guest, Random, run_guest};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter(u64);
//!
//! impl Application for Counter {
//!     type Command = u64;
//!     type Response = u64;
//!     fn apply(&mut self, n: u64) -> u64 { self.0 += n; self.0 }
//! }
//!
//! struct Counters;
//!
//! impl Guest for Counters {
//!     type Machine = InMemory<Counter>;
//!     fn open(&self) -> Self::Machine { InMemory::new(Counter::default()) }
//!     fn command(&self, random: &mut Random) -> Bytes { codec::encode(1, &random.below(10)).into() }
//! }
//!
//! let totals = run_guest(Counters, 0..20).unwrap(); // The error has the seed, the difference, and how to repeat it.
//! assert!(totals.reached["guest's response compared"] > 1000);
//! ```
//!
//! # Order of calls
//! 1. [`run`] a seed; [`Outcome::failure`] has what a check found.
//! 2. [`shrink`] a seed that fails, and read the [`Trace`] of the smallest run, or view it as a [`page`](page()).
//! 3. [`sweep`] many seeds.
//!
//! The program `raft-sim` does all of this.

mod checks;
mod clients;
mod data_loss;
mod disk;
mod effects;
mod faults;
mod guest;
mod host;
mod machine;
pub mod model;
mod node;
mod operator;
mod other_cluster;
mod page;
mod plan;
mod random;
mod recorder;
mod run;
mod stall;
mod sweep;
mod trace;
mod world;

pub use checks::{RARE, RARE_MISTAKES};
pub use disk::{RecordDamage, SimDisk};
pub use guest::{AnyGuest, Guest};
pub use machine::{Command, Effect, KEYS, MachineDisk, SimMachine};
pub use page::page;
pub use plan::{Fault, Plan};
pub use random::{Random, chain, mix};
pub use run::{Options, Outcome, run, shrink};
pub use sweep::{GuestFailure, Totals, run_guest, sweep};
pub use trace::{Moment, Trace, What};
