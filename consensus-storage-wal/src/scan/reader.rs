//! Segments, read in order through a window.

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
    /// What was read last, and where it begins.
    window: Bytes,
    begin: Position,
    /// Blocks that the disk does not give back. They are read as zeros, so that they are damage like any other.
    unreadable: BTreeSet<Position>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(segments: &'a [Arc<Segment>]) -> Self {
        Self { segments, window: Bytes::new(), begin: Position::default(), unreadable: BTreeSet::new() }
    }

    pub(super) fn segments(&self) -> &'a [Arc<Segment>] {
        self.segments
    }

    /// The first frame at `from` or after it, in this segment or a later one, whose number is `number` or more. Most often
    /// it is at `from`; otherwise every place is looked at where one can be.
    pub(super) fn find(
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
        if let Some(head) = self.head(from, number)? {
            return Ok(Some((from, head)));
        }
        let (len, salt) = (self.len(from)?, self.segments[from.segment].salt.to_be_bytes());
        let mut at = from.at + ALIGNMENT as u64;
        while at < len {
            let here = Position { at, ..from };
            let Some(bytes) = self.get(here, (len - at).min(WINDOW_BYTES))? else { break };
            for (n, word) in bytes.chunks_exact(ALIGNMENT).enumerate() {
                let begin = Position { at: at + (n * ALIGNMENT) as u64, ..from };
                // The salt of a head right at the end of these bytes is in the next ones, hence the order.
                let begin = Position { at: begin.at - SALT_AT as u64, ..begin };
                if word == salt
                    && let Some(head) = self.head(begin, number)?
                {
                    return Ok(Some((begin, head)));
                }
            }
            at += bytes.len() as u64;
        }
        Ok(None)
    }

    /// The head at `at`, if there is one whose number is `number` or more.
    fn head(&mut self, at: Position, number: u64) -> Result<Option<Head>, StorageError> {
        let segment = &self.segments[at.segment];
        let Some(fixed) = self.get(at, FIXED_LEN as u64)? else { return Ok(None) };
        if fixed[SALT_AT..SALT_AT + 8] != segment.salt.to_be_bytes() {
            return Ok(None);
        }
        let (head_len, frame_len) = Head::lengths(&fixed);
        if frame_len > self.len(at)?.saturating_sub(at.at) {
            return Ok(None);
        }
        let Some(bytes) = self.get(at, head_len)? else { return Ok(None) };
        let head = Head::decode(&bytes).map_err(|error| segment.corrupt(at.at, error.to_string()))?;
        Ok(head.filter(|head| head.number >= number))
    }

    /// Whether no record of a frame is damaged.
    pub(super) fn is_whole(&mut self, mut at: Position, head: &Head) -> Result<bool, StorageError> {
        at.at += head.len;
        for (len, sum) in head.records() {
            if self.record(at, len, sum)?.is_err() {
                return Ok(false);
            }
            at.at += u64::from(len);
        }
        Ok(true)
    }

    /// The record of `len` bytes with the checksum `sum`, or what is wrong with it.
    pub(super) fn record(
        &mut self,
        at: Position,
        len: u32,
        sum: u32,
    ) -> Result<Result<Entry, String>, StorageError> {
        let Some(bytes) = self.get(at, len.into())? else { return Ok(Err("it is cut short".to_owned())) };
        let found = match bytes.get(1..5) == Some(&sum.to_be_bytes()) {
            true => record::decode(&bytes).map_err(|error| error.to_string()),
            false => Err("its checksum is wrong".to_owned()),
        };
        let end = Position { at: at.at + u64::from(len), ..at };
        Ok(found.map_err(|why| self.unreadable(at, end).unwrap_or(why)))
    }

    /// `len` bytes at `at`; `None` if there are not so many.
    fn get(&mut self, at: Position, len: u64) -> Result<Option<Bytes>, StorageError> {
        let inside = |begin: Position, window: &Bytes| {
            let from = at.at.checked_sub(begin.at).filter(|_| begin.segment == at.segment)?;
            (from + len <= window.len() as u64).then(|| window.slice(from as usize..(from + len) as usize))
        };
        if let Some(bytes) = inside(self.begin, &self.window) {
            return Ok(Some(bytes));
        }
        let there = self.len(at)?.saturating_sub(at.at);
        if len > there {
            return Ok(None);
        }
        let mut window = vec![0; len.max(WINDOW_BYTES).min(there) as usize];
        self.read(at, &mut window)?;
        (self.window, self.begin) = (window.into(), at);
        Ok(inside(self.begin, &self.window))
    }

    fn read(&mut self, at: Position, bytes: &mut [u8]) -> Result<(), StorageError> {
        let segment = &self.segments[at.segment];
        let is_of_the_disk = |error: &io::Error| error.raw_os_error() == Some(Errno::IO.raw_os_error());
        match segment.read_exact(bytes, at.at) {
            Err(error) if is_of_the_disk(&error) => {}
            read => return read.map_err(|error| segment.io("reading", error)),
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
                read => read.map_err(|error| segment.io("reading", error))?,
            }
            done += len;
        }
        Ok(())
    }

    /// Says which block between the two the disk does not give back, if there is one.
    pub(super) fn unreadable(&self, from: Position, to: Position) -> Option<String> {
        let from = Position { at: from.at - from.at % BLOCK_BYTES, ..from };
        let block = self.unreadable.range(from..to).next()?;
        let position = self.segments[block.segment].position(block.at);
        Some(format!("the disk does not give back the block at {position}"))
    }

    /// Refuses blocks that cannot be read where the log ends at `end` and goes on: whether something was there is not known,
    /// and what is written there may be lost as well.
    pub(super) fn check_unreadable(&self, end: Position) -> Result<(), StorageError> {
        let reaches_beyond = |block: &&Position| Position { at: block.at + BLOCK_BYTES, ..**block } > end;
        let Some(block) = self.unreadable.last().filter(reaches_beyond) else { return Ok(()) };
        let segment = &self.segments[block.segment];
        Err(segment.io(&format!("reading the block at byte {} of", block.at), Errno::IO.into()))
    }

    fn len(&self, at: Position) -> Result<u64, StorageError> {
        let segment = &self.segments[at.segment];
        segment.len().map_err(|error| segment.io("reading", error))
    }
}

const WINDOW_BYTES: u64 = 1 << 20;
/// As much is lost where a disk does not give something back; and of this much file systems ask for it again.
const BLOCK_BYTES: u64 = 4096;
