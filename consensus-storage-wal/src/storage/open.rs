//! What is done when a log is opened.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, Mutex, RwLock},
};

use consensus_core::{NodeId, StorageError};
use consensus_storage_dir::{DataDir, Kind, Mark, MarkFile, Reserve};

use super::{SEGMENT_BYTES_MIN, Tail, WalLogStorage, Writer};
use crate::{
    frame::FIXED_LEN,
    prepare::Workshop,
    scan::Scan,
    segment::{Files, Segment},
};

pub(super) fn open(path: &Path, node: NodeId, segment_bytes: u64) -> Result<WalLogStorage, StorageError> {
    let dir = DataDir::open(path, KIND, node)?;
    let io = |source| StorageError::Io { context: format!("opening {}", path.display()), source };
    let place = dir.make_dir("segments").map_err(io)?;
    // A segment may have got its name right before the process was killed. What is written to it must not go with the name.
    File::open(&place).and_then(|place| place.sync_all()).map_err(io)?;
    let files = Files::of(&place).map_err(io)?;
    for left in &files.unfinished {
        fs::remove_file(left).map_err(io)?;
    }
    let mark_path = dir.path().join("MARK");
    let noted = MarkFile::open(&mark_path)?;
    let writes = noted.as_ref().map_or(Mark { writes: 0, file: 0 }, MarkFile::mark);
    let segments = segments(&place, &files, writes, segment_bytes)?;

    let mut scan = Scan::of(&segments, writes)?;
    if noted.is_none() && scan.number > 0 {
        let position = mark_path.display().to_string();
        return Err(StorageError::Corrupt {
            position,
            why: "it is missing, and the log holds data".to_owned(),
        });
    }
    let segment = segments[scan.end.segment].clone();
    settle(&scan, &segments, writes).map_err(|error| segment.io("writing", error))?;
    let found = Mark { writes: scan.number, file: segment.sequence };
    let mark = match noted {
        None => MarkFile::create(&mark_path, found)?,
        Some(mut mark) => {
            let written = mark.write(found).and_then(|()| mark.sync());
            written.map_err(io)?;
            mark
        }
    };
    let next = segments.get(scan.end.segment + 1).map(|next| next.sequence);
    drop(segments);
    let next = next.map(|sequence| Segment::open(&place, sequence).map(Arc::new)).transpose()?;
    let workshop = Workshop::new(&place, segment_bytes, next, files.spares).map_err(io)?;
    let state = scan.take_state(dir.storage());
    scan.index.retire(scan.purged.last.index).into_iter().for_each(|segment| workshop.retire(segment));
    let writer = Writer {
        tail: Tail { at: scan.end.at, len: segment.len().map_err(io)?, segment },
        number: scan.number,
        settled: scan.settled,
        hard_state: scan.hard_state,
        purged: scan.purged,
        mark,
        buffer: Vec::new(),
        found: Some(state),
        failed: None,
        #[cfg(test)]
        broken: Arc::default(),
    };
    let (index, reserve) = (RwLock::new(scan.index), Reserve::new(dir.path(), 0));
    Ok(WalLogStorage { index, writer: Mutex::new(writer), segment_bytes, reserve, workshop, dir })
}

/// Opens all segments; makes the first one if the log is new.
fn segments(
    place: &Path,
    files: &Files,
    noted: Mark,
    segment_bytes: u64,
) -> Result<Vec<Arc<Segment>>, StorageError> {
    let position = place.display().to_string();
    if !files.segments.is_empty() {
        return files.segments.iter().map(|sequence| Segment::open(place, *sequence).map(Arc::new)).collect();
    }
    if noted.writes > 0 {
        let why = format!("there are no segments, and {} records were written", noted.writes);
        return Err(StorageError::Corrupt { position, why });
    }
    // Most logs in tests, and some in the world, never need more.
    let len = (segment_bytes / FIRST_SHARE).max(SEGMENT_BYTES_MIN);
    let first = Segment::create(place, 1, len, &mut |_| true);
    let context = format!("making the first segment in {position}");
    let first = first.map_err(|source| StorageError::Io { context, source })?;
    Ok(vec![Arc::new(first)])
}

/// What was found may not be lost any more, and what was not must not come back.
fn settle(scan: &Scan, segments: &[Arc<Segment>], noted: Mark) -> io::Result<()> {
    let Scan { begin, end, torn, .. } = scan;
    let tail = &segments[end.segment];
    if scan.number > noted.writes {
        // Its sync failed, or the process was killed before that. After one that failed the system takes what is in memory
        // for written: it has to be written again.
        let mut frame = vec![0; (end.at - begin) as usize];
        tail.read_exact(&mut frame, *begin)?;
        tail.write(&frame, *begin)?;
    }
    // The head of a torn frame would look like that of a damaged one when others are written elsewhere, to this segment or the
    // next.
    if let Some(torn) = torn {
        segments[torn.segment].write_synced(&[0; FIXED_LEN], torn.at)?;
    }
    let room = tail.len()?.saturating_sub(end.at).min(FIXED_LEN as u64);
    tail.write(&[0; FIXED_LEN][..room as usize], end.at)?;
    tail.sync()
}

const KIND: Kind = Kind { name: "raft-wal", oldest: 1, format: 1 };
/// The first segment of a log is so much shorter than the others.
const FIRST_SHARE: u64 = 16;
