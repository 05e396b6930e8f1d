//! What can be asked of the store, and what comes back.

use bytes::Bytes;
use consensus_core::session::Session;
use serde::{Deserialize, Serialize};

use crate::Alarm;

/// An operation. Field by field what the client-facing IDL (`kv.thrift`) has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvOperation {
    /// Writes a key.
    Put(Put),
    /// Removes keys.
    Delete(Delete),
    /// Reads keys.
    Range(Range),
    /// Compares, then does the one or the other, all at one revision.
    Txn(Txn),
    /// Forgets history older than a revision.
    Compact {
        /// The oldest revision that can still be read afterwards.
        revision: u64,
    },
    /// Makes a client id for [`Session`].
    OpenSession {
        /// Sessions kept; beyond, the one idle longest is forgotten. Part of the command, so that all nodes forget the
        /// same one.
        sessions_max: u64,
    },
    /// Grants a lease.
    GrantLease {
        /// Not 0; must be free.
        id: i64,
        /// Seconds that it lives without being renewed; 1 to [`LEASE_TTL_MAX`](crate::LEASE_TTL_MAX).
        ttl: u64,
    },
    /// Ends a lease, and deletes its keys at one revision.
    RevokeLease {
        /// Which.
        id: i64,
    },
    /// Ends leases whose time is over. For the leader itself, which counts the time.
    ExpireLeases {
        /// Which; those that are gone already are passed over.
        ids: Vec<i64>,
        /// Term of the leader. In another term nothing is done: the next leader counts anew.
        term: u64,
    },
    /// Notes how long leases have left, for the case that the leader changes. For the leader itself.
    CheckpointLeases {
        /// Lease, and its remaining seconds; `None`: it was renewed, and has its whole time again.
        remaining: Vec<(i64, Option<u64>)>,
        /// Term of the leader. In another term nothing is done.
        term: u64,
    },
    /// Raises an alarm, if it is not raised yet.
    RaiseAlarm(Alarm),
    /// Disarms an alarm, if it is raised.
    DisarmAlarm(Alarm),
    /// Takes ids for members of the cluster, so that none is given to a member that another member had: it would be taken for
    /// the one that was removed.
    ReserveMemberIds {
        /// Ids up to this one are in use, or were.
        through: u64,
        /// Further ids to reserve, above all that were in use or reserved; 0: none is needed.
        more: u64,
    },
}

/// An operation as it travels through the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCommand {
    /// Makes it exactly-once.
    pub session: Option<Session>,
    /// What to do.
    pub operation: KvOperation,
}

/// Writes a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Which; not empty.
    pub key: Bytes,
    /// What.
    pub value: Bytes,
    /// Lease that the key goes with; 0 for none.
    pub lease_id: i64,
    /// Answer with what was there.
    pub return_previous: bool,
    /// Append a versionstamp.
    pub versionstamp: Versionstamp,
    /// Keep what is there in place of `value` or `lease_id`. The key must exist.
    pub keep: Keep,
}

/// What a put leaves as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The value.
    pub value: bool,
    /// The lease.
    pub lease: bool,
}

impl Keep {
    pub(crate) fn is_any(self) -> bool {
        self.value || self.lease
    }
}

/// Where a versionstamp is appended: 8 bytes of revision, 2 bytes of order within the transaction, big-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Versionstamp {
    /// Nowhere.
    #[default]
    None,
    /// To the key.
    KeySuffix,
    /// To the value.
    ValueSuffix,
}

/// Removes the keys in `[key, range_end)`; see [`KeyRange`] for the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// From here.
    pub key: Bytes,
    /// To here; see [`KeyRange`].
    pub range_end: Option<Bytes>,
    /// Answer with what was there.
    pub return_previous: bool,
    /// Most keys to remove, in the order of keys; fewer, if that is more than one command may do. 0: all keys of the range, or
    /// none if that is more than one command may do.
    pub limit: u64,
}

/// Reads the keys in `[key, range_end)`; see [`KeyRange`] for the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// From here.
    pub key: Bytes,
    /// To here; see [`KeyRange`].
    pub range_end: Option<Bytes>,
    /// At most so many pairs; 0: as many as fit a reply.
    pub limit: u64,
    /// As of this revision; 0: the newest.
    pub revision: u64,
    /// From the end.
    pub descending: bool,
    /// Without values.
    pub keys_only: bool,
    /// Only their number.
    pub count_only: bool,
    /// All that was asked for or a rejection, never a part with `more` because of the size of the answer.
    pub whole: bool,
    /// By what the pairs are ordered.
    pub sort: Sort,
    /// Only pairs whose revisions lie within these bounds; `count` counts all.
    pub bounds: RevisionBounds,
}

/// By what the pairs of an answer are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sort {
    /// What is compared.
    pub by: SortBy,
    /// The limit counts in the order of keys, and what it leaves is sorted.
    pub after_limit: bool,
}

/// What of the pairs is compared to order them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// Number of writes since it came into being.
    Version,
    /// Revision at which it came into being.
    CreateRevision,
    /// Revision of its last write.
    ModRevision,
    /// Its value.
    Value,
}

/// Bounds for the revisions of pairs, inclusive; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionBounds {
    /// Least revision of the last write.
    pub mod_min: u64,
    /// Greatest revision of the last write.
    pub mod_max: u64,
    /// Least revision at which the key came into being.
    pub create_min: u64,
    /// Greatest revision at which the key came into being.
    pub create_max: u64,
}

impl RevisionBounds {
    pub(crate) fn contain(&self, kv: &KeyValue) -> bool {
        let within = |revision: u64, min: u64, max: u64| revision >= min && (max == 0 || revision <= max);
        within(kv.mod_revision, self.mod_min, self.mod_max)
            && within(kv.create_revision, self.create_min, self.create_max)
    }
}

/// Keys in `[key, range_end)`. Without `range_end`: the one key. `range_end` of one zero byte: every key from `key` on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// From here; not empty (one zero byte is before every key).
    pub key: Bytes,
    /// To here, exclusive.
    pub range_end: Option<Bytes>,
}

/// If every compare holds, `success` is done, else `failure`; each operation sees what those before it did. Transactions may be
/// within transactions, [`TXN_DEPTH_MAX`](crate::TXN_DEPTH_MAX) deep; the compares of all of them are looked at before anything
/// is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// Done then; puts, deletes, ranges and transactions only.
    #[serde(deserialize_with = "nested::read")]
    pub success: Vec<KvOperation>,
    /// Done otherwise.
    #[serde(deserialize_with = "nested::read")]
    pub failure: Vec<KvOperation>,
    /// Optimistic: if a key in `read_ranges` was written or deleted after this revision, nothing is done. 0: not so.
    pub read_revision: u64,
    /// What was read at `read_revision`.
    pub read_ranges: Vec<KeyRange>,
}

/// A condition on a key, or on every key of a range. A key that is not there, or a range without
/// keys, has version, revisions and lease 0, and no value: no comparison of its value holds (as in etcd).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which keys.
    pub keys: KeyRange,
    /// What of them, with what.
    pub target: CompareTarget,
    /// How it must compare.
    pub result: CompareResult,
}

/// What of a key is compared, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// Number of writes since it came into being.
    Version(i64),
    /// Revision at which it came into being.
    CreateRevision(i64),
    /// Revision of its last write.
    ModRevision(i64),
    /// Its value.
    Value(Bytes),
    /// Its lease.
    Lease(i64),
}

/// How a compare must turn out: the key's side on the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareResult {
    /// `=`
    Equal,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `!=`
    NotEqual,
}

/// A key and its value at some revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Its value; empty if only keys were asked for.
    pub value: Bytes,
    /// Revision at which it came into being (again, after a delete).
    pub create_revision: u64,
    /// Revision of its last write.
    pub mod_revision: u64,
    /// Number of writes since it came into being.
    pub version: u64,
    /// Its lease, or 0.
    pub lease_id: i64,
}

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvResult {
    /// Of a put.
    Put(PutDone),
    /// Of a delete.
    Delete(Deleted),
    /// Of a range.
    Range(Found),
    /// Of a transaction.
    Txn(TxnDone),
    /// History was compacted.
    Compact,
    /// The client id of a new session.
    OpenSession(u64),
    /// A lease was granted, ended, or noted.
    Lease,
    /// The last id for members that is in use, was in use, or is reserved.
    MemberId(u64),
    /// Of an alarm: whether it is raised now for this command, or was disarmed by it.
    Alarm(bool),
}

/// A key was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutDone {
    /// What was there, if that was asked for.
    pub previous: Option<KeyValue>,
    /// The key or value as written, if it was stamped.
    pub stamped: Option<Bytes>,
}

/// Keys were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// How many.
    pub deleted: u64,
    /// What they were, if that was asked for.
    pub previous: Option<Vec<KeyValue>>,
    /// With a limit: the first key of the range that was not looked at; `None` if the whole range was.
    pub next_key: Option<Bytes>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// There are more in the range than these.
    pub more: bool,
    /// Number of pairs in the whole range.
    pub count: u64,
}

/// A transaction was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnDone {
    /// All compares held.
    pub succeeded: bool,
    /// Of each operation of the branch taken.
    #[serde(deserialize_with = "nested::read")]
    pub responses: Vec<KvResult>,
}

/// A result and the state it was reached in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvAnswer {
    /// Revision of the store afterwards (for a read: at which it was answered).
    pub revision: u64,
    /// Log index applied when it was answered.
    pub applied_index: u64,
    /// Term of the entry applied then.
    pub term: u64,
    /// What it came to.
    pub result: KvResult,
}

/// Why the store did not do it. This attempt did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum KvRejection {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The revision asked for is gone.
    #[error("revisions below {compacted} were compacted away")]
    Compacted {
        /// The oldest that can be read.
        compacted: u64,
    },
    /// The revision asked for is not there yet.
    #[error("revision {revision} is in the future; the store is at {current}")]
    FutureRevision {
        /// What was asked for.
        revision: u64,
        /// The newest.
        current: u64,
    },
    /// What a put was to keep is not there.
    #[error("there is no key {key:?} whose value or lease could be kept")]
    NoKey {
        /// The key.
        key: Bytes,
    },
    /// The lease was never granted, or has ended.
    #[error("there is no lease {id}")]
    NoLease {
        /// The lease.
        id: i64,
    },
    /// The id is that of another lease.
    #[error("there is a lease {id} already")]
    LeaseExists {
        /// The lease.
        id: i64,
    },
    /// The answer would be larger than an answer may be.
    #[error("the answer would have more than {bytes_max} bytes; ask for less at once")]
    AnswerTooLarge {
        /// What it may have.
        bytes_max: u64,
    },
    /// A key that the transaction had read was changed since.
    #[error("key {key:?} was changed at revision {mod_revision}, after the transaction's read revision")]
    Conflict {
        /// The key.
        key: Bytes,
        /// When it was changed.
        mod_revision: u64,
    },
    /// The session was never opened, or was forgotten because it was idle the longest. Whether the request was executed
    /// before is not known any more.
    #[error("there is no session {client_id}, or it was idle for too long: open a new one")]
    NoSession {
        /// Id of the session.
        client_id: u64,
    },
    /// A later number of the session was executed. This one may have been executed before; its answer is not kept.
    #[error(
        "sequence {sequence} of session {client_id} is over: {last} was executed; the answer to an earlier number is not kept"
    )]
    SequenceOver {
        /// Id of the session.
        client_id: u64,
        /// Number of the request.
        sequence: u64,
        /// Last number that was executed.
        last: u64,
    },
    /// An alarm says that the store of a node exceeds its quota.
    #[error(
        "the store is full: the alarm NOSPACE is raised, as a node exceeds its quota_size; nothing was done. Delete what is \
         not needed, compact, then disarm the alarm"
    )]
    NoSpace,
    /// An alarm says that the state of a node is not that of the others.
    #[error(
        "the alarm CORRUPT is raised: the nodes do not have the same state; nothing was done. Compare the nodes (`kvctl \
         hash`), replace the one that differs, then disarm the alarm"
    )]
    Corrupt,
}

impl KvOperation {
    /// Whether it only reads.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Range(_) => true,
            Self::Txn(txn) => txn.success.iter().chain(&txn.failure).all(Self::is_read_only),
            _ => false,
        }
    }
}

impl KvOperation {
    /// Whether it is a range whose answer is whole or a rejection.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Self::Range(Range { whole: true, .. }))
    }

    /// Whether it may be much work, which its size alone does not tell: it names ranges, or reads many values.
    pub(crate) fn may_be_heavy(&self) -> bool {
        match self {
            Self::Delete(delete) => delete.range_end.is_some(),
            Self::Range(range) => range.range_end.is_some(),
            Self::Txn(txn) => {
                let parts = || txn.success.iter().chain(&txn.failure);
                let compared = txn.compare.iter().map(|compare| &compare.keys);
                compared.chain(&txn.read_ranges).any(|keys| keys.range_end.is_some())
                    || parts().any(Self::may_be_heavy)
                    || txn.compare.len() + parts().filter(|part| part.reads_values()).count() > LOOKUPS_MAX
            }
            Self::RevokeLease { .. } => true,
            _ => false,
        }
    }

    fn reads_values(&self) -> bool {
        match self {
            Self::Put(put) => put.return_previous,
            Self::Delete(delete) => delete.return_previous,
            _ => true,
        }
    }
}

/// Values of two MiB each, read by one command that is not looked at beforehand.
const LOOKUPS_MAX: usize = 8;

impl KvRejection {
    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}

/// Reads lists of what can hold such lists again, so deep and no deeper: hostile bytes would else use up the stack.
mod nested {
    use std::{cell::Cell, fmt, marker::PhantomData};

    use serde::{
        Deserialize, Deserializer,
        de::{Error, SeqAccess, Visitor},
    };

    use crate::TXN_DEPTH_MAX;

    thread_local! {
        static DEPTH: Cell<usize> = const { Cell::new(0) };
    }

    /// Goes up again when it is dropped.
    struct Level;

    impl Level {
        fn enter() -> Option<Self> {
            DEPTH.with(|depth| {
                (depth.get() <= TXN_DEPTH_MAX).then(|| {
                    depth.set(depth.get() + 1);
                    Self
                })
            })
        }
    }

    impl Drop for Level {
        fn drop(&mut self) {
            DEPTH.with(|depth| depth.set(depth.get() - 1));
        }
    }

    pub(super) fn read<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        let _level = Level::enter().ok_or_else(|| D::Error::custom("transactions are nested too deep"))?;
        from.deserialize_seq(List(PhantomData))
    }

    /// Reads a list without room for as many as it claims to have.
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = from.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }
}

#[cfg(test)]
mod tests;
