//! Tools for testing consensus libraries.
//!
//! * A conformance suite for each trait: [`log_storage`], [`state_machine`], [`transport`], [`engine`]. Write a fixture that
//!   creates instances of your implementation, and call `run_suite`. It panics with the name of the rule that is broken;
//!   `rules` lists all rules. Every implementation in this workspace passes the same suites. For each rule, this crate's
//!   tests have an implementation that breaks it and is rejected.
//! * Test doubles: [`MemLogStorage`], a storage in memory whose content outlives it and which fails on demand; [`Journal`],
//!   a state machine that records what it applied; [`OnFiles`], which keeps a state machine in the files of a [`SimDir`], a
//!   directory in memory that loses unsynced data when the power is lost.
//! * A checker of [linearizability], for the results that the clients of your service got; and checkers of what its watchers
//!   were told ([`watch_history`]), of when its leases ended ([`lease_history`]), and of whether its locks excluded each other
//!   ([`lock_history`]).
//! * For storages: all states in which a crash can leave a directory (`crash_images`, Linux with `strace`), damaged files
//!   ([damage]), and a full disk (`SmallDisk`, unix as root).
//!
//! What this is *not*: the crate depends on no engine, transport or storage of the workspace. A state machine that passes
//! its suite can also be tested in simulated clusters that crash and send snapshots: `consensus_raft_simulator::run_guest`.

#[cfg(unix)]
pub mod crash_images;
pub mod damage;
pub mod engine;
mod journal;
pub mod lease_history;
pub mod linearizability;
pub mod lock_history;
pub mod log_storage;
mod mem_log;
mod on_files;
mod rule;
pub mod seeds;
mod sim_dir;
#[cfg(unix)]
mod small_disk;
pub mod state_machine;
pub mod transport;
mod wait;
pub mod watch_history;

pub use journal::{Journal, JournalReader};
pub use mem_log::MemLogStorage;
pub use on_files::{OnFiles, durable_position};
pub use sim_dir::SimDir;
#[cfg(unix)]
pub use small_disk::SmallDisk;
pub use wait::eventually;
