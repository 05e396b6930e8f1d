//! Frames: the format of one write on disk.
//!
//! ```text
//! 0   CRC-32C of the head from byte 4 on (4)      24  last non-append frame (8)      56       state
//! 4   length of the state (4)                     32  last entry: term, index (16)   ..       for each record:
//! 8   salt of the segment (8)                     48  number of records (4)                   length (4), CRC-32C (4)
//! 16  number of the frame (8)                     52  length of all records (4)      ..       records, zeros up to a
//!                                                                                             multiple of 8
//! ```
//! All numbers big-endian. The CRC of a record is a copy of the one inside the record: it binds the record to this head, and
//! the payload is summed only once.

use bytes::{Buf, BufMut, Bytes};
use consensus_core::{
    Entry, HardState, LogId, LogIndex, SnapshotMeta, Term,
    codec::{self, CodecError},
    record,
};

/// A batch to be written.
pub(crate) struct Frame<'a> {
    pub(crate) salt: u64,
    pub(crate) number: u64,
    /// Number of the last frame before this one that did more than append entries.
    pub(crate) last_non_append: u64,
    /// Last entry of the log after this frame.
    pub(crate) last: LogId,
    pub(crate) hard_state: Option<&'a HardState>,
    pub(crate) purged: Option<&'a SnapshotMeta>,
    pub(crate) entries: &'a [Entry],
}

impl Frame<'_> {
    /// Replaces the content of `out` by the encoded frame. This is the only copy of the payloads.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        let state = match (self.hard_state, self.purged) {
            (None, None) => Vec::new(),
            state => codec::encode(STATE_VERSION, &state),
        };
        out.resize(SUM_LEN, 0);
        out.put_u32(state.len() as u32);
        out.put_u64(self.salt);
        out.put_u64(self.number);
        out.put_u64(self.last_non_append);
        out.put_u64(self.last.term.0);
        out.put_u64(self.last.index.0);
        out.put_u32(self.entries.len() as u32);
        out.put_u32(0);
        out.put_slice(&state);
        let table = out.len();
        out.resize(table + PER_RECORD * self.entries.len(), 0);
        let records = out.len();
        for (n, entry) in self.entries.iter().enumerate() {
            let start = out.len();
            record::encode(entry, out);
            let length = (out.len() - start) as u32;
            let at = table + PER_RECORD * n;
            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
            out.copy_within(start + 1..start + 5, at + 4);
        }
        let length = (out.len() - records) as u32;
        out[FIXED_LEN - 4..FIXED_LEN].copy_from_slice(&length.to_be_bytes());
        let sum = crc32c::crc32c(&out[SUM_LEN..records]);
        out[..SUM_LEN].copy_from_slice(&sum.to_be_bytes());
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// A decoded head of a frame.
pub(crate) struct Head {
    pub(crate) number: u64,
    pub(crate) last_non_append: u64,
    pub(crate) last: LogId,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) purged: Option<SnapshotMeta>,
    /// Length of the head in bytes: offset of the first record in the frame.
    pub(crate) len: u64,
    records_len: u64,
    table: Bytes,
}

impl Head {
    /// Lengths of the head and of the whole frame without padding, according to the first [`FIXED_LEN`] bytes of a head.
    pub(crate) fn lengths(mut fixed: &[u8]) -> (u64, u64) {
        fixed.advance(SUM_LEN);
        let state = u64::from(fixed.get_u32());
        fixed.advance(40);
        let count = u64::from(fixed.get_u32());
        let records = u64::from(fixed.get_u32());
        let head = FIXED_LEN as u64 + state + PER_RECORD as u64 * count;
        (head, head + records)
    }

    /// Decodes a head; `None` if `bytes` are not one.
    ///
    /// # Errors
    /// The head has a format that this version cannot read.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Option<Self>, CodecError> {
        let mut fixed = &bytes[..];
        if fixed.get_u32() != crc32c::crc32c(&bytes[SUM_LEN..]) {
            return Ok(None);
        }
        let state_len = fixed.get_u32() as usize;
        fixed.advance(8);
        let number = fixed.get_u64();
        let last_non_append = fixed.get_u64();
        let last = LogId { term: Term(fixed.get_u64()), index: LogIndex(fixed.get_u64()) };
        let count = u64::from(fixed.get_u32());
        let records_len = u64::from(fixed.get_u32());
        let state = &fixed[..state_len];
        let table = bytes.slice(FIXED_LEN + state_len..);
        let (hard_state, purged) =
            if state.is_empty() { (None, None) } else { codec::decode("frame", STATE_VERSION, state)? };
        let head = Self {
            number,
            last_non_append,
            last,
            hard_state,
            purged,
            len: bytes.len() as u64,
            records_len,
            table,
        };
        let sum: u64 = head.records().map(|(length, _)| u64::from(length)).sum();
        let is_possible =
            sum == records_len && count <= last.index.0 && number.max(last.index.0) <= COUNT_MAX;
        Ok(is_possible.then_some(head))
    }

    /// Length and checksum of each record.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.table.chunks_exact(PER_RECORD).map(|mut row| (row.get_u32(), row.get_u32()))
    }

    /// Length of the frame with padding, in bytes.
    pub(crate) fn frame_len(&self) -> u64 {
        (self.len + self.records_len).next_multiple_of(ALIGNMENT as u64)
    }

    /// Index before the first record.
    pub(crate) fn after(&self) -> LogIndex {
        LogIndex(self.last.index.0 - (self.table.len() / PER_RECORD) as u64)
    }
}

/// Writes correct checksums into a frame whose head has `head` bytes. For [`fuzzing`](crate::fuzzing).
pub(crate) fn seal(frame: &mut [u8], head: usize) {
    let mut at = head;
    for row in (FIXED_LEN + (&frame[SUM_LEN..]).get_u32() as usize..head).step_by(PER_RECORD) {
        let len = (&frame[row..]).get_u32() as usize;
        let Some(record) =
            at.checked_add(len).and_then(|end| frame.get_mut(at..end)).filter(|record| record.len() >= 5)
        else {
            break;
        };
        let sum = crc32c::crc32c(&record[5..]).to_be_bytes();
        record[1..5].copy_from_slice(&sum);
        frame[row + 4..row + 8].copy_from_slice(&sum);
        at += len;
    }
    let sum = crc32c::crc32c(&frame[SUM_LEN..head]);
    frame[..SUM_LEN].copy_from_slice(&sum.to_be_bytes());
}

/// Offset and length of each record in a frame that [`Frame::encode`] encoded.
pub(crate) fn records_of(frame: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    let (head, _) = Head::lengths(&frame[..FIXED_LEN]);
    let state_len = (&frame[SUM_LEN..]).get_u32() as usize;
    let table = &frame[FIXED_LEN + state_len..head as usize];
    table.chunks_exact(PER_RECORD).scan(head as u32, |at, mut row| {
        let (begin, length) = (*at, row.get_u32());
        *at += length;
        Some((begin, length))
    })
}

/// Frames start at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;
/// Length of the fixed part of a head.
pub(crate) const FIXED_LEN: usize = 56;
/// Offset of the salt in a head.
pub(crate) const SALT_AT: usize = 8;
const SUM_LEN: usize = 4;
/// Largest plausible frame number and index: a thousand million a second for a hundred years. Larger ones are damage.
const COUNT_MAX: u64 = 1 << 62;
const PER_RECORD: usize = 8;
const STATE_VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use consensus_core::{Membership, NodeId};

    use super::*;

    fn encoded(frame: &Frame<'_>) -> Bytes {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out.into()
    }

    /// The format of existing logs: this test may gain lines, but no line may change.
    #[test]
    fn golden_bytes_of_version_1() {
        let entries = [Entry::command(LogId::new(2, 3), "hi")];
        let frame = Frame {
            salt: 0x0102_0304_0506_0708,
            number: 5,
            last_non_append: 4,
            last: LogId::new(2, 3),
            hard_state: None,
            purged: None,
            entries: &entries,
        };
        let golden = [
            &[0x57, 0xec, 0x43, 0xaf, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8][..],
            &[0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4],
            &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3],
            &[0, 0, 0, 1, 0, 0, 0, 24],
            &[0, 0, 0, 24, 201, 117, 212, 170],
            &[1, 201, 117, 212, 170, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, b'h', b'i'],
        ]
        .concat();
        assert_eq!(encoded(&frame), golden);
        let hard_state = HardState { term: Term(7), ..HardState::default() };
        let purged = SnapshotMeta::default();
        let frame = Frame { hard_state: Some(&hard_state), purged: Some(&purged), entries: &[], ..frame };
        let bytes = encoded(&frame);
        assert_eq!(bytes[4..8], [0, 0, 0, 15]);
        assert_eq!(bytes[FIXED_LEN..], [1, 1, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn head_round_trips_and_bit_flips_are_refused() {
        let hard_state = HardState { term: Term(7), voted_for: Some(NodeId(2)), ..HardState::default() };
        let purged = SnapshotMeta { last: LogId::new(2, 1), membership: Membership::of_voters([1, 2]) };
        let entries = [Entry::command(LogId::new(2, 3), "hi"), Entry::command(LogId::new(3, 4), "")];
        let (hard_state, purged) = (Some(hard_state), Some(purged));
        let frame = Frame {
            salt: 1,
            number: 5,
            last_non_append: 4,
            last: LogId::new(3, 4),
            hard_state: hard_state.as_ref(),
            purged: purged.as_ref(),
            entries: &entries,
        };
        let bytes = encoded(&frame);
        let (head_len, frame_len) = Head::lengths(&bytes[..FIXED_LEN]);
        let good = bytes.slice(..head_len as usize);
        let head = Head::decode(&good).unwrap().unwrap();
        assert_eq!(
            (head.number, head.last_non_append, head.last, head.after()),
            (5, 4, frame.last, LogIndex(2))
        );
        assert_eq!((&head.hard_state, &head.purged), (&hard_state, &purged));
        assert_eq!((head.len, head.frame_len()), (head_len, bytes.len() as u64));
        assert_eq!(frame_len.next_multiple_of(8), bytes.len() as u64);
        let places: Vec<_> = records_of(&bytes).collect();
        for (entry, (at, len)) in entries.iter().zip(places) {
            assert_eq!(record::decode(&bytes.slice(at as usize..(at + len) as usize)).as_ref(), Ok(entry));
        }
        for bit in 0..8 * good.len() {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (len, _) = Head::lengths(&bad[..FIXED_LEN]);
            // The flip may have changed the length; a head that exceeds the bytes is refused as well.
            let bad = bytes
                .get(..len as usize)
                .map(|rest| [&bad[..], rest.get(bad.len()..).unwrap_or(&[])].concat());
            let found = bad.map(|bad| Head::decode(&Bytes::from(bad).slice(..len as usize)));
            assert!(found.is_none_or(|head| matches!(head, Ok(None))), "bit {bit}");
        }
    }
}
