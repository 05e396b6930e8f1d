//! The one place that knows how values become bytes.
//!
//! Every encoding is a version byte, then the value as [bincode] 2 writes it (little-endian, variable-length integers).
//! bincode is finished rather than maintained; keeping it behind these two functions, with a version in front, is what
//! lets it be replaced without rewriting a stored byte.

use serde::{Serialize, de::DeserializeOwned};

/// The bytes are not an encoding that this version reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by another version.
    #[error("{what} has format version {found}, this program reads version {supported}")]
    Version {
        /// What was being read.
        what: &'static str,
        /// The version byte found.
        found: u8,
        /// The version that is read.
        supported: u8,
    },
    /// Damaged, cut short, or something else altogether.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// Encodes `value`, with `version` in front.
#[must_use]
pub fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    // It fails only for types that no format without field names can carry (flattened maps, sequences of unknown
    // length): a mistake in the program, found the first time that the type is encoded.
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .expect("a type that is encoded has only fields that bincode can encode");
    bytes
}

/// Decodes what [`encode`] wrote with the same `version`. It allocates no more than a small multiple of `bytes`, reads
/// all of it, and never panics.
///
/// # Errors
/// `bytes` is not such an encoding; `what` names it in the error.
pub fn decode<T: DeserializeOwned>(what: &'static str, version: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let malformed = |why: String| CodecError::Malformed { what, why };
    let (found, body) = bytes.split_first().ok_or_else(|| malformed("it is empty".to_owned()))?;
    if *found != version {
        return Err(CodecError::Version { what, found: *found, supported: version });
    }
    let config = bincode::config::standard().with_limit::<LIMIT_BYTES>();
    let (value, read) =
        bincode::serde::decode_from_slice(body, config).map_err(|error| malformed(error.to_string()))?;
    if read != body.len() {
        return Err(malformed(format!("{} bytes follow its end", body.len() - read)));
    }
    Ok(value)
}

/// The most that bincode is allowed to claim while decoding one value; above every frame limit in the workspace.
const LIMIT_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{HardState, Membership, SnapshotMeta};

    fn sample() -> HardState {
        let meta =
            SnapshotMeta { last: crate::LogId::new(3, 9), membership: Membership::of_voters([1, 2, 300]) };
        HardState {
            term: crate::Term(7),
            voted_for: Some(crate::NodeId(2)),
            installing: Some(meta),
            lost_through: None,
        }
    }

    #[test]
    fn another_version_is_named() {
        let error = decode::<HardState>("hard state", 1, &encode(2, &sample())).unwrap_err();
        assert_eq!(error.to_string(), "hard state has format version 2, this program reads version 1");
    }

    #[test]
    fn golden_bytes_of_version_1() {
        // Data directories in the world start with these bytes: this test may gain lines, never change one.
        let golden =
            [1, 7, 1, 2, 1, 3, 9, 3, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 251, 44, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(encode(1, &sample()), golden);
        assert_eq!(decode::<HardState>("hard state", 1, &golden), Ok(sample()));
    }

    #[test]
    fn a_hostile_length_does_not_allocate() {
        let mut bytes = encode(1, &"x".to_owned());
        bytes.splice(1..2, [253, 255, 255, 255, 255, 255, 255, 255, 127]);
        assert!(decode::<String>("text", 1, &bytes).is_err());
        assert!(decode::<Vec<u64>>("numbers", 1, &bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_prefix_and_no_bit_flip_panics(cut in 0usize..19, bit in 0usize..152) {
            let good = encode(1, &sample());
            let cut_short = decode::<HardState>("hard state", 1, &good[..cut.min(good.len() - 1)]);
            prop_assert!(cut_short.is_err());
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = decode::<HardState>("hard state", 1, &flipped);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<HardState>("hard state", 1, &bytes);
            let _ = decode::<Vec<Vec<u8>>>("lists", 1, &bytes);
        }
    }
}
