//! Operations of the store, and their results.

use bytes::Bytes;
use consensus_core::session::Session;
use serde::{Deserialize, Serialize};

use crate::{Alarm, AuthOperation, AuthRejection, Caller};

/// An operation. Its fields are those of the client-facing IDL (`kv.thrift`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvOperation {
    /// Writes a key.
    Put(Put),
    /// Removes keys.
    Delete(Delete),
    /// Reads keys.
    Range(Range),
    /// Evaluates compares, then executes one of two lists of operations, all at one revision.
    Txn(Txn),
    /// Compacts history older than a revision.
    Compact {
        /// Oldest revision that can still be read afterwards.
        revision: u64,
    },
    /// Opens a session and returns a client id for [`Session`].
    OpenSession {
        /// Maximum number of sessions. If there are more, the session that was idle longest is removed. Part of the
        /// command, so that all nodes remove the same one.
        sessions_max: u64,
    },
    /// Grants a lease.
    GrantLease {
        /// Id of the lease. Not 0; no other lease may have it.
        id: i64,
        /// Time to live in seconds: the lease expires if it is not renewed for this time; 1 to
        /// [`LEASE_TTL_MAX`](crate::LEASE_TTL_MAX).
        ttl: u64,
    },
    /// Revokes a lease, and deletes its keys: at one revision, or as many at a time as one command may write. In the latter
    /// case the leader proposes the deletion of the others.
    RevokeLease {
        /// Id of the lease.
        id: i64,
    },
    /// Ends expired leases. Proposed only by the leader, which counts the time.
    ExpireLeases {
        /// Ids of the leases. Leases that have ended already are ignored.
        ids: Vec<i64>,
        /// Term of the leader. In another term the command has no effect, because the new leader counts the time again.
        term: u64,
    },
    /// Records the remaining time of leases, for the next leader. Proposed only by the leader.
    CheckpointLeases {
        /// Ids of leases and their remaining time in seconds; `None` means that the lease was renewed and has its whole
        /// time.
        remaining: Vec<(i64, Option<u64>)>,
        /// Term of the leader. In another term the command has no effect.
        term: u64,
    },
    /// Raises an alarm, if it is not raised yet.
    RaiseAlarm(Alarm),
    /// Disarms an alarm, if it is raised.
    DisarmAlarm(Alarm),
    /// Reserves ids for members of the cluster, so that no new member gets the id of an earlier one: it would be
    /// mistaken for the member that was removed.
    ReserveMemberIds {
        /// Greatest id that is known to be, or to have been, in use.
        through: u64,
        /// Number of ids to reserve, above all that were in use or reserved; may be 0.
        more: u64,
    },
    /// Changes users, roles, or whether they count.
    Auth(AuthOperation),
    /// Has every node compute the checksum of its state as of this entry, to compare them. Changes nothing.
    CheckState,
}

/// An operation as it is stored in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCommand {
    /// Session that makes the operation exactly-once.
    pub session: Option<Session>,
    /// The operation.
    pub operation: KvOperation,
    /// Origin of the operation. While authentication is enabled, it decides whether the operation is executed.
    pub caller: Caller,
}

impl KvCommand {
    /// An operation of the program itself, which may do everything.
    #[must_use]
    pub fn new(session: Option<Session>, operation: KvOperation) -> Self {
        Self { session, operation, caller: Caller::Server }
    }
}

/// Writes a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Key; not empty.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Id of the lease to which the key is attached; 0 for none.
    pub lease_id: i64,
    /// Whether the response contains the previous pair.
    pub return_previous: bool,
    /// Whether and where a versionstamp is appended.
    pub versionstamp: Versionstamp,
    /// Whether to keep the current value or lease instead of setting `value` or `lease_id`. The key must exist.
    pub keep: Keep,
}

/// Parts of a key that a put leaves unchanged.
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
    /// No versionstamp.
    #[default]
    None,
    /// The versionstamp is appended to the key.
    KeySuffix,
    /// The versionstamp is appended to the value.
    ValueSuffix,
}

/// Removes the keys in `[key, range_end)`; see [`KeyRange`] for the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// First key.
    pub key: Bytes,
    /// End of the range; see [`KeyRange`].
    pub range_end: Option<Bytes>,
    /// Whether the response contains the deleted pairs.
    pub return_previous: bool,
    /// Maximum number of keys to delete, in key order; fewer are deleted if more would exceed the limit of one command.
    /// 0: all keys of the range, or a rejection if that exceeds the limit of one command.
    pub limit: u64,
}

/// Reads the keys in `[key, range_end)`; see [`KeyRange`] for the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First key.
    pub key: Bytes,
    /// End of the range; see [`KeyRange`].
    pub range_end: Option<Bytes>,
    /// Maximum number of pairs; 0: as many as fit in a response.
    pub limit: u64,
    /// Revision to read at; 0: the newest.
    pub revision: u64,
    /// Whether the order is descending.
    pub descending: bool,
    /// Whether values are omitted.
    pub keys_only: bool,
    /// Whether only the number of pairs is returned.
    pub count_only: bool,
    /// Whether a range that does not fit in a response is rejected, instead of returning a part with `more` set.
    pub whole: bool,
    /// Order of the pairs.
    pub sort: Sort,
    /// Bounds of the revisions of returned pairs; `count` counts all pairs of the range.
    pub bounds: RevisionBounds,
}

/// Order of the pairs in a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sort {
    /// Sort key.
    pub by: SortBy,
    /// Whether the limit is applied in key order, before the pairs are sorted.
    pub after_limit: bool,
}

/// Sort key of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// Number of writes since the key was created.
    Version,
    /// Revision at which the key was created.
    CreateRevision,
    /// Revision of its last write.
    ModRevision,
    /// Value.
    Value,
}

/// Bounds for the revisions of pairs, inclusive; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionBounds {
    /// Minimum revision of the last write.
    pub mod_min: u64,
    /// Maximum revision of the last write.
    pub mod_max: u64,
    /// Minimum revision at which the key was created.
    pub create_min: u64,
    /// Maximum revision at which the key was created.
    pub create_max: u64,
}

impl RevisionBounds {
    pub(crate) fn contain(&self, kv: &KeyValue) -> bool {
        let within = |revision: u64, min: u64, max: u64| revision >= min && (max == 0 || revision <= max);
        within(kv.mod_revision, self.mod_min, self.mod_max)
            && within(kv.create_revision, self.create_min, self.create_max)
    }
}

/// Keys in `[key, range_end)`. Without `range_end`: the single key `key`. With a `range_end` of one zero byte: all keys
/// from `key` on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key; not empty. The first key of the store is one zero byte.
    pub key: Bytes,
    /// End of the range, exclusive.
    pub range_end: Option<Bytes>,
}

/// A transaction. If all compares hold, `success` is executed, otherwise `failure`. Each operation sees the effects of
/// those before it. Transactions may be nested, up to [`TXN_DEPTH_MAX`](crate::TXN_DEPTH_MAX) levels; the compares of
/// all of them are evaluated before anything is executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Conditions that must all hold for `success`.
    pub compare: Vec<Compare>,
    /// Operations if all compares hold: puts, deletes, ranges and transactions only.
    #[serde(deserialize_with = "nested::read")]
    pub success: Vec<KvOperation>,
    /// Operations otherwise; the same kinds.
    #[serde(deserialize_with = "nested::read")]
    pub failure: Vec<KvOperation>,
    /// For optimistic concurrency control: the transaction is rejected if a key in `read_ranges` was written or deleted
    /// after this revision. 0: no check.
    pub read_revision: u64,
    /// Ranges that were read at `read_revision`.
    pub read_ranges: Vec<KeyRange>,
}

/// A condition on a key, or on every key of a range. A missing key, or a range without keys, has version, revisions and
/// lease 0 and no value: no comparison of its value holds, as in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Keys to compare.
    pub keys: KeyRange,
    /// Field to compare, and the operand.
    pub target: CompareTarget,
    /// Relation that must hold.
    pub result: CompareResult,
}

/// Field of a key that is compared, with the operand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// Number of writes since the key was created.
    Version(i64),
    /// Revision at which the key was created.
    CreateRevision(i64),
    /// Revision of its last write.
    ModRevision(i64),
    /// Value.
    Value(Bytes),
    /// Id of the lease; 0 for none.
    Lease(i64),
}

/// Relation of a compare; the field of the key is the left side.
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
    /// Value; empty if only keys were requested.
    pub value: Bytes,
    /// Revision at which the key was created, after its last deletion.
    pub create_revision: u64,
    /// Revision of its last write.
    pub mod_revision: u64,
    /// Number of writes since the key was created.
    pub version: u64,
    /// Id of the lease of the key; 0 for none.
    pub lease_id: i64,
}

/// Result of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvResult {
    /// Result of a put.
    Put(PutDone),
    /// Result of a delete.
    Delete(Deleted),
    /// Result of a range.
    Range(Found),
    /// Result of a transaction.
    Txn(TxnDone),
    /// History was compacted.
    Compact,
    /// Client id of a new session.
    OpenSession(u64),
    /// A lease was granted, ended or checkpointed.
    Lease,
    /// Greatest member id that is in use, was in use, or is reserved.
    MemberId(u64),
    /// Result of an alarm command: for `RaiseAlarm` always true; for `DisarmAlarm` whether the alarm was raised.
    Alarm(bool),
    /// A lease has ended, but still has keys. The leader proposes their deletion, for which a database waits.
    LeaseEnding,
    /// Users, roles, or whether they count, were changed.
    Auth,
    /// The computation of a checksum was started.
    CheckState,
}

/// Result of a put.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutDone {
    /// Previous pair, if there was one and it was requested.
    pub previous: Option<KeyValue>,
    /// Key or value as written, if a versionstamp was appended.
    pub stamped: Option<Bytes>,
}

/// Result of a delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Number of deleted keys.
    pub deleted: u64,
    /// Deleted pairs, if they were requested.
    pub previous: Option<Vec<KeyValue>>,
    /// With a limit: first key of the range that was not processed; `None` if the whole range was.
    pub next_key: Option<Bytes>,
}

/// Result of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Pairs.
    pub kvs: Vec<KeyValue>,
    /// Whether the range contains more pairs.
    pub more: bool,
    /// Number of pairs in the whole range.
    pub count: u64,
}

/// Result of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnDone {
    /// Whether all compares held.
    pub succeeded: bool,
    /// Results of the operations of the executed branch.
    #[serde(deserialize_with = "nested::read")]
    pub responses: Vec<KvResult>,
}

/// Result of an operation, with the position of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvAnswer {
    /// Revision of the store after the operation; for a read, the revision at which it was executed.
    pub revision: u64,
    /// Index of the last applied entry at that time.
    pub applied_index: u64,
    /// Term of the last applied entry at that time.
    pub term: u64,
    /// Result.
    pub result: KvResult,
}

/// Reason that the store rejected a request. This attempt had no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum KvRejection {
    /// The request is invalid in any state of the store.
    #[error("{0}")]
    Invalid(String),
    /// The requested revision was compacted.
    #[error("revisions below {compacted} were compacted away")]
    Compacted {
        /// Oldest revision that can be read.
        compacted: u64,
    },
    /// The requested revision is in the future.
    #[error("revision {revision} is in the future; the store is at {current}")]
    FutureRevision {
        /// Requested revision.
        revision: u64,
        /// Newest revision.
        current: u64,
    },
    /// The key whose value or lease a put was to keep does not exist.
    #[error("key {key:?} does not exist, so the put cannot keep its value or lease")]
    NoKey {
        /// The key.
        key: Bytes,
    },
    /// The lease was never granted, or it has ended.
    #[error("there is no lease {id}")]
    NoLease {
        /// The lease.
        id: i64,
    },
    /// Another lease has this id.
    #[error("there is a lease {id} already")]
    LeaseExists {
        /// The lease.
        id: i64,
    },
    /// The response would exceed the maximum size.
    #[error("the response would exceed {bytes_max} bytes; request a smaller range or a limit")]
    AnswerTooLarge {
        /// Maximum size of the response in bytes.
        bytes_max: u64,
    },
    /// A key that the transaction had read was changed since.
    #[error("key {key:?} was changed at revision {mod_revision}, after the transaction's read revision")]
    Conflict {
        /// The key.
        key: Bytes,
        /// Revision of the change.
        mod_revision: u64,
    },
    /// The session was never opened, or it was removed because it was idle longest. It is unknown whether the request
    /// was executed before.
    #[error("there is no session {client_id}, or it was idle for too long: open a new one")]
    NoSession {
        /// Id of the session.
        client_id: u64,
    },
    /// A later number of the session was executed. This request may have been executed before; its response is not
    /// kept.
    #[error(
        "sequence {sequence} of session {client_id} is outdated: {last} was executed, and responses to earlier \
         numbers are not kept"
    )]
    SequenceOver {
        /// Id of the session.
        client_id: u64,
        /// Number of the request.
        sequence: u64,
        /// Last number that was executed.
        last: u64,
    },
    /// The alarm NOSPACE is raised: the store of a node exceeds its quota.
    #[error(
        "the store is full: the alarm NOSPACE is raised because a node exceeds its quota_size; nothing was done. \
         Delete keys that are not needed, compact, then disarm the alarm"
    )]
    NoSpace,
    /// The alarm CORRUPT is raised: the state of a node differs from that of the other nodes.
    #[error(
        "the alarm CORRUPT is raised: the nodes do not have the same state; nothing was done. Compare the nodes (`kvctl \
         hash`), replace the one that differs, then disarm the alarm"
    )]
    Corrupt,
    /// The caller may not do this, or users and roles cannot be changed like this.
    #[error(transparent)]
    Auth(#[from] AuthRejection),
}

impl KvOperation {
    /// Whether the operation only reads.
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
    /// Whether the operation is a range that must be returned completely or rejected.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Self::Range(Range { whole: true, .. }))
    }

    /// Whether the operation may be much work regardless of its size: it names ranges, or reads many values.
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

/// Maximum number of values, of up to 2 MiB each, that a command may read without an estimate of its work.
const LOOKUPS_MAX: usize = 8;

impl KvRejection {
    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}

/// Decodes nested lists up to a maximum depth. Without it, malicious bytes could overflow the stack.
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

    /// One level of nesting; ends when it is dropped.
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
        let _level = Level::enter().ok_or_else(|| D::Error::custom("transactions are nested too deeply"))?;
        from.deserialize_seq(List(PhantomData))
    }

    /// Decodes a list. Does not reserve memory for the claimed length.
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
