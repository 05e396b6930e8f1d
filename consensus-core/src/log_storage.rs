//! The durable log.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, Entry, LogId, LogIndex, Membership, NodeId, Payload, StorageId, Term};

/// Makes the log durable: one call, one batch, on disk when it returns.
///
/// # Who calls, and when
/// An engine calls [`load`](Self::load) once at start, then [`write`](Self::write), one call at a time, from a thread that
/// may be blocked, and [`read`](Self::read) from any thread at any time. All may block.
///
/// # What must be durable on return
/// Everything in the batch, as one atomic step: after a crash at any moment `load` finds the whole batch or nothing of
/// it, and if `write` had returned `Ok`, the whole. Engines batch before they call, so an implementation makes exactly
/// one sync per call and needs no cleverness of its own.
///
/// # Errors are final
/// After `write` returned an error nobody knows what is on disk (a failed fsync drops the pages it could not write). The
/// engine stops and never calls again; an implementation refuses further writes by itself, with
/// [`StorageError::Failed`]. The one exception is [`StorageError::NoRoom`], by which an implementation that looks before
/// it writes says that it did not begin.
///
/// # Example
/// What an engine does in one turn as a follower in a new term, with two entries that replace a conflicting tail:
/// ```
/// # use consensus_core::*;
/// # fn turn(storage: &dyn LogStorage, entries: Vec<Entry>) -> Result<(), StorageError> {
/// storage.write(LogBatch {
///     hard_state: Some(HardState { term: Term(3), ..HardState::default() }),
///     truncate_after: Some(LogIndex(7)),
///     entries, // 3.8 and 3.9
///     ..LogBatch::default()
/// }) // only now may the follower answer
/// # }
/// ```
/// Right: one write batch with one sync. Wrong: writing term and entries in two steps (a crash in between leaves a vote
/// without its term); returning before the sync; dropping a damaged record in the middle of the log as if it had never
/// been.
pub trait LogStorage: Send + Sync + 'static {
    /// What is there: positions of all entries, hard state, what was purged. Verifies every record's checksum.
    ///
    /// Where the record of an entry is damaged and everything before it, the hard state and the purged position are
    /// sound, the state has the entries before and says so ([`LogState::damage`]). A torn tail - damage in the last write
    /// only, which nobody can have been told of - is cut silently.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] with the position of any other damage.
    fn load(&self) -> Result<LogState, StorageError>;

    /// Makes `batch` durable. Within the batch the order is: purge, truncate, append, hard state.
    ///
    /// # Errors
    /// Any error but [`StorageError::NoRoom`] is final, see above.
    fn write(&self, batch: LogBatch) -> Result<(), StorageError>;

    /// The entries in `(after, last]`, in order, fewer if together they would exceed `max_bytes` (by
    /// [`Entry::size_bytes`]), but at least one. May run beside a `write`; positions that such a write removes may be
    /// returned or be reported missing.
    ///
    /// # Errors
    /// [`StorageError::Missing`] if `after + 1` is not in the log, [`StorageError::Corrupt`] if a record is damaged.
    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;
}

/// What a node must not forget besides the log (figure 2, "persistent state").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// Latest term seen.
    pub term: Term,
    /// Candidate voted for in `term`.
    pub voted_for: Option<NodeId>,
    /// A snapshot whose installation into the state machine was begun. Set before the machine is touched and cleared in
    /// the batch that purges the log up to it, so that a restart in between knows what the machine holds.
    pub installing: Option<SnapshotMeta>,
    /// The log once went up to here and was cut because a record was damaged. What the node acknowledged it may not hold
    /// any more, so that it votes as if it still had it, and stands for nothing, until its log is as far again.
    pub lost_through: Option<LogId>,
    /// Set while a log that began empty, without a first configuration, has not yet reached what was committed when it
    /// joined: the commit index that it was told by a leader that had committed in its own term, 0 until one did. Such a node may be a former member whose disk
    /// was emptied, so it does not campaign; as a founding member it neither votes nor counts.
    pub joining: Option<LogIndex>,
    /// Identity of the cluster, once this node has known it to be committed; [`ClusterId::NONE`]
    /// before. A node that comes up does not know at once what is committed, and must not take part in another cluster
    /// meanwhile.
    pub cluster: ClusterId,
}

/// What a snapshot, or the removed head of a log, covers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Its last entry.
    pub last: LogId,
    /// The configuration in force there.
    pub membership: Membership,
}

/// One durable step. The default does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// New hard state.
    pub hard_state: Option<HardState>,
    /// Removes the entries up to `purge.last`; it need not be in the log (after a snapshot was installed).
    pub purge: Option<SnapshotMeta>,
    /// Removes the entries after this index.
    pub truncate_after: Option<LogIndex>,
    /// Appends entries, contiguous with the log as truncated.
    pub entries: Vec<Entry>,
}

impl LogBatch {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none()
            && self.purge.is_none()
            && self.truncate_after.is_none()
            && self.entries.is_empty()
    }

    /// Whether it must leave the disk's reserve free. What elects a leader and lets it serve reads may use the reserve: votes,
    /// the blank entry with which a term starts, configurations. Only commands can come in any number.
    #[must_use]
    pub fn spares_reserve(&self) -> bool {
        let is_command = |entry: &Entry| matches!(entry.payload, Payload::Command(_) | Payload::Withheld);
        self.entries.iter().any(is_command)
    }
}

/// What [`LogStorage::load`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The storage's own identity, drawn when it was made and the same ever after; 0 where storages do not get lost
    /// without their nodes (in memory, for tests).
    pub storage: StorageId,
    /// Latest hard state.
    pub hard_state: HardState,
    /// What was purged; the log begins after it.
    pub purged: SnapshotMeta,
    /// Identity and [size](Entry::size_bytes) of every entry, in order, the first at `purged.last.index + 1`.
    pub entries: Vec<(LogId, u64)>,
    /// The membership entries among them.
    pub memberships: Vec<(LogIndex, Membership)>,
    /// Set if the records after the last of `entries` cannot all be read.
    pub damage: Option<Damage>,
}

/// Entries of a log that cannot be read, all else being sound: an engine that has others to fetch them from cuts the log
/// there and goes on; one that has none refuses to start, with [`Damage::refusal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The last entry that the log had. A storage notes it apart from the entries, in the same write: a guess that is too
    /// high would keep the node from voting for those who have all there is.
    pub last: LogId,
    /// Configurations that can be read after the damage: who may have to do without this node.
    pub memberships: Vec<Membership>,
    /// Which record, in which file where there are files.
    pub position: String,
    /// What is wrong with it.
    pub why: String,
}

impl Damage {
    /// As an error.
    #[must_use]
    pub fn refusal(&self) -> StorageError {
        StorageError::Corrupt { position: self.position.clone(), why: self.why.clone() }
    }
}

impl LogState {
    /// Whether nothing was ever written.
    #[must_use]
    pub fn is_new(&self) -> bool {
        *self == Self { storage: self.storage, ..Self::default() }
    }

    /// Identity of the last entry, or of the last purged one.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.purged.last, |(id, _)| *id)
    }

    /// Takes in an entry that was found after all others.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if it does not follow the last one.
    pub fn push(&mut self, entry: &Entry) -> Result<(), StorageError> {
        let last = self.last();
        if entry.id.index != last.index.next() || entry.id.term < last.term {
            return Err(StorageError::Corrupt {
                position: format!("log index {}", last.index.next()),
                why: format!("entry {} cannot follow {last}", entry.id),
            });
        }
        self.entries.push((entry.id, entry.size_bytes()));
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships.push((entry.id.index, membership.clone()));
        }
        Ok(())
    }
}

/// Why a log storage cannot do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The disk or the file system. Final when it comes from a write.
    #[error("log storage: {context}: {source}")]
    Io {
        /// What was being done, to which file.
        context: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A record is damaged. The log must be repaired or the node replaced; nothing was dropped.
    #[error("log storage: damaged at {position}: {why}")]
    Corrupt {
        /// Which record, in which file where there are files.
        position: String,
        /// What is wrong with it.
        why: String,
    },
    /// The directory belongs to another node or cluster; nothing was changed.
    #[error(
        "log storage: {path} belongs to node {found}, not to node {expected}; point --data-dir elsewhere, or start the node it belongs to"
    )]
    ForeignDirectory {
        /// The directory.
        path: String,
        /// Whose it is.
        found: String,
        /// Who opened it.
        expected: String,
    },
    /// The directory was written by a newer version; nothing was changed.
    #[error(
        "log storage: {path} has format {found}, this version reads up to format {supported}; start the newer version"
    )]
    NewerFormat {
        /// The directory.
        path: String,
        /// Its format.
        found: u64,
        /// The newest that this version reads.
        supported: u64,
    },
    /// Another process has the directory open; nothing was changed.
    #[error("log storage: {path} is in use by another process: {why}")]
    Locked {
        /// The directory.
        path: String,
        /// The system's own words.
        why: String,
    },
    /// `read` was asked for an entry that is not there.
    #[error("log storage: there is no entry {index}; the log holds ({purged}, {last}]")]
    Missing {
        /// The entry.
        index: LogIndex,
        /// Last purged index.
        purged: LogIndex,
        /// Last index.
        last: LogIndex,
    },
    /// An earlier write failed; the storage does nothing any more.
    #[error("log storage: stopped after an earlier failure: {0}")]
    Failed(String),
    /// There is too little room for `batch`, and nothing of it was written: the same may be written later. What frees
    /// room or is small (a purge, a vote) is never refused so; entries without commands only if the reserve is used up, too
    /// ([`LogBatch::spares_reserve`]).
    #[error("log storage: {why}")]
    NoRoom {
        /// How much there is, and how much it should be.
        why: String,
        /// The batch, given back.
        batch: Box<LogBatch>,
    },
    /// The caller broke the contract, for example with a gap between entries; nothing was written.
    #[error("log storage: misuse: {0}")]
    Misuse(String),
}
