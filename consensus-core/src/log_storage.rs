//! The durable log.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, Entry, LogId, LogIndex, Membership, NodeId, Payload, StorageId, Term};

/// Makes the log durable. Each call writes one batch, which is on disk when the call returns.
///
/// # Who calls, and when
/// An engine calls [`load`](Self::load) once at start, then [`write`](Self::write), one call at a time, from a thread that
/// may be blocked, and [`read`](Self::read) from any thread at any time. All may block.
///
/// # What must be durable on return
/// The whole batch, as one atomic step: after a crash at any moment `load` finds either the whole batch or nothing of it,
/// and the whole batch if `write` had returned `Ok`. Engines collect writes before they call, so an implementation makes
/// one sync per call and need not batch by itself.
///
/// # Errors are final
/// After `write` returned an error it is unknown what is on disk (a failed fsync drops the pages it could not write). The
/// engine stops and never calls again; an implementation refuses further writes with [`StorageError::Failed`]. The one
/// exception is [`StorageError::NoRoom`]: the implementation checked the free space first, and wrote nothing.
///
/// # Example
/// The write of a follower that enters a new term and gets two entries that replace a conflicting tail:
/// ```
/// # use consensus_core::*;
/// # fn turn(storage: &dyn LogStorage, entries: Vec<Entry>) -> Result<(), StorageError> {
/// storage.write(LogBatch {
///     hard_state: Some(HardState { term: Term(3), ..HardState::default() }),
///     truncate_after: Some(LogIndex(7)),
///     entries, // 3.8 and 3.9
///     ..LogBatch::default()
/// }) // only now may the follower respond
/// # }
/// ```
/// Right: one write batch with one sync. Wrong: writing term and entries in two steps (a crash in between leaves a vote
/// without its term); returning before the sync; silently dropping a damaged record in the middle of the log.
pub trait LogStorage: Send + Sync + 'static {
    /// Loads the hard state, the purged position, and the log id and size of every entry. Verifies every checksum.
    ///
    /// If the record of an entry is damaged, but everything before it, the hard state and the purged position are intact,
    /// the result has the entries before it and describes the damage ([`LogState::damage`]). A torn tail is removed
    /// silently: damage in the last write only, which was never acknowledged to anybody.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] with the position of any other damage.
    fn load(&self) -> Result<LogState, StorageError>;

    /// Makes `batch` durable. The parts of the batch take effect in this order: purge, truncate, append, hard state.
    ///
    /// # Errors
    /// Every error except [`StorageError::NoRoom`] is final, see above.
    fn write(&self, batch: LogBatch) -> Result<(), StorageError>;

    /// Reads the entries in `(after, last]`, in order: as many as fit in `max_bytes` (by [`Entry::size_bytes`]), but at
    /// least one. May run concurrently with a `write`; an entry that such a write removes may be returned or reported
    /// missing.
    ///
    /// # Errors
    /// [`StorageError::Missing`] if `after + 1` is not in the log, [`StorageError::Corrupt`] if a record is damaged.
    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;
}

/// Durable state of a node besides the log (figure 2, "persistent state").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// Latest term seen.
    pub term: Term,
    /// Candidate voted for in `term`.
    pub voted_for: Option<NodeId>,
    /// Snapshot whose installation into the state machine has started. Set before the machine is changed, and cleared in
    /// the batch that purges the log up to the snapshot, so that after a restart in between the node knows what the machine
    /// may contain.
    pub installing: Option<SnapshotMeta>,
    /// Last entry of the log before it was truncated at a damaged record. The node may have acknowledged entries that it no
    /// longer has. Until its log reaches this entry again, it votes as if it still had them, and does not campaign.
    pub lost_through: Option<LogId>,
    /// Set while a node that started with an empty log, without a first configuration, still lacks entries that were
    /// committed when it joined. Holds the commit index reported by a leader that had committed an entry of its own term; 0
    /// until one did. The node may be a former member whose disk was emptied, so it does not campaign; if it is a founding
    /// member, it neither votes nor counts for a quorum.
    pub joining: Option<LogIndex>,
    /// Identity of the cluster, once this node knows that it is committed; [`ClusterId::NONE`] before. Kept here because a
    /// node that starts does not know at once what is committed, and must not join another cluster in the meantime.
    pub cluster: ClusterId,
}

/// Log position and configuration of a snapshot, or of the purged part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Last entry that the snapshot includes.
    pub last: LogId,
    /// Configuration in force at that entry.
    pub membership: Membership,
}

/// One atomic write to the log. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// New hard state; `None` keeps the current one.
    pub hard_state: Option<HardState>,
    /// Position up to which entries are removed. `purge.last` need not be in the log (after a snapshot was installed).
    pub purge: Option<SnapshotMeta>,
    /// Index after which entries are removed.
    pub truncate_after: Option<LogIndex>,
    /// Entries to append, contiguous with the log after truncation.
    pub entries: Vec<Entry>,
}

impl LogBatch {
    /// Whether the batch changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none()
            && self.purge.is_none()
            && self.truncate_after.is_none()
            && self.entries.is_empty()
    }

    /// Whether the batch must not use the reserve, the disk space kept for batches that a cluster needs in order to elect a
    /// leader and serve reads: votes, the first entry of a term, configurations. Batches with commands must not use
    /// it, because the number of commands is not limited.
    #[must_use]
    pub fn must_leave_reserve(&self) -> bool {
        let is_command = |entry: &Entry| matches!(entry.payload, Payload::Command(_) | Payload::Withheld);
        self.entries.iter().any(is_command)
    }
}

/// Content of a log, as [`LogStorage::load`] returns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Identity of the storage, drawn when it was created and never changed; [`StorageId::UNKNOWN`] for storages in memory.
    pub storage: StorageId,
    /// Latest hard state.
    pub hard_state: HardState,
    /// Position and configuration up to which the log was purged; the log starts after it.
    pub purged: SnapshotMeta,
    /// Log id and [size](Entry::size_bytes) in bytes of every entry, in order, the first at `purged.last.index + 1`.
    pub entries: Vec<(LogId, u64)>,
    /// Index and configuration of each membership entry among `entries`.
    pub memberships: Vec<(LogIndex, Membership)>,
    /// Set if the log had entries after the last of `entries` that cannot all be read.
    pub damage: Option<Damage>,
}

/// Damage to entries of a log whose other parts are intact. An engine that can fetch the entries from other nodes truncates
/// the log before the damage and continues; an engine that cannot refuses to start, with [`Damage::to_error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Last entry that the log had. A storage records it apart from the entries, in the same write. It must not be guessed:
    /// a value that is too high would keep the node from voting for the candidates with the longest log.
    pub last: LogId,
    /// Configurations of readable entries after the damage. Their quorums may have to do without this node.
    pub memberships: Vec<Membership>,
    /// The damaged record, and its file if there are files.
    pub position: String,
    /// Description of the damage.
    pub why: String,
}

impl Damage {
    /// The damage as an error, for an engine that refuses to start.
    #[must_use]
    pub fn to_error(&self) -> StorageError {
        StorageError::Corrupt { position: self.position.clone(), why: self.why.clone() }
    }
}

impl LogState {
    /// Whether nothing was ever written to the log.
    #[must_use]
    pub fn is_new(&self) -> bool {
        *self == Self { storage: self.storage, ..Self::default() }
    }

    /// Log id of the last entry, or of the last purged entry if the log is empty.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.purged.last, |(id, _)| *id)
    }

    /// Adds the next entry, for implementations of [`LogStorage::load`].
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if it does not follow the last entry.
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

/// Why an operation of a log storage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The disk or the file system failed. Final if a write returned it.
    #[error("log storage: {context}: {source}")]
    Io {
        /// Operation that failed, with its file.
        context: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A record is damaged. The log must be repaired or the node replaced; nothing was removed.
    #[error("log storage: damaged at {position}: {why}")]
    Corrupt {
        /// The damaged record, and its file if there are files.
        position: String,
        /// Description of the damage.
        why: String,
    },
    /// The directory belongs to another node or cluster; nothing was changed.
    #[error(
        "log storage: {path} belongs to node {found}, not to node {expected}; point --data-dir elsewhere, or start the node it belongs to"
    )]
    ForeignDirectory {
        /// The directory.
        path: String,
        /// Node to which the directory belongs.
        found: String,
        /// Node that tried to open it.
        expected: String,
    },
    /// The directory was written by a newer version; nothing was changed.
    #[error(
        "log storage: {path} has format {found}, this version reads up to format {supported}; start the newer version"
    )]
    NewerFormat {
        /// The directory.
        path: String,
        /// Format of the directory.
        found: u64,
        /// Newest format that this version reads.
        supported: u64,
    },
    /// Another process has the directory open; nothing was changed.
    #[error("log storage: {path} is in use by another process: {why}")]
    Locked {
        /// The directory.
        path: String,
        /// Error message of the operating system.
        why: String,
    },
    /// The requested entry is not in the log.
    #[error("log storage: there is no entry {index}; the log holds ({purged}, {last}]")]
    Missing {
        /// Index of the entry.
        index: LogIndex,
        /// Last purged index.
        purged: LogIndex,
        /// Last index of the log.
        last: LogIndex,
    },
    /// An earlier write failed; the storage refuses every further write.
    #[error("log storage: stopped after an earlier failure: {0}")]
    Failed(String),
    /// There is too little disk space for `batch`. Nothing of it was written; the same batch may be written later. Entries
    /// without commands are refused like this only when the reserve is used up as well ([`LogBatch::must_leave_reserve`]).
    /// Batches that free space or are small (a purge, a vote) have space kept for them, and are refused only when that is used
    /// up, too.
    #[error("log storage: {why}")]
    NoRoom {
        /// Free and required space.
        why: String,
        /// The batch that was refused.
        batch: Box<LogBatch>,
    },
    /// The caller broke the contract of [`LogStorage`], for example with a gap between entries; nothing was written.
    #[error("log storage: misuse: {0}")]
    Misuse(String),
}
