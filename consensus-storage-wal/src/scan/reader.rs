//! Reads segments in order through a buffer.

use std::{collections::BTreeSet, io, sync::Arc};

use bytes::Bytes;
use consensus_core::{Entry, StorageError, record};
use rustix::io::Errno;

use super::Position;
use crate::{
    frame::{ALIGNMENT, FIXED_LEN, Head, SALT_AT},
    segment::{FIRST_FRAME, Segment},
};

pub(super) struct Reader<'a> {
    segments: &'a [Arc<Segment>],
    /// Bytes that were read last.
    window: Bytes,
    /// Position of the first byte of `window`.
    window_start: Position,
    /// Blocks that the disk cannot read. They are treated as zeros, so that they count as damage.
    unreadable: BTreeSet<Position>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(segments: &'a [Arc<Segment>]) -> Self {
        Self {
            segments,
            window: Bytes::new(),
            window_start: Position::default(),
            unreadable: BTreeSet::new(),
        }
    }

    pub(super) fn segments(&self) -> &'a [Arc<Segment>] {
        self.segments
    }

    /// Finds the first frame at or after `from`, in this segment or a later one, whose number is at least `number`. Usually
    /// it is at `from`; otherwise every aligned offset is tried.
    pub(super) fn find_frame(
        &mut self,
        from: Position,
        number: u64,
    ) -> Result<Option<(Position, Head)>, StorageError> {
        for segment in from.segment..self.segments.len() {
            let at = if segment == from.segment { from.at } else { FIRST_FRAME };
            if let Some(found) = self.find_in(Position { segment, at }, number)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn find_in(&mut self, from: Position, number: u64) -> Result<Option<(Position, Head)>, StorageError> {
        if let Some(head) = self.read_head(from, number)? {
            return Ok(Some((from, head)));
        }
        let (len, salt) = (self.len(from)?, self.segments[from.segment].salt.to_be_bytes());
        let mut at = from.at + ALIGNMENT as u64;
        while at < len {
            let here = Position { at, ..from };
            let Some(bytes) = self.bytes_at(here, (len - at).min(WINDOW_BYTES))? else { break };
            for (n, word) in bytes.chunks_exact(ALIGNMENT).enumerate() {
                let begin = Position { at: at + (n * ALIGNMENT) as u64, ..from };
                // Search for the salt, not for the start of a head: a head at the end of these bytes has its salt in the
                // next ones.
                let begin = Position { at: begin.at - SALT_AT as u64, ..begin };
                if word == salt
                    && let Some(head) = self.read_head(begin, number)?
                {
                    return Ok(Some((begin, head)));
                }
            }
            at += bytes.len() as u64;
        }
        Ok(None)
    }

    /// Reads the head at `at`; `None` if there is none, or if its number is below `number`.
    fn read_head(&mut self, at: Position, number: u64) -> Result<Option<Head>, StorageError> {
        let segment = &self.segments[at.segment];
        let Some(fixed) = self.bytes_at(at, FIXED_LEN as u64)? else { return Ok(None) };
        if fixed[SALT_AT..SALT_AT + 8] != segment.salt.to_be_bytes() {
            return Ok(None);
        }
        let (head_len, frame_len) = Head::lengths(&fixed);
        if frame_len > self.len(at)?.saturating_sub(at.at) {
            return Ok(None);
        }
        let Some(bytes) = self.bytes_at(at, head_len)? else { return Ok(None) };
        let head = Head::decode(&bytes).map_err(|error| segment.corrupt(at.at, error.to_string()))?;
        Ok(head.filter(|head| head.number >= number))
    }

    /// Whether all records of a frame are intact.
    pub(super) fn is_whole(&mut self, mut at: Position, head: &Head) -> Result<bool, StorageError> {
        at.at += head.len;
        for (len, sum) in head.records() {
            if self.read_record(at, len, sum)?.is_err() {
                return Ok(false);
            }
            at.at += u64::from(len);
        }
        Ok(true)
    }

    /// Reads the record of `len` bytes with the checksum `sum`. The inner error says what is wrong with the record.
    pub(super) fn read_record(
        &mut self,
        at: Position,
        len: u32,
        sum: u32,
    ) -> Result<Result<Entry, String>, StorageError> {
        let Some(bytes) = self.bytes_at(at, len.into())? else {
            return Ok(Err("the file ends before the end of the record".to_owned()));
        };
        let found = match bytes.get(1..5) == Some(&sum.to_be_bytes()) {
            true => record::decode(&bytes).map_err(|error| error.to_string()),
            false => Err("its checksum is wrong".to_owned()),
        };
        let end = Position { at: at.at + u64::from(len), ..at };
        Ok(found.map_err(|why| self.find_unreadable_block(at, end).unwrap_or(why)))
    }

    /// Reads `len` bytes at `at`; `None` if the segment has fewer.
    fn bytes_at(&mut self, at: Position, len: u64) -> Result<Option<Bytes>, StorageError> {
        let inside = |begin: Position, window: &Bytes| {
            let from = at.at.checked_sub(begin.at).filter(|_| begin.segment == at.segment)?;
            (from + len <= window.len() as u64).then(|| window.slice(from as usize..(from + len) as usize))
        };
        if let Some(bytes) = inside(self.window_start, &self.window) {
            return Ok(Some(bytes));
        }
        let there = self.len(at)?.saturating_sub(at.at);
        if len > there {
            return Ok(None);
        }
        let mut window = vec![0; len.max(WINDOW_BYTES).min(there) as usize];
        self.read(at, &mut window)?;
        (self.window, self.window_start) = (window.into(), at);
        Ok(inside(self.window_start, &self.window))
    }

    fn read(&mut self, at: Position, bytes: &mut [u8]) -> Result<(), StorageError> {
        let segment = &self.segments[at.segment];
        let is_of_the_disk = |error: &io::Error| error.raw_os_error() == Some(Errno::IO.raw_os_error());
        match segment.read_exact(bytes, at.at) {
            Err(error) if is_of_the_disk(&error) => {}
            read => return read.map_err(|error| segment.io_error("reading", error)),
        }
        let mut done = 0;
        while done < bytes.len() {
            let begin = at.at + done as u64;
            let len = (BLOCK_BYTES - begin % BLOCK_BYTES).min((bytes.len() - done) as u64) as usize;
            let piece = &mut bytes[done..done + len];
            match segment.read_exact(piece, begin) {
                Err(error) if is_of_the_disk(&error) => {
                    piece.fill(0);
                    self.unreadable.insert(Position { at: begin - begin % BLOCK_BYTES, ..at });
                }
                read => read.map_err(|error| segment.io_error("reading", error))?,
            }
            done += len;
        }
        Ok(())
    }

    /// Describes the first block between `from` and `to` that the disk cannot read, if there is one.
    pub(super) fn find_unreadable_block(&self, from: Position, to: Position) -> Option<String> {
        let from = Position { at: from.at - from.at % BLOCK_BYTES, ..from };
        let block = self.unreadable.range(from..to).next()?;
        let position = self.segments[block.segment].position(block.at);
        Some(format!("the disk cannot read the block at {position}"))
    }

    /// Refuses unreadable blocks at or after the end of the log: it is not known whether they contained frames, and frames
    /// written there may be lost as well.
    pub(super) fn check_unreadable(&self, end: Position) -> Result<(), StorageError> {
        let reaches_beyond = |block: &&Position| Position { at: block.at + BLOCK_BYTES, ..**block } > end;
        let Some(block) = self.unreadable.last().filter(reaches_beyond) else { return Ok(()) };
        let segment = &self.segments[block.segment];
        Err(segment.io_error(&format!("reading the block at byte {} of", block.at), Errno::IO.into()))
    }

    fn len(&self, at: Position) -> Result<u64, StorageError> {
        let segment = &self.segments[at.segment];
        segment.len().map_err(|error| segment.io_error("reading", error))
    }
}

const WINDOW_BYTES: u64 = 1 << 20;
/// Unit in which unreadable data is located. File systems usually read from the disk in blocks of this size.
const BLOCK_BYTES: u64 = 4096;
