//! Layout of the store in RocksDB. There is one column family, so that every flush writes a consistent prefix of
//! history.
//!
//! ```text
//! key                                              value
//! "d" escaped-key 00 01 revision (8, inverted)     record of that version: newest first
//! "c" start                                        numbers of keys of the segment from this place
//! "m"                                              meta: applied position, revision, ...
//! "s" client id (8)                                session: last sequence and its response
//! "l" lease id (8)                                 lease
//! "a" lease id (8) key                             empty: the key is attached to the lease
//! "n"                                              alarms
//! "r" revision (8) number (4)                      keys changed by the revisions up to this one: oldest first
//! "t" revision (8)                                 deletion of a range that is being carried out
//! "g"                                              revision up to which garbage was collected
//! "u" kind (1) name                                users, roles, and whether they count
//! ```
//! The RocksDB key of a record is called its *place*, to distinguish it from the keys of the store. In an escaped key
//! 00 becomes 00 FF, so that no escaped key is a prefix of another and their order is kept.

use std::ops::Range;

use bytes::{BufMut, Bytes};
use consensus_core::codec::CodecError;

use crate::{KeyRange, KeyValue, recent::Counts};

pub(crate) const META: &[u8] = b"m";
pub(crate) const ALARMS: &[u8] = b"n";
pub(crate) const COLLECTED: &[u8] = b"g";
const DATA: u8 = b'd';
const SESSION: u8 = b's';
/// After all data.
const DATA_END: &[u8] = b"e";
/// The range of all sessions.
pub(crate) const SESSIONS: Range<&[u8]> = b"s"..b"t";

/// The range of all deletions of ranges.
pub(crate) const RANGE_DELETIONS: Range<&[u8]> = b"t"..b"u";

/// Place of the deletion of a range at a revision.
pub(crate) fn range_deletion(revision: u64) -> Vec<u8> {
    [RANGE_DELETIONS.start, &revision.to_be_bytes()].concat()
}

/// The range of all segments.
pub(crate) const SEGMENTS: Range<&[u8]> = b"c"..b"d";

/// Place of the counts of the segment that starts at the place `start`.
pub(crate) fn segment(start: &[u8]) -> Vec<u8> {
    [SEGMENTS.start, start].concat()
}

/// Start of a segment from the place of its counts.
pub(crate) fn segment_start(place: &[u8]) -> Bytes {
    Bytes::copy_from_slice(place.get(1..).unwrap_or_default())
}

/// The range of the records of users and roles.
pub(crate) const AUTH: Range<&[u8]> = b"u"..b"v";

/// Place of a record of users and roles.
pub(crate) fn auth(kind: u8, name: &str) -> Vec<u8> {
    [AUTH.start, &[kind], name.as_bytes()].concat()
}

/// The range of all leases.
pub(crate) const LEASES: Range<&[u8]> = b"l"..b"m";

pub(crate) fn lease(id: i64) -> Vec<u8> {
    [b"l", &id.to_be_bytes()[..]].concat()
}

/// The range of all records that attach keys to leases.
pub(crate) const ATTACHED: Range<&[u8]> = b"a"..b"b";

/// Place of the record that attaches a key to a lease.
pub(crate) fn attached(lease_id: i64, key: &[u8]) -> Vec<u8> {
    [b"a", &lease_id.to_be_bytes()[..], key].concat()
}

/// Places of all records that attach keys to a lease.
pub(crate) fn attached_to(lease_id: i64) -> Range<Vec<u8>> {
    let start = attached(lease_id, b"");
    // No key is longer than this.
    let end = [&start[..], &[0xFF; crate::KEY_BYTES_MAX + 1]].concat();
    start..end
}

/// Key in a place of [`attached_to`].
pub(crate) fn attached_key(place: &[u8]) -> Bytes {
    Bytes::copy_from_slice(place.get(9..).unwrap_or_default())
}

/// Lease in a place of [`ATTACHED`].
pub(crate) fn attached_lease(place: &[u8]) -> Result<i64, CodecError> {
    let id = place.get(1..9).and_then(|id| id.try_into().ok()).map(i64::from_be_bytes);
    let malformed = || CodecError::Malformed { what: "attachment to a lease", why: format!("{place:02x?}") };
    id.ok_or_else(malformed)
}

/// First place after all records that attach keys to a lease.
pub(crate) fn after_attached_to(lease_id: i64) -> Vec<u8> {
    // -1 is the last one in the order of places.
    if lease_id == -1 { ATTACHED.end.to_vec() } else { attached(lease_id.wrapping_add(1), b"") }
}

/// Place of the changes of revisions up to `revision`. If they need several records, `number` differs.
pub(crate) fn changes(revision: u64, number: u32) -> Vec<u8> {
    [b"r", &revision.to_be_bytes()[..], &number.to_be_bytes()].concat()
}

/// After all changes.
pub(crate) const CHANGES_END: &[u8] = b"s";

pub(crate) fn session(client_id: u64) -> Vec<u8> {
    [&[SESSION][..], &client_id.to_be_bytes()].concat()
}

/// Common prefix of the places of the versions of `key`, with capacity for a revision.
pub(crate) fn prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 3 + REVISION_LEN);
    out.push(DATA);
    for (part, piece) in key.split(|byte| *byte == 0).enumerate() {
        if part > 0 {
            out.extend([0, 0xFF]);
        }
        out.extend_from_slice(piece);
    }
    out.extend([0, 1]);
    out
}

/// Place of a version.
pub(crate) fn version(key: &[u8], revision: u64) -> Vec<u8> {
    version_of(prefix(key), revision)
}

/// Place of a version of the key with this prefix.
pub(crate) fn version_of(mut prefix: Vec<u8>, revision: u64) -> Vec<u8> {
    prefix.put_u64(!revision);
    prefix
}

/// Splits the place of a version into prefix and revision. Returns `None` for other places.
pub(crate) fn prefix_and_revision(place: &[u8]) -> Option<(&[u8], u64)> {
    let (prefix, revision) = place.split_last_chunk::<REVISION_LEN>()?;
    (prefix.first() == Some(&DATA)).then_some((prefix, !u64::from_be_bytes(*revision)))
}

/// First place after all versions of the key with this prefix.
pub(crate) fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    *end.last_mut().expect("a prefix ends in 00 01") = 2;
    end
}

/// Places of all versions of the keys in a range.
pub(crate) fn bounds(range: &KeyRange) -> Range<Vec<u8>> {
    let start = prefix(&range.key);
    let end = match range.range_end.as_deref() {
        None => end_of_prefix(&start),
        Some([0]) => DATA_END.to_vec(),
        Some(end) => prefix(end),
    };
    let end = end.max(start.clone()); // The range is empty if its end is before its start.
    start..end
}

/// Places of all data.
pub(crate) fn all() -> Range<Vec<u8>> {
    vec![DATA]..DATA_END.to_vec()
}

/// Splits the place of a version into key and revision.
pub(crate) fn split(place: &[u8]) -> Result<(Bytes, u64), CodecError> {
    let (prefix, revision) = split_place(place)?;
    Ok((key_of_prefix(prefix)?, revision))
}

/// Splits the place of a version into prefix and revision.
pub(crate) fn split_place(place: &[u8]) -> Result<(&[u8], u64), CodecError> {
    prefix_and_revision(place)
        .ok_or_else(|| CodecError::Malformed { what: "data key", why: format!("{place:02x?}") })
}

/// Key whose places start with this prefix.
pub(crate) fn key_of_prefix(prefix: &[u8]) -> Result<Bytes, CodecError> {
    let bad = || CodecError::Malformed { what: "data key", why: format!("{prefix:02x?}") };
    let escaped = prefix.get(1..).and_then(|rest| rest.strip_suffix(&[0, 1])).ok_or_else(bad)?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == 0 && bytes.next() != Some(&0xFF) {
            return Err(bad());
        }
    }
    Ok(key.into())
}

/// Content of a version of a key: a value, or a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Deleted,
    Live(KeyValue),
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Deleted => vec![RECORD_VERSION, DELETED],
            Self::Live(kv) => {
                let counts = Counts {
                    create_revision: kv.create_revision,
                    version: kv.version,
                    lease_id: kv.lease_id,
                };
                live(counts, &kv.value)
            }
        }
    }

    /// Decodes the record of the version of `key` that was written at `mod_revision`.
    pub(crate) fn decode(key: Bytes, mod_revision: u64, bytes: &Bytes) -> Result<Self, CodecError> {
        let Some(Counts { create_revision, version, lease_id }) = head(bytes)? else {
            return Ok(Self::Deleted);
        };
        let value = bytes.slice(HEAD_LEN..);
        Ok(Self::Live(KeyValue { key, value, create_revision, mod_revision, version, lease_id }))
    }
}

/// Encodes the record of a version with a value.
pub(crate) fn live(counts: Counts, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + value.len());
    out.extend([RECORD_VERSION, LIVE]);
    out.put_u64(counts.create_revision);
    out.put_u64(counts.version);
    out.put_i64(counts.lease_id);
    out.extend_from_slice(value);
    out
}

/// Decodes the counts in a record.
pub(crate) fn counts(record: &[u8]) -> Result<Counts, CodecError> {
    Ok(head(record)?.unwrap_or(Counts::DELETED))
}

/// Whether a record is a deletion.
pub(crate) fn is_deleted(record: &[u8]) -> Result<bool, CodecError> {
    Ok(head(record)?.is_none())
}

/// Returns the part of a record before its value.
pub(crate) fn without_value(record: &[u8]) -> &[u8] {
    record.get(..HEAD_LEN).unwrap_or(record)
}

/// Decodes the part of a record before its value; `None` means deleted.
fn head(record: &[u8]) -> Result<Option<Counts>, CodecError> {
    let what = "data record";
    match record.get(..2) {
        Some([RECORD_VERSION, DELETED]) if record.len() == 2 => Ok(None),
        Some([RECORD_VERSION, LIVE]) if record.len() >= HEAD_LEN => {
            let number = |at: usize| u64::from_be_bytes(record[at..at + 8].try_into().unwrap_or_default());
            let lease_id = number(18).cast_signed();
            Ok(Some(Counts { create_revision: number(2), version: number(10), lease_id }))
        }
        Some([found, _]) if *found != RECORD_VERSION => {
            Err(CodecError::Version { what, found: *found, supported: RECORD_VERSION })
        }
        _ => Err(CodecError::Malformed { what, why: "it is incomplete or of an unknown kind".to_owned() }),
    }
}

const RECORD_VERSION: u8 = 1;
const DELETED: u8 = 0;
const LIVE: u8 = 1;
/// Version, kind, create revision, version of the key, lease.
const HEAD_LEN: usize = 26;
const REVISION_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        assert_eq!(
            version(b"a\0b", 2),
            [&b"da\0\xffb\0\x01"[..], &[255, 255, 255, 255, 255, 255, 255, 253]].concat()
        );
        let (key, value) = ("k".into(), "v".into());
        let live = Record::Live(KeyValue {
            key,
            value,
            create_revision: 2,
            mod_revision: 5,
            version: 3,
            lease_id: -1,
        });
        let golden =
            [&[1, 1][..], &[0, 0, 0, 0, 0, 0, 0, 2], &[0, 0, 0, 0, 0, 0, 0, 3], &[255; 8], b"v"].concat();
        assert_eq!(live.encode(), golden);
        assert_eq!(Record::Deleted.encode(), [1, 0]);
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        // Few byte values, so that prefixes and zeros are frequent.
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(254), Just(255)], 0..5)
    }

    proptest! {
        #[test]
        fn places_sort_by_key_then_newest_version(a in key(), b in key(), x in 1u64..9, y in 1u64..9) {
            let expected = a.cmp(&b).then(y.cmp(&x));
            prop_assert_eq!(version(&a, x).cmp(&version(&b, y)), expected);
            prop_assert_eq!(split(&version(&a, x)), Ok((a.into(), x)));
        }

        #[test]
        fn bounds_contain_exactly_the_keys_of_the_range(a in key(), b in key(), k in key(), one: bool) {
            let range = KeyRange { key: a.clone().into(), range_end: (!one).then(|| b.clone().into()) };
            let inside = if one { k == a } else { a <= k && (b == [0] || k < b) };
            prop_assert_eq!(bounds(&range).contains(&version(&k, 3)), inside);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = split(&bytes);
            let _ = Record::decode(Bytes::new(), 1, &bytes.into());
        }
    }
}
