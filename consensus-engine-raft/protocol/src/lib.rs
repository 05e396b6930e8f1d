//! Raft as a pure function: `(state, event, now) -> (state, outputs)`.
//!
//! What this is *not*: it has no clock, no random source but a seed, no sockets, files or threads, and never sees a
//! payload - an entry is its term, its size and its place. The driver in `consensus-engine-raft` has all of these; the simulator
//! has none and runs the same code.
//!
//! ```text
//!            Event ──▶ ┌──────┐ ──▶ Output      at once: sends, entries to apply, answers to reads
//!   (Tick, Append,     │ Raft │
//!    Read, ...)        └──────┘ ──▶ Persist     to disk; holds back everything that depends on it
//!                         ▲                         │
//!                         └──── Event::Persisted ◀──┘
//! ```
//!
//! # Order of calls
//! 1. [`Raft::new`] with what the storage loaded.
//! 2. [`Raft::step`] once per event, as many as are waiting; handle the outputs after each. [`Raft::propose`] with as many
//!    commands as there are.
//! 3. [`Raft::finish_turn`]: replication is sent, one run of entries per peer however many proposals came.
//! 4. [`Raft::take_persist`], unless a write is in flight; when it is durable, step [`Event::Persisted`].
//! 5. Step [`Event::Tick`] at [`Raft::next_deadline`].
//!
//! # Invariants
//! Numbered once, cited in code and tests; section numbers are of Ongaro & Ousterhout 2014, "D" of the dissertation.
//! * **I1** At most one vote per term, durable before anybody hears of it (§5.2, figure 2).
//! * **I2** Nothing is acknowledged before it is durable: everything that depends on a write is held back by it.
//! * **I3** A leader never overwrites or removes entries of its own log (§5.3, Leader Append-Only).
//! * **I4** An entry is committed once it is durable on a quorum of voters *and* of the leader's own term; earlier ones
//!   follow (§5.4.2).
//! * **I5** A follower's acknowledgement covers `prev` and the entries sent, never what else it has (§5.3).
//! * **I6** Committed entries are never truncated (§5.4, Leader Completeness).
//! * **I7** Commit, durable and purged positions are in order: purged <= commit <= last, durable <= last; term and
//!   commit never go back.
//! * **I8** Only what is committed *and* durable on this node is applied, in order.
//! * **I9** A read index is the commit index of a leader that has committed in its term, confirmed by a quorum
//!   afterwards (D §6.4).
//! * **I10** A configuration counts from its append and is rolled back with its entry (D §4.1).
//! * **I11** The log is replaced by a snapshot only after the state machine holds it (§7).
//! * **I12** A pre-vote changes nobody's term and nobody's vote (D §9.6); a node in touch with a leader grants neither
//!   (D §4.2.3). Who is told that the leader's process has ended is not in touch with it.
//! * **I13** There is one change of the configuration at a time, begun by a leader that has committed in its term, and a
//!   joint configuration is left once it is committed, by whoever leads then (§6, D §4.3).
//! * **I14** Votes and acknowledgements count only from the storage that the configuration knows for the node: an emptied
//!   disk has forgotten what it promised.
//! * **I15** A lease ends before any voter's patience with its leader does, whatever the drift of clocks that is allowed
//!   for, and no lease survives the begin of a transfer (D §6.4.1).
//! * **I16** A node whose log was cut because of damage votes as if it still had what it may have acknowledged, and does not
//!   stand, until its log is as far again (after Alagappan et al. 2018, protocol-aware recovery).
//! * **I17** What is committed is never silently replaced: a node that finds its own committed entry different from the
//!   leader's applies nothing more and says so ([`Output::Contradicted`]). So does one that hears of two leaders of one term
//!   ([`Output::TwoLeaders`]): the same term and index would name two entries.
//! * **I18** A node whose log began empty, without a first configuration, does not campaign until its log holds what a leader
//!   that had committed in its own term knew to be committed: it may be a former member whose disk was emptied. Until then it votes, and counts
//!   towards quorums, only if the configuration names its disk. A member that a change has added is no voter before that.
//! * **I19** An acknowledgement counts only for the storage that it came from, and only if it answers a message that was sent
//!   since the member was last added.
//! * **I20** The first leader of a cluster draws its identity and writes it into the first entry of its term; once that is
//!   committed, no configuration of the cluster has another one.

mod call;
mod config;
mod election;
mod event;
mod identity;
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
mod unfit;

pub use call::{Call, Returned};
pub use config::{Config, ConfigError};
pub use event::{
    Append, Contradiction, EntryInfo, Event, Output, Refusal, Reply, SnapshotVerdict, TwoLeaders,
};
pub use persist::Persist;
pub use raft::{Raft, Restored};
pub use snapshot::InterruptedInstall;

/// Time since a moment of the driver's choice, always the same one; it never goes back.
pub type Time = std::time::Duration;
