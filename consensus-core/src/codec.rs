//! Versioned binary encoding of values, for logs, snapshots and messages.
//!
//! An encoding is a version byte followed by the value in the format of [bincode] 2 (little-endian, variable-length
//! integers). bincode is no longer maintained. No other code calls it, and the version byte allows another format later
//! without converting stored data. Its decoder is already replaced by `codec/read.rs`, which bounds the memory and the
//! stack that malicious bytes can use.

mod read;

use serde::{Serialize, de::DeserializeOwned};

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes have another format version.
    #[error("{what} has format version {found}, this program reads version {supported}")]
    Version {
        /// Kind of data that was decoded, such as "hard state".
        what: &'static str,
        /// Version byte of the data.
        found: u8,
        /// Version that the program reads.
        supported: u8,
    },
    /// The bytes are damaged, incomplete, or of another kind.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// Kind of data that was decoded, such as "hard state".
        what: &'static str,
        /// Description of the damage.
        why: String,
    },
}

/// Encodes `version` and `value`.
///
/// # Panics
/// The type of `value` has fields that the format cannot represent (flattened maps, sequences of unknown length).
#[must_use]
pub fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(INITIAL_CAPACITY_BYTES);
    bytes.push(version);
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .expect("a type that is encoded has only fields that bincode can encode");
    bytes
}

/// Decodes a value that [`encode`] wrote with the same `version`. Never panics. Allocates in proportion to the length of
/// `bytes`, whatever lengths the bytes claim, plus at most 1 MiB for each level of nested sequences.
///
/// # Errors
/// `bytes` is not the encoding of one `T`, or nests options, enums, sequences and maps more than 128 levels deep. `what`
/// names the data in the error, such as "hard state".
pub fn decode<T: DeserializeOwned>(what: &'static str, version: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let malformed = |why: String| CodecError::Malformed { what, why };
    let (found, body) = bytes.split_first().ok_or_else(|| malformed("it is empty".to_owned()))?;
    if *found != version {
        return Err(CodecError::Version { what, found: *found, supported: version });
    }
    let (value, left) = read::from_slice(body).map_err(|error| malformed(error.to_string()))?;
    if left > 0 {
        return Err(malformed(format!("{left} bytes follow its end")));
    }
    Ok(value)
}

/// Enough for most encodings, so that the buffer does not grow repeatedly.
const INITIAL_CAPACITY_BYTES: usize = 128;

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::{
        ClusterId, Endpoint, HardState, LogId, LogIndex, Member, MemberKind, Membership, NodeId,
        SnapshotMeta, StorageId, Term,
    };

    fn sample() -> HardState {
        let meta = SnapshotMeta { last: LogId::new(3, 9), membership: Membership::of_voters([1, 2, 300]) };
        HardState {
            term: Term(7),
            voted_for: Some(NodeId(2)),
            installing: Some(meta),
            lost_through: None,
            joining: None,
            cluster: ClusterId(5),
        }
    }

    #[test]
    fn decode_of_another_version_names_both_versions() {
        let error = decode::<HardState>("hard state", 1, &encode(2, &sample())).unwrap_err();
        assert_eq!(error.to_string(), "hard state has format version 2, this program reads version 1");
    }

    #[test]
    fn golden_bytes_of_version_1() {
        // The format of existing data directories: this test may gain lines, but no line may change.
        let golden = [
            1, 7, 1, 2, 1, 3, 9, 3, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 251, 44, 1, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 5,
        ];
        assert_eq!(encode(1, &sample()), golden);
        assert_eq!(decode::<HardState>("hard state", 1, &golden), Ok(sample()));
    }

    #[test]
    fn decode_of_length_beyond_the_input_is_refused() {
        // `fuzz/tests` measures that it also allocates nothing; bincode's decoder allocated 128 MiB for `Bytes`.
        for length in [&[253, 255, 255, 255, 255, 255, 255, 255, 127][..], &[252, 0, 0, 0, 8]] {
            let bytes = [&[1], length, b"x"].concat();
            assert!(decode::<String>("text", 1, &bytes).is_err());
            assert!(decode::<Bytes>("bytes", 1, &bytes).is_err());
            assert!(decode::<Vec<u64>>("numbers", 1, &bytes).is_err());
            assert!(decode::<BTreeMap<u64, u64>>("numbers", 1, &bytes).is_err());
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Nested(Option<Box<Nested>>);

    #[test]
    fn decode_of_too_deep_nesting_is_refused() {
        // Bytes of a peer must not overflow the stack.
        let nested = |depth| [vec![1], vec![1; depth], vec![0]].concat();
        let deepest = decode::<Nested>("nested", 1, &nested(read::DEPTH_MAX)).unwrap();
        assert_eq!(encode(1, &deepest), nested(read::DEPTH_MAX));
        for depth in [read::DEPTH_MAX + 1, 10_000_000] {
            let error = decode::<Nested>("nested", 1, &nested(depth)).unwrap_err();
            assert_eq!(error.to_string(), "nested cannot be read: it is nested too deeply");
        }
    }

    /// A value with every type of serde's data model.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Everything {
        unsigned: (u8, u16, u32, u64, u128),
        signed: (i8, i16, i32, i64, i128),
        float: (f32, f64),
        others: (bool, char, (), Option<u16>),
        text: String,
        bytes: Bytes,
        list: Vec<Kind>,
        map: BTreeMap<i32, Vec<u8>>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Unit,
        New(u32),
        Tuple(i16, String),
        Struct { time: std::time::Duration, range: std::ops::Range<u32> },
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Unit),
            any::<u32>().prop_map(Kind::New),
            (any::<i16>(), ".{0,4}").prop_map(|(number, text)| Kind::Tuple(number, text)),
            (any::<std::time::Duration>(), any::<std::ops::Range<u32>>())
                .prop_map(|(time, range)| Kind::Struct { time, range }),
        ]
    }

    fn everything() -> impl Strategy<Value = Everything> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300);
        let finite = (any::<f32>(), any::<f64>());
        let lists =
            (prop::collection::vec(kind(), 0..5), prop::collection::btree_map(any::<i32>(), bytes(), 0..3));
        (
            any::<(u8, u16, u32, u64, u128)>(),
            any::<(i8, i16, i32, i64, i128)>(),
            finite,
            any::<(bool, char, (), Option<u16>)>(),
            ".{0,9}",
            bytes(),
            lists,
        )
            .prop_map(|(unsigned, signed, float, others, text, bytes, (list, map))| Everything {
                unsigned,
                signed,
                float,
                others,
                text,
                bytes: bytes.into(),
                list,
                map,
            })
    }

    /// Decodes `bytes` with bincode's own decoder.
    fn by_bincode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        let config = bincode::config::standard().with_limit::<{ 64 << 20 }>();
        let (value, read) = bincode::serde::decode_from_slice(bytes.get(1..)?, config).ok()?;
        (bytes[0] == 1 && read == bytes.len() - 1).then_some(value)
    }

    fn endpoint() -> impl Strategy<Value = Option<Endpoint>> {
        let text = prop_oneof![Just("db.example:9090"), Just("[::1]:1"), Just("10.0.0.1:65535")];
        prop::option::of(text.prop_map(|text| text.parse().unwrap()))
    }

    fn members() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
        let kinds = [MemberKind::Voter, MemberKind::Learner, MemberKind::Joining, MemberKind::Witness];
        let member = (
            0..kinds.len(),
            endpoint(),
            endpoint(),
            any::<u32>(),
            any::<Option<String>>(),
            any::<Option<u64>>(),
        );
        let member = member.prop_map(move |(kind, endpoint, client_endpoint, priority, name, storage)| {
            let storage = storage.map(StorageId);
            Member { kind: kinds[kind], endpoint, priority, client_endpoint, name, storage }
        });
        prop::collection::btree_map(any::<u64>().prop_map(NodeId), member, 0..5)
    }

    fn hard_state() -> impl Strategy<Value = HardState> {
        let membership = (members(), members(), any::<u64>()).prop_map(|(members, outgoing, cluster)| {
            Membership::joint(members, outgoing).with_cluster(ClusterId(cluster))
        });
        let meta = (any::<(u64, u64)>(), membership).prop_map(|((term, index), membership)| SnapshotMeta {
            last: LogId::new(term, index),
            membership,
        });
        let voted_for = any::<Option<u64>>().prop_map(|id| id.map(NodeId));
        let lost_through =
            any::<Option<(u64, u64)>>().prop_map(|id| id.map(|(term, index)| LogId::new(term, index)));
        let joining = any::<Option<u64>>().prop_map(|index| index.map(LogIndex));
        let cluster = any::<u64>().prop_map(ClusterId);
        let parts =
            (any::<u64>().prop_map(Term), voted_for, prop::option::of(meta), lost_through, joining, cluster);
        parts.prop_map(|(term, voted_for, installing, lost_through, joining, cluster)| HardState {
            term,
            voted_for,
            installing,
            lost_through,
            joining,
            cluster,
        })
    }

    /// Checks that truncated bytes are refused, and that bytes with a flipped bit are either refused or decoded to the
    /// value that bincode decodes.
    pub(crate) fn check_damaged<T: Serialize + DeserializeOwned>(
        value: &T,
        cut: prop::sample::Index,
        bit: prop::sample::Index,
    ) -> Result<(), TestCaseError> {
        let read = |bytes: &[u8]| decode::<T>("value", 1, bytes).ok().map(|value| encode(1, &value));
        let good = encode(1, value);
        prop_assert_eq!(read(&good), Some(good.clone()));
        prop_assert_eq!(read(&good[..cut.index(good.len())]), None);
        let mut flipped = good.clone();
        let bit = bit.index(8 * good.len());
        flipped[bit / 8] ^= 1 << (bit % 8);
        let changed = read(&flipped);
        if let Some(changed) = &changed {
            prop_assert_eq!(read(changed), Some(changed.clone()));
        }
        prop_assert_eq!(changed, by_bincode::<T>(&flipped).map(|value| encode(1, &value)));
        Ok(())
    }

    proptest! {
        #[test]
        fn hard_state_round_trips(state in hard_state(), cut: prop::sample::Index, bit: prop::sample::Index) {
            prop_assert_eq!(decode("hard state", 1, &encode(1, &state)), Ok(state.clone()));
            check_damaged(&state, cut, bit)?;
        }

        #[test]
        fn every_serde_type_round_trips_as_with_bincode(value in everything(), cut: prop::sample::Index, bit: prop::sample::Index) {
            prop_assert_eq!(decode("value", 1, &encode(1, &value)), Ok(value.clone()));
            prop_assert_eq!(by_bincode(&encode(1, &value)), Some(value.clone()));
            check_damaged(&value, cut, bit)?;
        }

        #[test]
        fn arbitrary_bytes_decode_as_with_bincode(mut bytes in prop::collection::vec(prop_oneof![0u8..6, 248..=255u8, any::<u8>()], 1..60)) {
            bytes[0] = 1;
            prop_assert_eq!(decode("value", 1, &bytes).ok(), by_bincode::<HardState>(&bytes));
            prop_assert_eq!(decode("value", 1, &bytes).ok(), by_bincode::<Vec<Kind>>(&bytes));
            prop_assert_eq!(decode("value", 1, &bytes).ok(), by_bincode::<(u128, char, i64, u16, Bytes)>(&bytes));
        }
    }
}
