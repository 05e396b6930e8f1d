//! For the crate `fuzz`: what is made of whatever stands in segments.

use std::{fs, path::Path, sync::Arc};

use consensus_core::{Entry, HardState, LogId, LogState, SnapshotMeta, StorageError, StorageId};
use consensus_storage_dir::Mark;

use crate::{
    frame::{ALIGNMENT, FIXED_LEN, Frame, Head, SALT_AT, seal},
    scan::Scan,
    segment::{Segment, write_whole},
};

/// What is found in segments of these `bodies`, with files in `dir`, of which nobody was told.
///
/// # Errors
/// They are no log.
pub fn scan(dir: &Path, bodies: &[&[u8]]) -> Result<LogState, StorageError> {
    let mut segments = Vec::new();
    for (sequence, body) in (1..).zip(bodies) {
        let path = write_whole(dir, sequence, SALT, body).expect("a directory that can be written");
        segments.push(Arc::new(Segment::open(dir, sequence)?));
        let _ = fs::remove_file(path);
    }
    Ok(Scan::of(&segments, Mark { writes: 0, file: 0 })?.take_state(StorageId(1)))
}

/// A frame, its checksums left to [`sealed`].
#[must_use]
pub fn frame(
    number: u64,
    settled: u64,
    last: LogId,
    state: Option<(&HardState, &SnapshotMeta)>,
    entries: &[Entry],
) -> Vec<u8> {
    let mut out = Vec::new();
    let (hard_state, purged) = state.unzip();
    Frame { salt: SALT, number, settled, last, hard_state, purged, entries }.encode(&mut out);
    out
}

/// The same bytes with all that would give a change away made right, in the frames that they begin with; and where those
/// end, one after the other.
#[must_use]
pub fn sealed(bytes: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends, mut at) = (bytes.to_vec(), Vec::new(), 0);
    while let Some(fixed) = bytes.get(at..at + FIXED_LEN) {
        let (head, frame) = Head::lengths(fixed);
        let Some(frame) = usize::try_from(frame).ok().and_then(|len| bytes.get_mut(at..at.checked_add(len)?))
        else {
            break;
        };
        frame[SALT_AT..SALT_AT + 8].copy_from_slice(&SALT.to_be_bytes());
        seal(frame, head as usize);
        at = (at + frame.len()).next_multiple_of(ALIGNMENT);
        ends.push(at.min(bytes.len()));
    }
    (bytes, ends)
}

const SALT: u64 = 7;
