//! Keys, subjects and stages of a call.

use std::time::Duration;

use bytes::Bytes;
use kv_state_machine::{AuthOperation, CompareTarget, KvOperation, Txn};

use super::escape::escaped;

/// Notes of a call.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Name of the user; `None` without one.
    pub(super) user: Option<String>,
    /// Name with which the client tried to log in.
    pub(super) login: Option<String>,
    pub(super) keys: Keys,
    pub(super) subject: Subject,
    /// Revision of the response.
    pub(super) revision: Option<u64>,
    /// Whether the operation only reads, if that depends on it.
    pub(super) is_read: Option<bool>,
    /// Whether another node received the call from its client.
    pub(super) is_forwarded: bool,
    /// Bytes of the request, or of its keys and values.
    pub(super) request_bytes: Option<usize>,
    pub(super) response_bytes: Option<usize>,
    pub(super) stages: Stages,
}

/// The object of a call that is no key.
#[derive(Debug, Default)]
pub(super) struct Subject {
    pub(super) user: Option<String>,
    pub(super) role: Option<String>,
    pub(super) lease: Option<i64>,
    /// Node ids, at most [`MEMBERS_MAX`].
    pub(super) members: Vec<u64>,
}

/// Key ranges of a call, in the order in which they were noted, each once.
#[derive(Debug, Default)]
pub(super) struct Keys {
    ranges: Vec<(Bytes, Option<Bytes>)>,
    /// Number of ranges that are not kept.
    omitted: u64,
}

/// A part of a call's duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waiting for memory for the response.
    Memory,
    /// Verifying or hashing a password.
    Password,
    /// Waiting for an election to end.
    Election,
    /// The leader's part of a call that this node forwards to it, with the network between them.
    Forward,
    /// Queue, log, quorum and state machine of a command.
    Commit,
    /// Waiting until the read is as current as its client wants.
    ReadBarrier,
    /// Reading from the store.
    Read,
}

/// Durations by stage.
#[derive(Debug, Default)]
pub(super) struct Stages([Duration; STAGES.len()]);

impl Stages {
    pub(super) fn add(&mut self, stage: Stage, duration: Duration) {
        self.0[stage as usize] += duration;
    }

    /// Describes the stages that were measured, and the rest of the whole: `commit 512.3ms, other 2.9ms`.
    pub(super) fn describe(&self, whole: Duration) -> String {
        let mut parts = Vec::new();
        for (name, duration) in STAGES.iter().zip(self.0) {
            if !duration.is_zero() {
                parts.push(format!("{name} {:.1}ms", milliseconds(duration)));
            }
        }
        let other = whole.saturating_sub(self.0.iter().sum());
        parts.push(format!("other {:.1}ms", milliseconds(other)));
        parts.join(", ")
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Notes {
    pub(super) fn add_operation(&mut self, operation: &KvOperation) {
        self.is_read = Some(operation.is_read_only());
        let mut bytes = 0;
        self.add_keys(operation, &mut bytes);
        self.request_bytes.get_or_insert(bytes);
        match operation {
            KvOperation::GrantLease { id, .. } | KvOperation::RevokeLease { id } => {
                self.subject.lease = Some(*id);
            }
            KvOperation::Auth(change) => self.subject.add(change),
            _ => {}
        }
    }

    /// Adds the keys of an operation, and the bytes of keys and values to `bytes`.
    fn add_keys(&mut self, operation: &KvOperation, bytes: &mut usize) {
        match operation {
            KvOperation::Put(put) => {
                *bytes += put.key.len() + put.value.len();
                self.keys.add(put.key.clone(), None);
            }
            KvOperation::Delete(delete) => {
                *bytes += delete.key.len() + delete.range_end.as_ref().map_or(0, Bytes::len);
                self.keys.add(delete.key.clone(), delete.range_end.clone());
            }
            KvOperation::Range(range) => {
                *bytes += range.key.len() + range.range_end.as_ref().map_or(0, Bytes::len);
                self.keys.add(range.key.clone(), range.range_end.clone());
            }
            KvOperation::Txn(txn) => self.add_keys_of_txn(txn, bytes),
            _ => {}
        }
    }

    fn add_keys_of_txn(&mut self, txn: &Txn, bytes: &mut usize) {
        for compare in &txn.compare {
            *bytes += compare.keys.key.len();
            if let CompareTarget::Value(value) = &compare.target {
                *bytes += value.len();
            }
            self.keys.add(compare.keys.key.clone(), compare.keys.range_end.clone());
        }
        for keys in &txn.read_ranges {
            self.keys.add(keys.key.clone(), keys.range_end.clone());
        }
        for operation in txn.success.iter().chain(&txn.failure) {
            self.add_keys(operation, bytes);
        }
    }
}

impl Subject {
    fn add(&mut self, change: &AuthOperation) {
        let (user, role) = match change {
            AuthOperation::AddUser { user, .. }
            | AuthOperation::DeleteUser { user }
            | AuthOperation::ChangePassword { user, .. } => (Some(user), None),
            AuthOperation::GrantRole { user, role } | AuthOperation::RevokeRole { user, role } => {
                (Some(user), Some(role))
            }
            AuthOperation::AddRole { role } | AuthOperation::DeleteRole { role } => (None, Some(role)),
            AuthOperation::GrantPermission { role, .. } | AuthOperation::RevokePermission { role, .. } => {
                (None, Some(role))
            }
            _ => (None, None),
        };
        let shortened = |name: &String| super::escape::shortened(name, super::NAME_BYTES_MAX).to_owned();
        (self.user, self.role) = (user.map(shortened), role.map(shortened));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.user.is_none() && self.role.is_none() && self.lease.is_none() && self.members.is_empty()
    }
}

impl Keys {
    /// Adds a range. An operation that is tried several times has its keys once.
    pub(super) fn add(&mut self, key: Bytes, range_end: Option<Bytes>) {
        let range = (key, range_end);
        if self.ranges.len() >= KEYS_MAX {
            self.omitted += u64::from(!self.ranges.contains(&range));
        } else if !self.ranges.contains(&range) {
            self.ranges.push(range);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The first ranges, as text: key, end, and the length of the key if the text has only its first bytes.
    pub(super) fn shown(&self, ranges_max: usize) -> Vec<ShownRange> {
        let shown = |(key, range_end): &(Bytes, Option<Bytes>)| {
            let (key, key_bytes) = shortened(key);
            ShownRange { key, range_end: range_end.as_ref().map(|end| shortened(end).0), key_bytes }
        };
        self.ranges.iter().take(ranges_max).map(shown).collect()
    }

    /// Number of ranges beyond the first ones.
    pub(super) fn omitted(&self, ranges_max: usize) -> u64 {
        self.omitted + self.ranges.len().saturating_sub(ranges_max) as u64
    }
}

/// A range as text.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct ShownRange {
    pub(super) key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<String>,
    /// Length of the key, if `key` has its first bytes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_bytes: Option<usize>,
}

fn shortened(key: &[u8]) -> (String, Option<usize>) {
    match key.get(..KEY_BYTES_MAX) {
        Some(start) if key.len() > KEY_BYTES_MAX => (escaped(start), Some(key.len())),
        _ => (escaped(key), None),
    }
}

/// Names of the stages, in the order of [`Stage`].
const STAGES: [&str; 7] = ["memory", "password", "election", "forward", "commit", "read barrier", "read"];
/// Maximum number of key ranges that are kept of a call. The search for one among them is linear.
pub(super) const KEYS_MAX: usize = 128;
/// Maximum bytes of a key in a line. With [`KEYS_MAX`] it bounds a line to about 1 MiB, for keys of bytes that are escaped.
const KEY_BYTES_MAX: usize = 1024;
/// Maximum number of members that are kept of a call.
pub(super) const MEMBERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use kv_state_machine::Put;

    use super::*;

    fn put(key: &str) -> KvOperation {
        KvOperation::Put(Put { key: key.to_owned().into(), value: "secret".into(), ..Put::default() })
    }

    #[test]
    fn transaction_has_keys_of_all_its_operations_up_to_a_bound_and_no_values() {
        let nested = KvOperation::Txn(Txn { success: vec![put("nested")], ..Txn::default() });
        let success = (0..KEYS_MAX).map(|n| put(&format!("k{n}"))).chain([nested]).collect();
        let txn = Txn { success, failure: vec![put("k0"), put("last")], ..Txn::default() };
        let mut notes = Notes::default();
        notes.add_operation(&KvOperation::Txn(txn));
        assert_eq!((notes.keys.shown(usize::MAX).len(), notes.keys.omitted(usize::MAX)), (KEYS_MAX, 2));
        assert_eq!((notes.keys.shown(3).len(), notes.keys.omitted(3)), (3, KEYS_MAX as u64 - 3 + 2));
        assert_eq!(notes.is_read, Some(false));
        assert!(!format!("{notes:?}").contains("secret"));
    }

    #[test]
    fn long_key_is_shortened_with_its_length() {
        let mut keys = Keys::default();
        keys.add(vec![b'a'; KEY_BYTES_MAX + 1].into(), None);
        let shown = &keys.shown(1)[0];
        assert_eq!((shown.key.len(), shown.key_bytes), (KEY_BYTES_MAX, Some(KEY_BYTES_MAX + 1)));
    }

    #[test]
    fn stages_are_described_with_the_rest() {
        let mut stages = Stages::default();
        stages.add(Stage::Commit, Duration::from_millis(500));
        stages.add(Stage::Commit, Duration::from_millis(12));
        stages.add(Stage::Read, Duration::from_micros(100));
        let whole = Duration::from_millis(515);
        assert_eq!(stages.describe(whole), "commit 512.0ms, read 0.1ms, other 2.9ms");
    }
}
