//! What tests of consensus are made of.
//!
//! * A conformance suite for each contract: [`log_storage`], [`state_machine`], [`transport`], [`engine`]. Write a
//!   fixture that makes fresh instances of your implementation, call `run_suite`, and it panics with the rule that is
//!   broken; `rules` lists them. Every implementation in this workspace passes the same suites, and for each rule this
//!   crate's tests have an implementation that is broken so and is rejected.
//! * Doubles: [`MemLogStorage`], whose content outlives it as a disk would and which fails on demand; [`Journal`], a state
//!   machine that remembers what it applied; [`OnFiles`], which keeps a machine in the files of a [`SimDir`], a directory in
//!   memory that forgets what was not synced when the power goes.
//! * A checker of [linearizability], for what clients of your service saw.
//! * What a crash can leave of a directory: `crash_images` (Linux, with `strace`). What becomes of one whose files are
//!   damaged: [damage]. What a full disk does: `SmallDisk` (unix, as root). All for storages.
//!
//! What this is *not*: it depends on no engine, transport or storage of the workspace. A state machine that passes its suite
//! can go on to whole simulated clusters, which crash and send it snapshots: `consensus_raft_simulator::run_guest`.

#[cfg(unix)]
pub mod crash_images;
pub mod damage;
pub mod engine;
mod journal;
pub mod linearizability;
pub mod log_storage;
mod mem_log;
mod on_files;
mod rule;
mod sim_dir;
#[cfg(unix)]
mod small_disk;
pub mod state_machine;
pub mod transport;
mod wait;

pub use journal::{Journal, JournalReader};
pub use mem_log::MemLogStorage;
pub use on_files::{OnFiles, durable_position};
pub use sim_dir::SimDir;
#[cfg(unix)]
pub use small_disk::SmallDisk;
pub use wait::eventually;
