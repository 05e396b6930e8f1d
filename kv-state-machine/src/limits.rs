//! All limits of operations.
//!
//! There are two kinds. The bounds of the replicated state hold when a command is applied; they are constants, as all
//! nodes must get the same result. [`Limits`] are checked by each node for itself before it proposes, never when a
//! command is applied, so nodes may differ in them.

use crate::{KvOperation, KvRejection, Txn};

/// Maximum length of a key in bytes, including a versionstamp.
pub const KEY_BYTES_MAX: usize = 16 << 10;
/// Maximum length of a value in bytes.
pub const VALUE_BYTES_MAX: usize = 2 << 20;
/// Maximum number of compares, operations and read ranges of a transaction, together.
pub const OPERATIONS_MAX: usize = 4096;
/// Maximum depth of transactions within a transaction.
pub const TXN_DEPTH_MAX: usize = 16;
/// Maximum time to live of a lease in seconds, as in etcd.
pub const LEASE_TTL_MAX: u64 = 9_000_000_000;
/// Maximum number of users. Part of the rules of the replicated state, as are the next three.
pub const USERS_MAX: usize = 10_000;
/// Maximum number of roles.
pub const ROLES_MAX: usize = 10_000;
/// Maximum number of roles of a user.
pub const ROLES_OF_USER_MAX: usize = 100;
/// Maximum number of permissions of a role.
pub const PERMISSIONS_MAX: usize = 1_000;
/// Maximum number of bytes of pairs in one response. If a range has more pairs, its response sets `more`.
pub const REPLY_BYTES_MAX: usize = 4 << 20;
/// Maximum number of bytes of pairs in the response to a [whole](crate::Range::whole) range that is read without the log.
pub const WHOLE_REPLY_BYTES_MAX: usize = 256 << 20;
/// Maximum number of bytes of keys and values that a short read looks at.
pub const SHORT_READ_BYTES_MAX: usize = 4 << 20;
/// Maximum number of bytes of pairs in the response to a command in a session. The session keeps its last response.
pub const SESSION_REPLY_BYTES_MAX: usize = 64 << 10;
/// Maximum number of keys that one command may read while it is applied, including those that are deleted and not
/// compacted. A key that is read twice counts twice.
pub const WORK_KEYS_MAX: u64 = 10_000;
/// Maximum number of bytes of keys and values that one command may read or write while it is applied.
pub const WORK_BYTES_MAX: u64 = 64 << 20;

/// An amount of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Number of keys read.
    pub(crate) keys: u64,
    /// Bytes of keys and values read or written.
    pub(crate) bytes: u64,
}

impl Amount {
    /// Bound of a command that is applied. Part of the rules of the replicated state: the same on every node.
    pub(crate) const OF_COMMANDS: Self = Self { keys: WORK_KEYS_MAX, bytes: WORK_BYTES_MAX };
    /// Bound of a read that is executed at once. A read that exceeds it waits for a permit.
    pub(crate) const OF_SHORT_READS: Self = Self { keys: 2_000, bytes: SHORT_READ_BYTES_MAX as u64 };
    /// Bound of a range that is read outside of a transaction: its response is bounded, and it delays no other
    /// operation.
    const UNBOUNDED: Self = Self { keys: u64::MAX, bytes: u64::MAX };
    /// A command that exceeds this amount is heavy. Heavy commands are proposed one at a time, so that other commands are
    /// applied between them.
    const OF_LIGHT_COMMANDS: Self = Self { keys: 1_000, bytes: 8 << 20 };

    /// Bound of a read that does not go through the log.
    pub(crate) fn of_read(operation: &KvOperation) -> Self {
        if matches!(operation, KvOperation::Range(_)) { Self::UNBOUNDED } else { Self::OF_COMMANDS }
    }

    pub(crate) fn is_heavy(self) -> bool {
        self.keys > Self::OF_LIGHT_COMMANDS.keys || self.bytes > Self::OF_LIGHT_COMMANDS.bytes
    }
}

/// Bounds that a database sets for its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum number of operations in either branch of a transaction, of compares, and of read ranges; 1 to
    /// [`OPERATIONS_MAX`], which bounds their sum. Default 128, as in etcd.
    pub transaction_operations_max: usize,
    /// Size of the node's store in bytes at which commands that add data are refused, and the alarm
    /// [`NoSpace`](crate::AlarmKind::NoSpace) is raised for the whole cluster; 0 means no quota. Default 0.
    pub quota_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { transaction_operations_max: 128, quota_bytes: 0 }
    }
}

impl Limits {
    pub(crate) fn check(&self, operation: &KvOperation) -> Result<(), KvRejection> {
        let KvOperation::Txn(txn) = operation else { return Ok(()) };
        let max = self.transaction_operations_max.min(OPERATIONS_MAX);
        check_within(txn, max, max)
    }
}

/// Checks a transaction that may have `left` parts of each kind. Its own parts reduce the number for nested ones.
fn check_within(txn: &Txn, left: usize, max: usize) -> Result<(), KvRejection> {
    let Txn { compare, success, failure, read_ranges, .. } = txn;
    let parts = [
        ("compares", compare.len()),
        ("operations in its success branch", success.len()),
        ("operations in its failure branch", failure.len()),
        ("read ranges", read_ranges.len()),
    ];
    if let Some((what, count)) = parts.into_iter().find(|(_, count)| *count > left) {
        return Err(KvRejection::invalid(format!(
            "the transaction has {count} {what}; the maximum is {max} (transaction_operations_max)"
        )));
    }
    let taken = parts.into_iter().map(|(_, count)| count).max().unwrap_or_default();
    success.iter().chain(failure).try_for_each(|operation| match operation {
        KvOperation::Txn(nested) => check_within(nested, left - taken, max),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Range;

    #[test]
    fn transaction_over_limit_is_refused_with_kind_and_setting() {
        let range = KvOperation::Range(Range { key: "k".into(), ..Range::default() });
        let txn = |count: usize| {
            let failure = vec![range.clone(); count];
            KvOperation::Txn(Txn { failure, ..Txn::default() })
        };
        assert_eq!(Limits::default().check(&txn(128)), Ok(()));
        let refused = Limits::default().check(&txn(129)).unwrap_err().to_string();
        assert!(refused.contains("129 operations in its failure branch"), "{refused}");
        assert!(
            refused.contains("maximum is 128") && refused.contains("transaction_operations_max"),
            "{refused}"
        );
    }
}
