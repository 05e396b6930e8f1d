//! Whole Raft clusters from a seed.
//!
//! The protocol of `consensus-raft-protocol` - the very code that the engine runs - with disks, networks, clocks, clients and
//! a state machine that are simulated, so that an hour of a cluster's life takes a second and a run can be repeated to the
//! last byte. At every step all nodes are compared with what Raft promises; at the end all trouble stops, the cluster must
//! converge, serve, and hold what it acknowledged, and what clients saw must be linearizable.
//!
//! ```text
//!  seed ─▶ Plan ─▶ World: Nodes (Raft, SimDisk, SimMachine) ◀─ messages, time ─▶ checks at each step ─▶ Outcome
//!                    ▲ clients, troubles
//! ```
//!
//! What this is *not*: the driver of `consensus-raft` and real storage are not in it; they have tests of their own
//! (`docs/testing.md`).
//!
//! # Order of calls
//! 1. [`run`] a seed; [`Outcome::failure`] says what a checker found.
//! 2. [`shrink`] a seed that fails, and read the [`Trace`] of what is left, or look at it as a [`page`](page()).
//!
//! The program `raft-sim` does both.

mod bugs;
mod checks;
mod clients;
mod disk;
mod effects;
mod machine;
pub mod model;
mod node;
mod page;
mod plan;
mod random;
mod recorder;
mod run;
mod trace;
mod troubles;
mod world;

pub use bugs::{Score, hunt, model_check_with};
pub use checks::RARE;
pub use disk::{Harm, SimDisk};
pub use machine::{Command, Effect, KEYS, MachineDisk, SimMachine};
pub use page::page;
pub use plan::{Plan, Trouble};
pub use random::{Random, chain, mix};
pub use run::{Options, Outcome, run, shrink};
pub use trace::{Moment, Trace, What};
