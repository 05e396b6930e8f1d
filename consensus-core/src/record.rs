//! Log records: an [`Entry`] as it lies on disk, in every log storage.
//!
//! ```text
//! byte 0      1..5            5      6..14   14..22   22..
//! version     CRC-32C of the  kind   term    index    payload
//! (1)         bytes from 5 on        (big-endian)
//! ```

use bytes::{BufMut, Bytes};

use crate::{
    Entry, LogId, LogIndex, Payload, Term,
    codec::{self, CodecError},
};

/// Appends the record of `entry` to `out`.
pub fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u8(VERSION);
    out.put_u32(0);
    out.put_u8(match entry.payload {
        Payload::Blank => BLANK,
        Payload::Command(_) => COMMAND,
        Payload::Membership(_) => MEMBERSHIP,
        Payload::Withheld => WITHHELD,
    });
    out.put_u64(entry.id.term.0);
    out.put_u64(entry.id.index.0);
    match &entry.payload {
        Payload::Blank | Payload::Withheld => {}
        Payload::Command(command) => out.put_slice(command),
        Payload::Membership(membership) => out.put_slice(&codec::encode(MEMBERSHIP_VERSION, membership)),
    }
    let sum = crc32c::crc32c(&out[start + 5..]);
    out[start + 1..start + 5].copy_from_slice(&sum.to_be_bytes());
}

/// The entry of a record; its payload is a slice of `record`, not a copy.
///
/// # Errors
/// The record is damaged or of another version.
pub fn decode(record: &Bytes) -> Result<Entry, CodecError> {
    let malformed = |why: &str| CodecError::Malformed { what: WHAT, why: why.to_owned() };
    match record.first() {
        Some(&VERSION) => {}
        Some(&found) => return Err(CodecError::Version { what: WHAT, found, supported: VERSION }),
        None => return Err(malformed("it is empty")),
    }
    if record.len() < HEADER_LEN {
        return Err(malformed("it is cut short"));
    }
    let number = |at: usize| record[at..at + 8].try_into().map(u64::from_be_bytes).unwrap_or_default();
    if crc32c::crc32c(&record[5..]).to_be_bytes() != record[1..5] {
        return Err(malformed("its checksum is wrong"));
    }
    let id = LogId { term: Term(number(6)), index: LogIndex(number(14)) };
    let body = record.slice(HEADER_LEN..);
    let payload = match record[5] {
        BLANK if body.is_empty() => Payload::Blank,
        WITHHELD if body.is_empty() => Payload::Withheld,
        COMMAND => Payload::Command(body),
        MEMBERSHIP => Payload::Membership(codec::decode("membership entry", MEMBERSHIP_VERSION, &body)?),
        _ => return Err(malformed("its kind is unknown")),
    };
    Ok(Entry { id, payload })
}

const WHAT: &str = "log record";
const VERSION: u8 = 1;
const MEMBERSHIP_VERSION: u8 = 1;
const HEADER_LEN: usize = 22;
const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;
const WITHHELD: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Membership;

    fn encoded(entry: &Entry) -> Bytes {
        let mut out = Vec::new();
        encode(entry, &mut out);
        out.into()
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let record = encoded(&Entry::command(LogId::new(2, 3), "hi"));
        let golden =
            [&[1, 201, 117, 212, 170, 1][..], &[0, 0, 0, 0, 0, 0, 0, 2], &[0, 0, 0, 0, 0, 0, 0, 3], b"hi"]
                .concat();
        assert_eq!(record, golden);
    }

    proptest! {
        #[test]
        fn every_entry_comes_back(term: u64, index: u64, command in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64))) {
            let payload = command.map_or(Payload::Membership(Membership::of_voters([1, 2])), |c| Payload::Command(c.into()));
            let entry = Entry { id: LogId::new(term, index), payload };
            prop_assert_eq!(decode(&encoded(&entry)), Ok(entry));
        }

        #[test]
        fn every_bit_flip_and_every_cut_is_noticed(at in 0usize..25, bit in 0u8..8) {
            let good = encoded(&Entry::command(LogId::new(2, 3), "abc"));
            prop_assert!(decode(&good.slice(..at)).is_err());
            let mut bad = good.to_vec();
            bad[at] ^= 1 << bit;
            prop_assert!(decode(&bad.into()).is_err());
        }
    }
}
