//! What a log holds, read from one end to the other.

mod flaws;
mod reader;

use std::{collections::VecDeque, sync::Arc};

use consensus_core::{
    Damage, Entry, HardState, LogId, LogIndex, LogState, Membership, Payload, SnapshotMeta, StorageError,
    StorageId,
};
use consensus_storage_dir::Mark;

use crate::{
    frame::Head,
    index::{Index, Place},
    segment::{FIRST_FRAME, SEGMENT_BYTES_MAX, Segment},
};
use flaws::{Flaw, Flaws};
use reader::Reader;

/// All that is known of a log when it was read.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) index: Index,
    pub(crate) hard_state: HardState,
    pub(crate) purged: SnapshotMeta,
    /// Number of the last frame.
    pub(crate) number: u64,
    /// Number of the last frame that did more than to append.
    pub(crate) settled: u64,
    /// Where the next frame goes.
    pub(crate) end: Position,
    /// Where the last frame begins, in the same segment.
    pub(crate) begin: u64,
    /// Where a frame begins that was not written to its end.
    pub(crate) torn: Option<Position>,
    /// Those of the index, with their sizes.
    entries: VecDeque<(LogId, u64)>,
    /// So many segments are in the index.
    begun: usize,
    memberships: Vec<(LogIndex, Membership)>,
    flaws: Flaws,
    /// The last entry, be it readable or not.
    last: LogId,
}

/// A place in the segments that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: usize,
    pub(crate) at: u64,
}

impl Scan {
    /// Reads `segments`, of which as much must be there as `noted` says.
    pub(crate) fn of(segments: &[Arc<Segment>], noted: Mark) -> Result<Self, StorageError> {
        let end = Position { segment: 0, at: FIRST_FRAME };
        let mut scan = Self { end, begin: end.at, ..Self::default() };
        let mut reader = Reader::new(segments);
        while let Some((begin, head)) = reader.find(scan.end, scan.number + 1)? {
            let end = Position { at: begin.at + head.frame_len(), ..begin };
            // Only the last one can be torn: nobody was told of it, and it is cut. Of one that others are missing before, it
            // is not known how it came to be as it is.
            if head.number > noted.writes
                && head.number == scan.number + 1
                && !reader.is_whole(begin, &head)?
                && reader.find(end, head.number + 1)?.is_none()
            {
                scan.torn = Some(begin);
                break;
            }
            scan.take_in(&mut reader, begin, &head)?;
            (scan.begin, scan.end) = (begin.at, end);
        }
        reader.check_unreadable(scan.end)?;
        scan.check_end(segments, noted)?;
        Ok(scan)
    }

    fn take_in(&mut self, reader: &mut Reader<'_>, begin: Position, head: &Head) -> Result<(), StorageError> {
        let gap = head.number != self.number + 1;
        if gap {
            self.bridge(reader, begin, head)?;
        }
        let purged = head.purged.as_ref().map_or(self.purged.last.index, |new| new.last.index);
        let (after, before) = (head.after(), self.index.last().index.max(purged));
        if !(self.purged.last.index..=after).contains(&purged) || after > before {
            let log = format!("the log has those from {} to {before}", self.purged.last.index);
            let why =
                format!("record {} purges up to {purged} and appends after {after}, {log}", head.number);
            return Err(reader.segments()[begin.segment].corrupt(begin.at, why));
        }
        let changed = head.hard_state.as_ref().is_some_and(|new| *new != self.hard_state)
            || head.purged.as_ref().is_some_and(|new| *new != self.purged);
        if let Some(purged) = &head.purged {
            self.purge(purged);
        }
        if let Some(hard_state) = &head.hard_state {
            self.hard_state.clone_from(hard_state);
        }
        self.cut(after);
        // One, and those before it of which no frame was found. Where it is not the first frame that was found, what is before
        // the segment is needed for more than entries.
        for (number, segment) in reader.segments().iter().enumerate().take(begin.segment + 1).skip(self.begun)
        {
            let begins = number == begin.segment && begin.at == FIRST_FRAME;
            self.index.begin_segment(segment.clone(), if begins { after } else { LogIndex(u64::MAX) });
        }
        self.begun = begin.segment + 1;
        self.settled = if gap || changed || after < before { head.number } else { head.settled };
        (self.number, self.last) = (head.number, head.last);
        self.append(reader, begin, head)
    }

    /// Frames before `head` are missing. They must be such as are not needed to know what there is.
    fn bridge(&mut self, reader: &Reader<'_>, begin: Position, head: &Head) -> Result<(), StorageError> {
        let mut flaw = self.missing(reader.segments(), head.number - 1);
        flaw.why += &format!(", before {}", reader.segments()[begin.segment].position(begin.at));
        if let Some(why) = reader.unreadable(self.end, begin) {
            flaw.why += &format!("; {why}");
        }
        // `head` says so.
        let only_appended = head.settled <= self.number;
        // What is purged is not missed.
        if let Some(purged) =
            head.purged.as_ref().filter(|new| only_appended && new.last.index >= self.purged.last.index)
        {
            self.purge(purged);
        }
        let before = self.index.last();
        let lost = head.after().0.saturating_sub(before.index.0);
        if only_appended && lost <= self.may_be_lost(reader.segments(), begin) {
            // And it knows up to where.
            let term = if head.after() == head.last.index { head.last.term } else { before.term };
            for index in before.index.next().0..=head.after().0 {
                self.index.push(term, Place { at: 0, len: 0 });
                self.entries.push_back((LogId { term, index: LogIndex(index) }, 0));
            }
            self.flaws.add(before.index.next(), head.after(), flaw);
        } else if begin.at == FIRST_FRAME && head.hard_state.is_some() && head.purged.is_some() {
            // The head of a segment says everything, but not what the entries before it are: purged, hopefully. If not,
            // those that were read may have been replaced.
            self.flaws = Flaws::default();
            self.begin_anew(head.after());
            self.flaws.add(LogIndex(1), head.after(), flaw);
        } else {
            return Err(flaw.into());
        }
        Ok(())
    }

    /// So many entries have room where frames are missing: each takes some memory, and only a head says how many there were.
    fn may_be_lost(&self, segments: &[Arc<Segment>], begin: Position) -> u64 {
        let there = &segments[self.end.segment..=begin.segment];
        let bytes: u64 = there.iter().filter_map(|segment| segment.len().ok()).sum();
        let last_begun = self.begun.checked_sub(1).map_or(0, |last| segments[last].sequence);
        let numbers = segments[begin.segment].sequence - last_begun;
        let missing = numbers.saturating_sub((begin.segment + 1 - self.begun) as u64);
        bytes.saturating_add(missing.saturating_mul(SEGMENT_BYTES_MAX)) / RECORD_BYTES_MIN
    }

    /// Frames after the last one, up to `last`, cannot be found.
    fn missing(&self, segments: &[Arc<Segment>], last: u64) -> Flaw {
        let position = segments.get(self.end.segment).map(|segment| segment.position(self.end.at));
        let why = match self.number + 1 {
            first if first == last => format!("record {first} is damaged or missing"),
            first => format!("records {first} to {last} are damaged or missing"),
        };
        Flaw { position: position.unwrap_or_else(|| "the log".to_owned()), why }
    }

    fn purge(&mut self, purged: &SnapshotMeta) {
        let base = self.index.base();
        self.index.purge(purged.last);
        let gone = (self.index.base().0 - base.0).min(self.entries.len() as u64);
        self.entries.drain(..gone as usize);
        self.memberships.retain(|(index, _)| *index > purged.last.index);
        self.flaws.purge(purged.last.index);
        self.purged.clone_from(purged);
    }

    fn cut(&mut self, after: LogIndex) {
        if after < self.index.base() {
            self.begin_anew(after);
        } else {
            self.index.truncate(after);
            self.entries.truncate((after.0 - self.index.base().0) as usize);
            self.memberships.retain(|(index, _)| *index <= after);
        }
        self.flaws.cut(after);
    }

    /// What entries there are up to `base` is not known. The configurations among them stay known: whether the log may be
    /// cut depends on every one that may be in force.
    fn begin_anew(&mut self, base: LogIndex) {
        self.index.begin_anew(LogId { index: base, ..LogId::ZERO });
        self.entries.clear();
        self.memberships.retain(|(index, _)| *index <= base);
    }

    fn append(&mut self, reader: &mut Reader<'_>, begin: Position, head: &Head) -> Result<(), StorageError> {
        let mut at = begin.at + head.len;
        for (len, sum) in head.records() {
            let found = reader.record(Position { at, ..begin }, len, sum)?;
            let before = self.index.last();
            let index = before.index.next();
            let place = Place { at: at as u32, len };
            match found.and_then(|entry| follows(before, entry)) {
                Ok(entry) => {
                    self.index.push(entry.id.term, place);
                    self.entries.push_back((entry.id, entry.size_bytes()));
                    if let Payload::Membership(membership) = entry.payload {
                        self.memberships.push((index, membership));
                    }
                }
                Err(why) => {
                    let term = if index == head.last.index { head.last.term } else { before.term };
                    self.index.push(term, place);
                    self.entries.push_back((LogId { term, index }, 0));
                    let place = reader.segments()[begin.segment].position(at);
                    let position = format!("the record of log index {index} at {place}");
                    self.flaws.add(index, index, Flaw { position, why });
                }
            }
            at += u64::from(len);
        }
        Ok(())
    }

    fn check_end(&self, segments: &[Arc<Segment>], noted: Mark) -> Result<(), StorageError> {
        if self.number < noted.writes {
            let mut flaw = self.missing(segments, noted.writes);
            flaw.why += &format!("; the log was written on, in segment {}", noted.file);
            return Err(flaw.into());
        }
        let (purged, readable) = (self.purged.last, |(_, size): &&(LogId, u64)| *size > 0);
        if let Some((first, _)) = self.entries.front().filter(readable)
            && first.term < purged.term
        {
            let why = format!("entry {first} cannot follow {purged}, the last one that was purged");
            return Err(segments[self.end.segment].corrupt(self.begin, why));
        }
        // A segment is prepared when the one before is in use.
        if let Some(unused) = segments.get(self.end.segment + 1)
            && segments.len() > self.end.segment + 2
        {
            return Err(unused.corrupt(FIRST_FRAME, "it is empty, and is not the last segment".to_owned()));
        }
        Ok(())
    }

    /// What a log storage tells of it; what of it the storage itself needs is left.
    pub(crate) fn take_state(&mut self, storage: StorageId) -> LogState {
        let mut state = LogState {
            storage,
            hard_state: self.hard_state.clone(),
            purged: self.purged.clone(),
            entries: std::mem::take(&mut self.entries).into(),
            memberships: std::mem::take(&mut self.memberships),
            damage: None,
        };
        if let Some((first, flaw)) = self.flaws.first() {
            let readable = first.0.saturating_sub(self.index.base().next().0);
            state.entries.truncate(readable as usize);
            let later = state.memberships.split_off(state.memberships.partition_point(|(at, _)| *at < first));
            state.damage = Some(Damage {
                last: self.last,
                memberships: later.into_iter().map(|(_, membership)| membership).collect(),
                position: flaw.position.clone(),
                why: flaw.why.clone(),
            });
        }
        state
    }
}

/// A record without a payload, and its row in the head.
const RECORD_BYTES_MIN: u64 = 30;

fn follows(before: LogId, entry: Entry) -> Result<Entry, String> {
    if entry.id.index == before.index.next() && entry.id.term >= before.term {
        return Ok(entry);
    }
    Err(format!("entry {} cannot follow {before}", entry.id))
}
