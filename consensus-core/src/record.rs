//! Log records: the format in which every log storage keeps an [`Entry`] on disk.
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

/// Decodes the entry of a record. The payload of a command is a slice of `record`, not a copy.
///
/// # Errors
/// The record is damaged or was written in another version of the format.
pub fn decode(record: &Bytes) -> Result<Entry, CodecError> {
    let malformed = |why: &str| CodecError::Malformed { what: WHAT, why: why.to_owned() };
    match record.first() {
        Some(&VERSION) => {}
        Some(&found) => return Err(CodecError::Version { what: WHAT, found, supported: VERSION }),
        None => return Err(malformed("it is empty")),
    }
    if record.len() < HEADER_LEN {
        return Err(malformed("it is shorter than its header"));
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

    fn payload() -> impl Strategy<Value = Payload> {
        let joint = |ids: Vec<u64>, outgoing: Vec<u64>| {
            let members = |ids| Membership::of_voters(ids).members().clone();
            Payload::Membership(Membership::joint(members(ids), members(outgoing)))
        };
        prop_oneof![
            Just(Payload::Blank),
            Just(Payload::Withheld),
            any::<Vec<u8>>().prop_map(|command| Payload::Command(command.into())),
            any::<(Vec<u64>, Vec<u64>)>().prop_map(move |(ids, outgoing)| joint(ids, outgoing)),
        ]
    }

    proptest! {
        #[test]
        fn record_round_trips_and_bit_flips_and_truncations_are_refused(
            id: (u64, u64),
            payload in payload(),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            let entry = Entry { id: LogId::new(id.0, id.1), payload };
            let good = encoded(&entry);
            prop_assert_eq!(decode(&good), Ok(entry));
            prop_assert!(decode(&good.slice(..cut.index(good.len()))).is_err());
            let mut bad = good.to_vec();
            let bit = bit.index(8 * good.len());
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bad.into()).is_err());
        }
    }
}
