//! The log in segments.

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
    frame::{Frame, records_of},
    index::{Index, Place, Run},
    prepare::{ALL, NotMade, Wanted, Workshop, not_made},
    scan::Scan,
    segment::{FIRST_FRAME, SEGMENT_BYTES_MAX, Segment},
};

/// A [`LogStorage`] in a directory.
#[derive(Debug)]
pub struct WalLogStorage {
    index: RwLock<Index>,
    writer: Mutex<Writer>,
    segment_bytes: u64,
    reserve: Reserve,
    /// Before the directory: its thread ends before the directory is given back.
    workshop: Workshop,
    dir: DataDir,
}

/// What the next write needs.
#[derive(Debug)]
struct Writer {
    tail: Tail,
    /// Number of the last frame, and of the last one that did more than to append.
    number: u64,
    settled: u64,
    hard_state: HardState,
    purged: SnapshotMeta,
    mark: MarkFile,
    /// The frame, kept for the next one.
    buffer: Vec<u8>,
    /// What was found when the log was opened, until it is asked for.
    found: Option<LogState>,
    failed: Option<String>,
    /// Writes come half to their end and fail.
    #[cfg(test)]
    broken: Arc<std::sync::atomic::AtomicBool>,
}

/// Where the next frame goes.
#[derive(Debug)]
struct Tail {
    segment: Arc<Segment>,
    at: u64,
    /// Of the segment.
    len: u64,
}

/// What a batch makes of the log.
struct Plan {
    /// The last entry that stays, and the last one then.
    after: LogId,
    last: LogId,
    /// It does more than to append.
    settles: bool,
}

impl WalLogStorage {
    /// Opens the log of `node` in the directory `path`, making it if it is not there.
    ///
    /// # Errors
    /// The directory is another's or in use, cannot be read or made, or something in it is damaged but for entries.
    pub fn open(path: &Path, node: NodeId) -> Result<Self, StorageError> {
        Self::open_with_segment_bytes(path, node, SEGMENT_BYTES)
    }

    /// The same with segments of `bytes`, at least 4 KiB, at most 1 GiB. Each is written once more than it would have to
    /// be, in the background and ahead of time; a log that is purged uses the same ones again. With large ones that comes
    /// less often, and more room is taken. A new log begins with shorter ones. Default: 64 MiB.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with_segment_bytes(path: &Path, node: NodeId, bytes: u64) -> Result<Self, StorageError> {
        open::open(path, node, bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX))
    }

    /// Has entries refused ([`StorageError::NoRoom`], not final) that would leave less than `bytes` of room on the disk.
    /// The log has the room for what is written next already; a state machine beside it may not. Default: none.
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

    /// Refuses what does not fit the log.
    fn plan(&self, writer: &Writer, batch: &LogBatch) -> Result<Plan, StorageError> {
        let index = self.index();
        let (mut purged, mut after) = (writer.purged.last, index.last());
        if let Some(meta) = &batch.purge {
            if meta.last.index < purged.index {
                let why = format!("a purge up to {}, after one up to {}", meta.last.index, purged.index);
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
            return Err(StorageError::Misuse(format!("a purge up to {purged}, before entry {first}")));
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
                "a batch of {bytes} bytes, the most is {BATCH_BYTES_MAX}"
            )));
        }
        let settles = batch.hard_state.is_some() || batch.purge.is_some() || cut.is_some();
        Ok(Plan { after, last, settles })
    }

    /// Fills the buffer with the frame of `batch`, and finds a place for it. Nothing is written to the log here.
    fn encode(&self, writer: &mut Writer, plan: &Plan, batch: &LogBatch) -> Result<(), NotMade> {
        writer.encode(plan, batch);
        if writer.fits(batch, self.workshop.is_ready()) {
            return Ok(());
        }
        // Another segment than one that is empty is of no use.
        if writer.tail.at == FIRST_FRAME {
            return self.make_longer(&mut writer.tail, writer.buffer.len());
        }
        let segment = self.next_segment(&writer.tail, !batch.must_leave_reserve())?;
        let len = segment.len().map_err(NotMade::Failed)?;
        let full = std::mem::replace(&mut writer.tail, Tail { segment, at: FIRST_FRAME, len });
        writer.encode(plan, batch);
        if !writer.fits(batch, false)
            && let Err(why) = self.make_longer(&mut writer.tail, writer.buffer.len())
        {
            self.workshop.put_back(std::mem::replace(&mut writer.tail, full).segment);
            return Err(why);
        }
        Ok(())
    }

    /// The segment after `tail`. What has no commands, such as a vote, may use the reserve for it, and a short one will do.
    fn next_segment(&self, tail: &Tail, may_use_reserve: bool) -> Result<Arc<Segment>, NotMade> {
        let wanted = self.next(tail);
        if !may_use_reserve {
            return self.workshop.take(&wanted);
        }
        let wanted = Wanted { reserve: Reserve::new(self.dir.path(), 0), ..wanted };
        match self.workshop.take(&wanted) {
            Err(NotMade::NoRoom(_)) => {
                self.workshop.take(&Wanted { len: wanted.len.min(2 * KEPT_BYTES), ..wanted })
            }
            taken => taken,
        }
    }

    /// Makes room in an empty segment for a frame that is longer than others.
    fn make_longer(&self, tail: &mut Tail, frame: usize) -> Result<(), NotMade> {
        let len = tail.at + frame as u64 + KEPT_BYTES;
        self.reserve.check(len.saturating_sub(tail.len)).map_err(NotMade::NoRoom)?;
        tail.segment.extend(len).map_err(|error| not_made(self.dir.path(), error))?;
        tail.len = len;
        Ok(())
    }

    /// What was written is told to the readers.
    fn publish(&self, writer: &mut Writer, plan: &Plan, batch: &LogBatch) {
        let mut index = self.index_mut();
        if let Some(purge) = &batch.purge {
            index.purge(purge.last);
        }
        index.cut(plan.after);
        if writer.tail.at == FIRST_FRAME {
            index.begin_segment(writer.tail.segment.clone(), plan.after.index);
        }
        for (entry, (at, len)) in batch.entries.iter().zip(records_of(&writer.buffer)) {
            index.push(entry.id.term, Place { at: writer.tail.at as u32 + at, len });
        }
    }

    /// Segments that are not needed go; and it is time for a new one.
    fn tidy_up(&self, writer: &Writer, purged: bool) {
        let tail = &writer.tail;
        if purged {
            let retired = self.index_mut().retire(writer.purged.last.index);
            if !retired.is_empty() {
                retired.into_iter().for_each(|segment| self.workshop.retire(segment));
                self.workshop.order_again(&self.next(tail));
            }
        }
        if tail.len >= self.segment_bytes || tail.at > tail.len / 4 {
            self.workshop.order(tail.at * ALL / tail.len, || self.next(tail));
        }
    }

    /// Segments of a new log are short at first, and each is twice as long as the one before: a small log takes little
    /// room, and a busy one does not wait for much.
    fn next(&self, tail: &Tail) -> Wanted {
        let len = (2 * tail.len).min(self.segment_bytes);
        Wanted { sequence: tail.segment.sequence + 1, len, reserve: self.reserve.clone() }
    }
}

impl Writer {
    fn encode(&mut self, plan: &Plan, batch: &LogBatch) {
        // A segment begins with everything that is not an entry.
        let is_first = self.tail.at == FIRST_FRAME;
        let frame = Frame {
            salt: self.tail.segment.salt,
            number: self.number + 1,
            settled: self.settled,
            last: plan.last,
            hard_state: batch.hard_state.as_ref().or(is_first.then_some(&self.hard_state)),
            purged: batch.purge.as_ref().or(is_first.then_some(&self.purged)),
            entries: &batch.entries,
        };
        frame.encode(&mut self.buffer);
    }

    /// Whether what is in the buffer has room in the segment. The last of it is for what is never refused, if there is no
    /// room for another segment.
    fn fits(&self, batch: &LogBatch, next_is_ready: bool) -> bool {
        let may_be_last = batch.entries.is_empty() && !next_is_ready;
        let kept = if may_be_last { 0 } else { KEPT_BYTES.min(self.tail.len / 8) };
        self.tail.at + self.buffer.len() as u64 + kept <= self.tail.len
    }

    /// Makes what is in the buffer durable, and notes that.
    fn write(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if self.broken.load(std::sync::atomic::Ordering::Relaxed) {
            self.tail.segment.write_synced(&self.buffer[..self.buffer.len() / 2], self.tail.at)?;
            return Err(io::Error::other("the test broke the disk"));
        }
        self.tail.segment.write_synced(&self.buffer, self.tail.at)?;
        self.number += 1;
        self.mark.write(Mark { writes: self.number, file: self.tail.segment.sequence })
    }

    fn fail(&mut self, doing: &str, source: io::Error) -> StorageError {
        self.failed = Some(source.to_string());
        self.tail.segment.io(doing, source)
    }

    /// What `batch` changes besides entries, and where the next frame goes.
    fn go_on(&mut self, plan: &Plan, batch: LogBatch) {
        self.tail.at += self.buffer.len() as u64;
        if plan.settles {
            self.settled = self.number;
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
        Ok(Scan::of(&segments, writer.mark.mark())?.take_state(self.dir.storage()))
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let mut writer = self.writer();
        if let Some(why) = &writer.failed {
            return Err(StorageError::Failed(why.clone()));
        }
        let plan = self.plan(&writer, &batch)?;
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
            Err(NotMade::NoRoom(why)) if !batch.entries.is_empty() => {
                return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
            }
            Err(NotMade::NoRoom(why)) => {
                return Err(writer.fail("going on after", io::Error::new(io::ErrorKind::StorageFull, why)));
            }
            Err(NotMade::Failed(source)) => return Err(writer.fail("going on after", source)),
        }
        writer.found = None;
        if let Err(source) = writer.write() {
            return Err(writer.fail("writing", source));
        }
        self.publish(&mut writer, &plan, &batch);
        let purged = batch.purge.is_some();
        writer.go_on(&plan, batch);
        self.tidy_up(&writer, purged);
        Ok(())
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let (mut entries, mut bytes, mut next, mut cuts) = (Vec::new(), 0, after, None);
        while next < last {
            let (runs, now) = self.places(next, last, max_bytes.saturating_sub(bytes), entries.is_empty());
            // What was cut meanwhile and what came in its place do not belong together.
            if runs.is_empty() || *cuts.get_or_insert(now) != now {
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
            let (purged, last) = (index.base(), index.last().index);
            return Err(StorageError::Missing { index: after.next(), purged, last });
        }
        Ok(entries)
    }
}

impl WalLogStorage {
    /// Where entries are that have about `max_bytes`, and how often the log was cut before. A record is about as long as
    /// its entry's size, but for configurations: with those the caller has to ask again.
    fn places(&self, after: LogIndex, last: LogIndex, max_bytes: u64, at_least_one: bool) -> (Vec<Run>, u64) {
        let (index, mut bytes, mut forced) = (self.index(), 0, at_least_one);
        let runs = index.runs(after, last, |place| {
            bytes += u64::from(place.len).saturating_sub(RECORD_HEAD_BYTES) + ENTRY_HEAD_BYTES;
            std::mem::take(&mut forced) || bytes <= max_bytes
        });
        (runs, index.cuts())
    }
}

/// The entries of a run; their payloads are slices of what is read here at once.
fn read_run(run: &Run) -> Result<Vec<Entry>, StorageError> {
    let (first, last) = (run.places[0], run.places[run.places.len() - 1]);
    let mut bytes = vec![0; (u64::from(last.at) + u64::from(last.len) - u64::from(first.at)) as usize];
    let segment = &run.segment;
    segment.read_exact(&mut bytes, first.at.into()).map_err(|error| segment.io("reading", error))?;
    let bytes = Bytes::from(bytes);
    let entry = |(index, place): (u64, &Place)| {
        let begin = (place.at - first.at) as usize;
        let found = record::decode(&bytes.slice(begin..begin + place.len as usize));
        let why = match found {
            Ok(entry) if entry.id.index.0 == index => return Ok(entry),
            Ok(entry) => format!("it holds entry {}", entry.id),
            Err(error) => error.to_string(),
        };
        let position = format!("the record of log index {index} at {}", segment.position(place.at.into()));
        Err(StorageError::Corrupt { position, why })
    };
    (run.index.0..).zip(&run.places).map(entry).collect()
}

const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// So that places and lengths within a segment have 32 bits.
const BATCH_BYTES_MAX: u64 = 2 << 30;
/// Kept in each segment, or an eighth of it: hundreds of votes.
const KEPT_BYTES: u64 = 64 << 10;
/// Engines write less than this at a time.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// What a record has beside a command, and [`Entry::size_bytes`] counts beside it.
const RECORD_HEAD_BYTES: u64 = 22;
const ENTRY_HEAD_BYTES: u64 = 32;
