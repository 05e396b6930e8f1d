//! Maximum size of a response, known before the operation is executed.

use crate::{
    KEY_BYTES_MAX, KvOperation, Put, REPLY_BYTES_MAX, SESSION_REPLY_BYTES_MAX, VALUE_BYTES_MAX, Versionstamp,
    WHOLE_REPLY_BYTES_MAX,
};

impl KvOperation {
    /// Approximate maximum size in bytes of the response to this operation, as sent to a client.
    #[must_use]
    pub fn answer_bytes_max(&self, in_session: bool) -> usize {
        let pairs_max = match (in_session, self.is_whole()) {
            (true, _) => SESSION_REPLY_BYTES_MAX,
            (false, true) => WHOLE_REPLY_BYTES_MAX,
            (false, false) => REPLY_BYTES_MAX,
        };
        let (pairs, stamped) = self.parts();
        // The overhead per pair is at most a quarter of the bytes that a pair counts for.
        let pairs = pairs.min(pairs_max);
        pairs + pairs / 4 + stamped + HEADER_BYTES
    }

    /// Maximum bytes of pairs in an unlimited response, and bytes of stamped keys or values.
    fn parts(&self) -> (usize, usize) {
        match self {
            Self::Put(put) => (if put.return_previous { PAIR_BYTES_MAX } else { 0 }, stamped(put)),
            Self::Delete(delete) if !delete.return_previous => (0, 0),
            Self::Delete(delete) if delete.range_end.is_none() => (PAIR_BYTES_MAX, 0),
            Self::Range(range) if range.count_only => (0, 0),
            Self::Range(range) => {
                let pair = if range.keys_only { PAIR_BYTES_MAX - VALUE_BYTES_MAX } else { PAIR_BYTES_MAX };
                let count = match (&range.range_end, range.limit) {
                    (None, _) => 1,
                    (Some(_), 0) => usize::MAX,
                    (Some(_), limit) => usize::try_from(limit).unwrap_or(usize::MAX),
                };
                (pair.saturating_mul(count), 0)
            }
            Self::Delete(_) => (usize::MAX, 0),
            Self::Txn(txn) => {
                let parts = txn.success.iter().chain(&txn.failure).map(Self::parts);
                let parts = parts.map(|(pairs, stamped)| (pairs, stamped + HEADER_BYTES));
                parts
                    .fold((0, 0), |(pairs, stamped), (more, and)| (pairs.saturating_add(more), stamped + and))
            }
            _ => (0, 0),
        }
    }
}

fn stamped(put: &Put) -> usize {
    match put.versionstamp {
        Versionstamp::None => 0,
        Versionstamp::KeySuffix => put.key.len() + 10,
        Versionstamp::ValueSuffix => put.value.len() + 10,
    }
}

/// Maximum bytes of a pair in a response, including overhead.
const PAIR_BYTES_MAX: usize = KEY_BYTES_MAX + VALUE_BYTES_MAX + 128;
/// Bytes of a response besides keys and values.
const HEADER_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Delete, Range, Txn};

    #[test]
    fn response_bound_follows_requested_content() {
        let end = || Some("z".into());
        let bound = |operation: KvOperation| operation.answer_bytes_max(false);
        let put = |return_previous| KvOperation::Put(Put { return_previous, ..Put::default() });
        assert!(bound(put(false)) < 1024);
        assert!(bound(put(true)) > VALUE_BYTES_MAX && bound(put(true)) < REPLY_BYTES_MAX);
        assert!(put(true).answer_bytes_max(true) < 2 * SESSION_REPLY_BYTES_MAX);
        let range = Range { key: "a".into(), range_end: end(), ..Range::default() };
        assert!(bound(KvOperation::Range(range.clone())) > REPLY_BYTES_MAX);
        assert!(bound(KvOperation::Range(Range { count_only: true, ..range.clone() })) < 1024);
        assert!(
            bound(KvOperation::Range(Range { limit: 1, keys_only: true, ..range.clone() }))
                < 2 * KEY_BYTES_MAX
        );
        let delete = Delete { key: "a".into(), range_end: end(), return_previous: true, limit: 0 };
        assert!(bound(KvOperation::Delete(delete)) > REPLY_BYTES_MAX);
        let txn = Txn { success: vec![put(false), KvOperation::Range(range)], ..Txn::default() };
        assert!(bound(KvOperation::Txn(txn)) > REPLY_BYTES_MAX);
    }
}
