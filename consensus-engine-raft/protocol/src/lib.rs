//! Raft as a pure function: `(state, event, now) -> (state, outputs)`.
//!
//! What this is *not*: the crate has no clock, no source of randomness except a seed, no sockets, files or threads, and it
//! never sees a payload. An entry is its term, its size and its position. The driver in `consensus-engine-raft` adds all of
//! these; the simulator adds none and runs the same code.
//!
//! ```text
//!            Event ──▶ ┌──────┐ ──▶ Output      to do at once: sends, entries to apply, results of reads
//!   (Tick, Append,     │ Raft │
//!    Read, ...)        └──────┘ ──▶ Persist     to write; outputs that depend on it are held back until it is durable
//!                         ▲                         │
//!                         └──── Event::Persisted ◀──┘
//! ```
//!
//! # Order of calls
//! 1. [`Raft::new`] with the state that the storage loaded.
//! 2. [`Raft::step`] once for each waiting event; handle its outputs after each call. [`Raft::propose`] with all waiting
//!    commands.
//! 3. [`Raft::finish_turn`]: sends the new entries, one run for each peer however many proposals arrived.
//! 4. [`Raft::take_persist`], unless a write is in flight; when the write is durable, step [`Event::Persisted`].
//! 5. Step [`Event::Tick`] at [`Raft::next_deadline`].
//!
//! # Invariants
//! Code and tests cite these numbers. Section numbers refer to Ongaro & Ousterhout 2014; "D" is Ongaro's dissertation.
//! * **I1** A node gives at most one vote per term, and the vote is durable before it is sent (§5.2, figure 2).
//! * **I2** Nothing is acknowledged before it is durable: every message that depends on a write is held back until then.
//! * **I3** A leader never overwrites or removes entries of its own log (§5.3, Leader Append-Only).
//! * **I4** An entry is committed once it is durable on a quorum of voters *and* of the leader's own term; earlier entries
//!   are committed with it (§5.4.2).
//! * **I5** A follower's acknowledgement covers `prev` and the entries of the message, never the rest of its log (§5.3).
//! * **I6** Committed entries are never truncated (§5.4, Leader Completeness).
//! * **I7** purged <= commit <= last and durable <= last; the term and the commit index never decrease.
//! * **I8** A node applies only entries that are committed *and* durable on its own disk, in order.
//! * **I9** A read index is the commit index of a leader that has committed an entry of its own term, and a quorum confirms
//!   afterwards that it is still leader (D §6.4).
//! * **I10** A configuration is in force from its append, and is rolled back with its entry (D §4.1).
//! * **I11** The log is replaced by a snapshot only after the state machine has restored the snapshot (§7).
//! * **I12** A pre-vote changes no node's term and no node's vote (D §9.6). A node that heard a leader within an election
//!   timeout grants neither votes nor pre-votes (D §4.2.3), unless it was told that the leader's process has ended.
//! * **I13** There is one change of the configuration at a time, started by a leader that has committed in its term. Once a
//!   joint configuration is committed, the leader of that time appends the configuration that leaves it (§6, D §4.3).
//! * **I14** Votes and acknowledgements of a member count only if they come from the storage that the configuration names
//!   for it: a member whose disk was emptied has lost its votes and entries.
//! * **I15** A leader's lease ends before any of its voters grants a vote to another node, for every clock drift up to the
//!   configured one. The start of a leadership transfer voids the lease (D §6.4.1).
//! * **I16** A node whose log was truncated because of damage votes as if it still had the entries that it may have
//!   acknowledged, and does not campaign until its log reaches as far again (after Alagappan et al. 2018, protocol-aware
//!   recovery).
//! * **I17** A committed entry is never silently replaced. A node whose own committed entry differs from the leader's
//!   applies nothing more and reports it ([`Output::Contradicted`]). A node that hears of two leaders of one term does the
//!   same ([`Output::TwoLeaders`]), because one term and index could then name two entries.
//! * **I18** A node that started with an empty log, without a first configuration, does not campaign until its log holds
//!   everything that was committed when it joined, as reported by a leader that had committed in its own term: the node may
//!   be a former member whose disk was emptied. Until then it votes, and counts towards quorums, only if the configuration
//!   names its disk. A member that a change has added is no voter before that.
//! * **I19** An acknowledgement counts only for the storage that sent it, and only if it responds to a message that was sent
//!   after the member was last added.
//! * **I20** The first leader of a cluster draws the cluster's identity and writes it into the first entry of its term. Once
//!   that entry is committed, no configuration of the cluster has another identity.

mod call;
mod config;
mod election;
mod event;
mod identity;
mod impaired;
mod log;
mod membership;
#[doc(hidden)]
pub mod model;
mod persist;
mod progress;
mod raft;
mod reads;
mod replication;
mod snapshot;
mod transfer;

pub use call::{Call, Returned};
pub use config::{Config, ConfigError};
pub use event::{
    Append, ArrivalOutcome, Contradiction, ControlMessage, EntryInfo, Event, Output, Refusal, TwoLeaders,
};
pub use persist::Persist;
pub use raft::{Raft, Restored};
pub use snapshot::InterruptedInstall;

/// Time since a moment that the driver chooses once; it never decreases.
pub type Time = std::time::Duration;
