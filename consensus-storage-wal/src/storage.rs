//! The log storage: writes and reads of a log in segments.

mod open;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, NodeId, SnapshotMeta, StorageError,
    record,
};
use consensus_storage_dir::{DataDir, Mark, MarkFile, Reserve};

use crate::{
    allocator::{AllocateError, SegmentAllocator, SegmentSpec, WHOLE, allocate_error},
    frame::{Frame, records_of},
    index::{Index, RecordLocation, Run},
    scan::Scan,
    segment::{FIRST_FRAME, SEGMENT_BYTES_MAX, Segment},
};

/// A [`LogStorage`] in segment files of a directory.
#[derive(Debug)]
pub struct WalLogStorage {
    index: RwLock<Index>,
    writer: Mutex<Writer>,
    segment_bytes: u64,
    reserve: Reserve,
    /// Declared before `dir`, so that its thread ends before the directory is unlocked.
    allocator: SegmentAllocator,
    dir: DataDir,
}

/// State of the one writer.
#[derive(Debug)]
struct Writer {
    tail: Tail,
    /// Number of the last frame.
    number: u64,
    /// Number of the last frame that did more than append entries.
    last_non_append: u64,
    hard_state: HardState,
    purged: SnapshotMeta,
    mark: MarkFile,
    /// Buffer of the encoded frame, reused for every write.
    buffer: Vec<u8>,
    /// State that was found when the log was opened, until the first load or write.
    found: Option<LogState>,
    /// Error of a failed write, after which all writes are refused.
    failed: Option<String>,
    /// Makes writes fail after half of the frame.
    #[cfg(test)]
    fail_writes: Arc<std::sync::atomic::AtomicBool>,
}

/// Position of the next frame.
#[derive(Debug)]
struct Tail {
    segment: Arc<Segment>,
    /// Offset in the segment.
    at: u64,
    /// Length of the segment in bytes.
    len: u64,
}

/// Effect of a batch on the log.
struct Plan {
    /// Last entry before the appended ones.
    after: LogId,
    /// Last entry of the log after the batch.
    last: LogId,
    /// The batch does more than append entries.
    is_non_append: bool,
}

impl WalLogStorage {
    /// Opens the log of `node` in the directory `path`; creates it if it does not exist. Segments have 64 MiB.
    ///
    /// # Errors
    /// The directory belongs to another node, is in use, or cannot be read or created; or data other than entries is damaged.
    pub fn open(path: &Path, node: NodeId) -> Result<Self, StorageError> {
        Self::open_with_segment_bytes(path, node, SEGMENT_BYTES)
    }

    /// Like [`open`](Self::open), with segments of `bytes` (4 KiB to 1 GiB; other values are adjusted to this range). Each new
    /// segment is filled with zeros in the background; segments of a log that is purged are reused. Larger segments are
    /// allocated less often and take more disk space. The first segments of a new log are shorter.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with_segment_bytes(path: &Path, node: NodeId, bytes: u64) -> Result<Self, StorageError> {
        open::open(path, node, bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX))
    }

    /// Refuses commands ([`StorageError::NoRoom`], not final) that would leave less than `bytes` free on the disk. The log
    /// itself writes to space that it allocated before; the reserve protects a state machine on the same disk. Default: 0.
    #[must_use]
    pub fn with_reserve(mut self, bytes: u64) -> Self {
        self.reserve = Reserve::new(self.dir.path(), bytes);
        self
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Determines the effect of `batch`; refuses one that does not fit the log.
    fn plan_write(&self, writer: &Writer, batch: &LogBatch) -> Result<Plan, StorageError> {
        let index = self.index();
        let mut purged = writer.purged.last;
        let mut after = index.last();
        if let Some(meta) = &batch.purge {
            if meta.last.index < purged.index {
                let why = format!(
                    "a purge up to index {}, but the log is purged up to {} already",
                    meta.last.index, purged.index
                );
                return Err(StorageError::Misuse(why));
            }
            purged = meta.last;
            if purged.index >= after.index {
                after = purged;
            }
        }
        let cut = batch.truncate_after.map(|cut| cut.max(purged.index)).filter(|cut| *cut < after.index);
        if let Some(cut) = cut {
            after = if cut == purged.index {
                purged
            } else {
                index.id_of(cut).unwrap_or(LogId { index: cut, ..purged })
            };
        }
        let first = index.id_of(purged.index.next()).filter(|first| first.index <= after.index);
        if let Some(first) = first.filter(|first| first.term < purged.term) {
            return Err(StorageError::Misuse(format!(
                "a purge up to {purged}, but the next entry {first} has an older term"
            )));
        }
        let mut last = after;
        for entry in &batch.entries {
            if entry.id.index != last.index.next() || entry.id.term < last.term {
                return Err(StorageError::Misuse(format!("entry {} does not follow entry {last}", entry.id)));
            }
            last = entry.id;
        }
        let bytes: u64 = batch.entries.iter().map(Entry::size_bytes).sum();
        if bytes > BATCH_BYTES_MAX {
            return Err(StorageError::Misuse(format!(
                "a batch of {bytes} bytes exceeds the limit of {BATCH_BYTES_MAX} bytes"
            )));
        }
        let is_non_append = batch.hard_state.is_some() || batch.purge.is_some() || cut.is_some();
        Ok(Plan { after, last, is_non_append })
    }

    /// Encodes the frame of `batch` into the buffer, and moves the tail to a new segment if the current one is too full.
    /// Writes nothing to the log.
    fn encode(&self, writer: &mut Writer, plan: &Plan, batch: &LogBatch) -> Result<(), AllocateError> {
        writer.encode(plan, batch);
        if writer.fits(batch, self.allocator.is_ready()) {
            return Ok(());
        }
        // An empty segment has to be extended: another empty one would not be longer.
        if writer.tail.at == FIRST_FRAME {
            return self.extend_segment(&mut writer.tail, writer.buffer.len());
        }
        let segment = self.next_segment(&writer.tail, !batch.must_leave_reserve())?;
        let len = segment.len().map_err(AllocateError::Failed)?;
        let full = std::mem::replace(&mut writer.tail, Tail { segment, at: FIRST_FRAME, len });
        writer.encode(plan, batch);
        if !writer.fits(batch, false)
            && let Err(why) = self.extend_segment(&mut writer.tail, writer.buffer.len())
        {
            self.allocator.put_back(std::mem::replace(&mut writer.tail, full).segment);
            return Err(why);
        }
        Ok(())
    }

    /// The segment after `tail`. For batches without commands, such as votes, it may use the reserve, and may be short.
    fn next_segment(&self, tail: &Tail, may_use_reserve: bool) -> Result<Arc<Segment>, AllocateError> {
        let spec = self.next_spec(tail);
        if !may_use_reserve {
            return self.allocator.take(&spec);
        }
        let spec = SegmentSpec { reserve: Reserve::new(self.dir.path(), 0), ..spec };
        match self.allocator.take(&spec) {
            Err(AllocateError::NoRoom(_)) => {
                self.allocator.take(&SegmentSpec { len: spec.len.min(2 * RESERVED_BYTES), ..spec })
            }
            taken => taken,
        }
    }

    /// Extends an empty segment for a frame that is longer than the segment.
    fn extend_segment(&self, tail: &mut Tail, frame: usize) -> Result<(), AllocateError> {
        let len = tail.at + frame as u64 + RESERVED_BYTES;
        self.reserve.check(len.saturating_sub(tail.len)).map_err(AllocateError::NoRoom)?;
        tail.segment.extend(len).map_err(|error| allocate_error(self.dir.path(), error))?;
        tail.len = len;
        Ok(())
    }

    /// Makes the written entries visible to readers.
    fn publish(&self, writer: &mut Writer, plan: &Plan, batch: &LogBatch) {
        let mut index = self.index_mut();
        if let Some(purge) = &batch.purge {
            index.purge(purge.last);
        }
        index.truncate_after(plan.after);
        if writer.tail.at == FIRST_FRAME {
            index.start_segment(writer.tail.segment.clone(), plan.after.index);
        }
        for (entry, (at, len)) in batch.entries.iter().zip(records_of(&writer.buffer)) {
            index.push(entry.id.term, RecordLocation { at: writer.tail.at as u32 + at, len });
        }
    }

    /// Reclaims segments that are not needed any more, and requests the next one in time.
    fn maintain_segments(&self, writer: &Writer, purged: bool) {
        let tail = &writer.tail;
        if purged {
            let purged_segments = self.index_mut().take_purged_segments(writer.purged.last.index);
            if !purged_segments.is_empty() {
                purged_segments.into_iter().for_each(|segment| self.allocator.reclaim(segment));
                self.allocator.request_again(&self.next_spec(tail));
            }
        }
        if tail.len >= self.segment_bytes || tail.at > tail.len / 4 {
            self.allocator.request(tail.at * WHOLE / tail.len, || self.next_spec(tail));
        }
    }

    /// The segment to allocate after `tail`. The first segments of a new log are short, and each is twice as long as the one
    /// before: a small log takes little space, and a busy log never waits for a long segment.
    fn next_spec(&self, tail: &Tail) -> SegmentSpec {
        let len = (2 * tail.len).min(self.segment_bytes);
        SegmentSpec { sequence: tail.segment.sequence + 1, len, reserve: self.reserve.clone() }
    }
}

impl Writer {
    fn encode(&mut self, plan: &Plan, batch: &LogBatch) {
        // The first frame of a segment contains the whole state, so that older segments are needed for entries only.
        let is_first = self.tail.at == FIRST_FRAME;
        let frame = Frame {
            salt: self.tail.segment.salt,
            number: self.number + 1,
            last_non_append: self.last_non_append,
            last: plan.last,
            hard_state: batch.hard_state.as_ref().or(is_first.then_some(&self.hard_state)),
            purged: batch.purge.as_ref().or(is_first.then_some(&self.purged)),
            entries: &batch.entries,
        };
        frame.encode(&mut self.buffer);
    }

    /// Whether the frame in the buffer fits in the segment. The end of a segment is reserved for batches without entries, such as
    /// votes, in case no other segment can be allocated: a node whose votes have no room takes no part in elections.
    fn fits(&self, batch: &LogBatch, next_is_ready: bool) -> bool {
        let may_be_last = batch.entries.is_empty() && !next_is_ready;
        let kept = if may_be_last { 0 } else { RESERVED_BYTES.min(self.tail.len / 8) };
        self.tail.at + self.buffer.len() as u64 + kept <= self.tail.len
    }

    /// Writes and syncs the frame in the buffer, then writes the mark.
    fn write(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_writes.load(std::sync::atomic::Ordering::Relaxed) {
            self.tail.segment.write_synced(&self.buffer[..self.buffer.len() / 2], self.tail.at)?;
            return Err(io::Error::other("the test broke the disk"));
        }
        self.tail.segment.write_synced(&self.buffer, self.tail.at)?;
        self.number += 1;
        self.mark.write(Mark { writes: self.number, file: self.tail.segment.sequence })
    }

    fn fail(&mut self, doing: &str, source: io::Error) -> StorageError {
        self.failed = Some(source.to_string());
        self.tail.segment.io_error(doing, source)
    }

    /// Moves the tail behind the written frame, and takes over the state of `batch`.
    fn advance(&mut self, plan: &Plan, batch: LogBatch) {
        self.tail.at += self.buffer.len() as u64;
        if plan.is_non_append {
            self.last_non_append = self.number;
        }
        self.hard_state = batch.hard_state.unwrap_or_else(|| std::mem::take(&mut self.hard_state));
        self.purged = batch.purge.unwrap_or_else(|| std::mem::take(&mut self.purged));
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
    }
}

impl LogStorage for WalLogStorage {
    fn load(&self) -> Result<LogState, StorageError> {
        let mut writer = self.writer();
        if let Some(found) = writer.found.take() {
            return Ok(found);
        }
        let segments = self.index().segments();
        Ok(Scan::read(&segments, writer.mark.mark())?.take_log_state(self.dir.storage()))
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let mut writer = self.writer();
        if let Some(why) = &writer.failed {
            return Err(StorageError::Failed(why.clone()));
        }
        let plan = self.plan_write(&writer, &batch)?;
        if batch.must_leave_reserve() {
            let bytes = batch.entries.iter().map(Entry::size_bytes).sum();
            if let Err(why) = self.reserve.check(bytes) {
                return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        match self.encode(&mut writer, &plan, &batch) {
            Ok(()) => {}
            Err(AllocateError::NoRoom(why)) => {
                return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
            }
            Err(AllocateError::Failed(source)) => {
                return Err(writer.fail("allocating a segment after", source));
            }
        }
        writer.found = None;
        if let Err(source) = writer.write() {
            return Err(writer.fail("writing", source));
        }
        self.publish(&mut writer, &plan, &batch);
        let purged = batch.purge.is_some();
        writer.advance(&plan, batch);
        self.maintain_segments(&writer, purged);
        Ok(())
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = after;
        let mut first_truncations = None;
        while next < last {
            let (runs, truncations) =
                self.locate(next, last, max_bytes.saturating_sub(bytes), entries.is_empty());
            // After a truncation, later entries do not belong to those that were read before.
            if runs.is_empty() || *first_truncations.get_or_insert(truncations) != truncations {
                break;
            }
            for run in runs {
                for entry in read_run(&run)? {
                    bytes += entry.size_bytes();
                    if !entries.is_empty() && bytes > max_bytes {
                        return Ok(entries);
                    }
                    next = entry.id.index;
                    entries.push(entry);
                }
            }
        }
        if entries.is_empty() && after < last {
            let index = self.index();
            return Err(StorageError::Missing {
                index: after.next(),
                purged: index.base(),
                last: index.last().index,
            });
        }
        Ok(entries)
    }
}

impl WalLogStorage {
    /// Locations of entries of about `max_bytes` in total, and the number of truncations so far. The size of an entry is
    /// estimated from its record. The estimate is wrong for configurations, so the caller may have to call again.
    fn locate(&self, after: LogIndex, last: LogIndex, max_bytes: u64, at_least_one: bool) -> (Vec<Run>, u64) {
        let index = self.index();
        let mut bytes = 0;
        let mut forced = at_least_one;
        let runs = index.runs(after, last, |location| {
            bytes += u64::from(location.len).saturating_sub(RECORD_HEAD_BYTES) + ENTRY_HEAD_BYTES;
            std::mem::take(&mut forced) || bytes <= max_bytes
        });
        (runs, index.truncations())
    }
}

/// Reads the entries of a run with one call. Their payloads are slices of the same buffer.
fn read_run(run: &Run) -> Result<Vec<Entry>, StorageError> {
    let first = run.locations[0];
    let last = run.locations[run.locations.len() - 1];
    let mut bytes = vec![0; (u64::from(last.at) + u64::from(last.len) - u64::from(first.at)) as usize];
    let segment = &run.segment;
    segment.read_exact(&mut bytes, first.at.into()).map_err(|error| segment.io_error("reading", error))?;
    let bytes = Bytes::from(bytes);
    let entry = |(index, location): (u64, &RecordLocation)| {
        let begin = (location.at - first.at) as usize;
        let found = record::decode(&bytes.slice(begin..begin + location.len as usize));
        let why = match found {
            Ok(entry) if entry.id.index.0 == index => return Ok(entry),
            Ok(entry) => format!("it holds entry {}", entry.id),
            Err(error) => error.to_string(),
        };
        let position = format!("the record of log index {index} at {}", segment.position(location.at.into()));
        Err(StorageError::Corrupt { position, why })
    };
    (run.index.0..).zip(&run.locations).map(entry).collect()
}

const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// Keeps offsets and lengths within a segment below 32 bits.
const BATCH_BYTES_MAX: u64 = 2 << 30;
/// Bytes at the end of each segment (at most an eighth of it) that are reserved for batches without entries: enough for
/// hundreds of votes.
const RESERVED_BYTES: u64 = 64 << 10;
/// A longer buffer is freed after the write. Engines usually write less than this at a time.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// Bytes of a record beyond its command, and bytes that [`Entry::size_bytes`] counts beyond the command.
const RECORD_HEAD_BYTES: u64 = 22;
const ENTRY_HEAD_BYTES: u64 = 32;
