//! Entry points for the fuzz targets: reads segments with arbitrary content.

use std::{fs, path::Path, sync::Arc};

use consensus_core::{Entry, HardState, LogId, LogState, SnapshotMeta, StorageError, StorageId};
use consensus_storage_dir::Mark;

use crate::{
    frame::{ALIGNMENT, FIXED_LEN, Frame, Head, SALT_AT, seal},
    scan::Scan,
    segment::{Segment, write_whole},
};

/// Reads segments with these `bodies`, without a mark. Files are created in `dir` and removed again.
///
/// # Errors
/// The bodies are not a log.
pub fn scan(dir: &Path, bodies: &[&[u8]]) -> Result<LogState, StorageError> {
    let mut segments = Vec::new();
    for (sequence, body) in (1..).zip(bodies) {
        let path = write_whole(dir, sequence, SALT, body).expect("a directory that can be written");
        segments.push(Arc::new(Segment::open(dir, sequence)?));
        let _ = fs::remove_file(path);
    }
    Ok(Scan::read(&segments, Mark { writes: 0, file: 0 })?.take_log_state(StorageId(1)))
}

/// Encodes a frame.
#[must_use]
pub fn frame(
    number: u64,
    last_non_append: u64,
    last: LogId,
    state: Option<(&HardState, &SnapshotMeta)>,
    entries: &[Entry],
) -> Vec<u8> {
    let mut out = Vec::new();
    let (hard_state, purged) = state.unzip();
    Frame { salt: SALT, number, last_non_append, last, hard_state, purged, entries }.encode(&mut out);
    out
}

/// Corrects salts and checksums of the frames at the start of `bytes`, so that changed frames are not refused for them.
/// Returns the bytes and the end of each frame.
#[must_use]
pub fn sealed(bytes: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = bytes.to_vec();
    let mut ends = Vec::new();
    let mut at = 0;
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
