//! Opens a log: reads it, repairs a torn end, and prepares the writer.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, Mutex, RwLock},
};

use consensus_core::{NodeId, StorageError};
use consensus_storage_dir::{DataDir, DirKind, Mark, MarkFile, Reserve};

use super::{SEGMENT_BYTES_MIN, Tail, WalLogStorage, Writer};
use crate::{
    allocator::SegmentAllocator,
    frame::FIXED_LEN,
    scan::Scan,
    segment::{Files, Segment},
};

pub(super) fn open(path: &Path, node: NodeId, segment_bytes: u64) -> Result<WalLogStorage, StorageError> {
    let dir = DataDir::open(path, KIND, node)?;
    let io = |source| StorageError::Io { context: format!("opening {}", path.display()), source };
    let segments_dir = dir.create_dir("segments").map_err(io)?;
    // The process may have been killed right after it renamed a segment. The new name must be durable before frames are
    // written to the segment.
    File::open(&segments_dir).and_then(|segments_dir| segments_dir.sync_all()).map_err(io)?;
    let files = Files::list(&segments_dir).map_err(io)?;
    for left in &files.unfinished {
        fs::remove_file(left).map_err(io)?;
    }
    let mark_path = dir.path().join("MARK");
    let found_mark = MarkFile::open(&mark_path)?;
    let writes = found_mark.as_ref().map_or(Mark { writes: 0, file: 0 }, MarkFile::mark);
    let segments = segments(&segments_dir, &files, writes, segment_bytes)?;

    let mut scan = Scan::read(&segments, writes)?;
    if found_mark.is_none() && scan.number > 0 {
        let position = mark_path.display().to_string();
        return Err(StorageError::Corrupt {
            position,
            why: "it is missing, but the log contains data".to_owned(),
        });
    }
    let segment = segments[scan.end.segment].clone();
    make_end_durable(&scan, &segments, writes).map_err(|error| segment.io_error("writing", error))?;
    let found = Mark { writes: scan.number, file: segment.sequence };
    let mark = match found_mark {
        None => MarkFile::create(&mark_path, found)?,
        Some(mut mark) => {
            let written = mark.write(found).and_then(|()| mark.sync());
            written.map_err(io)?;
            mark
        }
    };
    let next = segments.get(scan.end.segment + 1).map(|next| next.sequence);
    drop(segments);
    let next = next.map(|sequence| Segment::open(&segments_dir, sequence).map(Arc::new)).transpose()?;
    let allocator = SegmentAllocator::new(&segments_dir, segment_bytes, next, files.spares).map_err(io)?;
    let state = scan.take_log_state(dir.storage());
    scan.index
        .take_purged_segments(scan.purged.last.index)
        .into_iter()
        .for_each(|segment| allocator.reclaim(segment));
    let writer = Writer {
        tail: Tail { at: scan.end.at, len: segment.len().map_err(io)?, segment },
        number: scan.number,
        last_non_append: scan.last_non_append,
        hard_state: scan.hard_state,
        purged: scan.purged,
        mark,
        buffer: Vec::new(),
        found: Some(state),
        failed: None,
        #[cfg(test)]
        fail_writes: Arc::default(),
    };
    let (index, reserve) = (RwLock::new(scan.index), Reserve::new(dir.path(), 0));
    Ok(WalLogStorage { index, writer: Mutex::new(writer), segment_bytes, reserve, allocator, dir })
}

/// Opens all segments; creates the first one if the log is new.
fn segments(
    segments_dir: &Path,
    files: &Files,
    found_mark: Mark,
    segment_bytes: u64,
) -> Result<Vec<Arc<Segment>>, StorageError> {
    let position = segments_dir.display().to_string();
    if !files.segments.is_empty() {
        return files
            .segments
            .iter()
            .map(|sequence| Segment::open(segments_dir, *sequence).map(Arc::new))
            .collect();
    }
    if found_mark.writes > 0 {
        let why = format!("there are no segments, but {} frames were written", found_mark.writes);
        return Err(StorageError::Corrupt { position, why });
    }
    // Most logs in tests, and some in production, never need more.
    let len = (segment_bytes / FIRST_SHARE).max(SEGMENT_BYTES_MIN);
    let first = Segment::create(segments_dir, 1, len, &mut |_| true);
    let context = format!("creating the first segment in {position}");
    let first = first.map_err(|source| StorageError::Io { context, source })?;
    Ok(vec![Arc::new(first)])
}

/// Makes the last frame durable, and removes the remains of torn frames, so that later opens find the same log.
fn make_end_durable(scan: &Scan, segments: &[Arc<Segment>], found_mark: Mark) -> io::Result<()> {
    let Scan { begin, end, torn, .. } = scan;
    let tail = &segments[end.segment];
    if scan.number > found_mark.writes {
        // The sync of the last frame failed, or the process was killed before it wrote the mark. After a failed sync the
        // operating system treats the cached data as written, so the frame has to be written again.
        let mut frame = vec![0; (end.at - begin) as usize];
        tail.read_exact(&mut frame, *begin)?;
        tail.write(&frame, *begin)?;
    }
    // Once later frames exist, the head of the torn frame would look like the head of a damaged one.
    if let Some(torn) = torn {
        segments[torn.segment].write_synced(&[0; FIXED_LEN], torn.at)?;
    }
    let room = tail.len()?.saturating_sub(end.at).min(FIXED_LEN as u64);
    tail.write(&[0; FIXED_LEN][..room as usize], end.at)?;
    tail.sync()
}

const KIND: DirKind = DirKind { name: "raft-wal", oldest_format: 1, format: 1 };
/// The first segment of a log has this fraction of the usual length.
const FIRST_SHARE: u64 = 16;
