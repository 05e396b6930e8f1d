//! Whole Raft clusters from a seed.
//!
//! The protocol of `consensus-raft-protocol` - the very code that the engine runs - with disks, networks, clocks, clients and
//! a state machine that are simulated, so that an hour of a cluster's life takes a second and a run can be repeated to the
//! last byte. At every step all nodes are compared with what Raft promises; at the end all trouble stops, the cluster must
//! converge, serve, and hold what it acknowledged, and what clients saw must be linearizable.
//!
//! ```text
//!  seed ─▶ Plan ─▶ World: Nodes (Raft, SimDisk, SimMachine + guest) ◀─ messages, time ─▶ checks at each step ─▶ Outcome
//!                    ▲ clients, troubles
//! ```
//!
//! What this is *not*: the driver of `consensus-engine-raft`, transports and real storage are not in it; they have tests of their
//! own (`docs/testing.md`), and yours have the suites of `consensus-testkit`.
//!
//! # A state machine of yours
//! Write a [`Guest`], which makes instances of your machine and commands for it, and [`run_guest`] runs it on every node of
//! the clusters, beside `SimMachine`. It is crashed, restarted, left behind and sent snapshots, and every response is
//! compared. Pass the suite of `consensus_testkit::state_machine` first: it is quicker to say what is wrong.
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
//! let totals = run_guest(Counters, 0..20).unwrap(); // the seed, what differs, and how to see it again
//! assert!(totals.reached["guest's response compared"] > 1000);
//! ```
//!
//! # Order of calls
//! 1. [`run`] a seed; [`Outcome::failure`] says what a checker found.
//! 2. [`shrink`] a seed that fails, and read the [`Trace`] of what is left, or look at it as a [`page`](page()).
//! 3. [`sweep`] many seeds.
//!
//! The program `raft-sim` does both.

mod checks;
mod clients;
mod disk;
mod effects;
mod guest;
mod host;
mod losses;
mod machine;
mod meeting;
pub mod model;
mod node;
mod operator;
mod page;
mod plan;
mod random;
mod recorder;
mod run;
mod stall;
mod sweep;
mod trace;
mod troubles;
mod world;

pub use checks::{RARE, RARE_MISTAKES};
pub use disk::{Harm, SimDisk};
pub use guest::{AnyGuest, Guest};
pub use machine::{Command, Effect, KEYS, MachineDisk, SimMachine};
pub use page::page;
pub use plan::{Plan, Trouble};
pub use random::{Random, chain, mix};
pub use run::{Options, Outcome, run, shrink};
pub use sweep::{GuestFailure, Totals, run_guest, sweep};
pub use trace::{Moment, Trace, What};
