//! Reads a whole log when it is opened, and finds damage.

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
    index::{Index, RecordLocation},
    segment::{FIRST_FRAME, SEGMENT_BYTES_MAX, Segment},
};
use flaws::{Flaw, Flaws};
use reader::Reader;

/// Content of a log that was read.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) index: Index,
    pub(crate) hard_state: HardState,
    pub(crate) purged: SnapshotMeta,
    /// Number of the last frame.
    pub(crate) number: u64,
    /// Number of the last frame that did more than append entries.
    pub(crate) last_non_append: u64,
    /// Position of the next frame.
    pub(crate) end: Position,
    /// Offset of the last frame, in the same segment.
    pub(crate) begin: u64,
    /// Position of a frame that was not written completely.
    pub(crate) torn: Option<Position>,
    /// Log id and size of each entry of the index; size 0 for an entry that cannot be read.
    entries: VecDeque<(LogId, u64)>,
    /// Number of segments that were added to the index.
    indexed_segments: usize,
    memberships: Vec<(LogIndex, Membership)>,
    flaws: Flaws,
    /// Last entry, readable or not.
    last: LogId,
}

/// A position in the segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: usize,
    pub(crate) at: u64,
}

impl Scan {
    /// Reads `segments`. They must contain every frame that `mark` counts.
    pub(crate) fn read(segments: &[Arc<Segment>], mark: Mark) -> Result<Self, StorageError> {
        let end = Position { segment: 0, at: FIRST_FRAME };
        let mut scan = Self { end, begin: end.at, ..Self::default() };
        let mut reader = Reader::new(segments);
        while let Some((begin, head)) = reader.find_frame(scan.end, scan.number + 1)? {
            let end = Position { at: begin.at + head.frame_len(), ..begin };
            // Only the last frame can be torn. It was never acknowledged, and is removed. A damaged frame after missing ones
            // is not treated as torn, because it is unknown how it was damaged.
            if head.number > mark.writes
                && head.number == scan.number + 1
                && !reader.is_whole(begin, &head)?
                && reader.find_frame(end, head.number + 1)?.is_none()
            {
                scan.torn = Some(begin);
                break;
            }
            scan.add_frame(&mut reader, begin, &head)?;
            (scan.begin, scan.end) = (begin.at, end);
        }
        reader.check_unreadable(scan.end)?;
        scan.check_end(segments, mark)?;
        Ok(scan)
    }

    fn add_frame(
        &mut self,
        reader: &mut Reader<'_>,
        begin: Position,
        head: &Head,
    ) -> Result<(), StorageError> {
        let gap = head.number != self.number + 1;
        if gap {
            self.bridge_gap(reader, begin, head)?;
        }
        let purged = head.purged.as_ref().map_or(self.purged.last.index, |new| new.last.index);
        let (after, before) = (head.after(), self.index.last().index.max(purged));
        if !(self.purged.last.index..=after).contains(&purged) || after > before {
            let log = format!("the log has the entries after {}, up to {before}", self.purged.last.index);
            let why =
                format!("frame {} purges up to {purged} and appends after {after}, but {log}", head.number);
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
        self.truncate_after(after);
        // Adds the segment of this frame, and segments before it in which no frame was found. If the first frame of a segment
        // was not found, older segments are needed for more than their entries: `u64::MAX` keeps them.
        for (number, segment) in
            reader.segments().iter().enumerate().take(begin.segment + 1).skip(self.indexed_segments)
        {
            let begins = number == begin.segment && begin.at == FIRST_FRAME;
            self.index.start_segment(segment.clone(), if begins { after } else { LogIndex(u64::MAX) });
        }
        self.indexed_segments = begin.segment + 1;
        self.last_non_append =
            if gap || changed || after < before { head.number } else { head.last_non_append };
        (self.number, self.last) = (head.number, head.last);
        self.append(reader, begin, head)
    }

    /// Handles missing frames before `head`. Fails if the state of the log cannot be known without them.
    fn bridge_gap(&mut self, reader: &Reader<'_>, begin: Position, head: &Head) -> Result<(), StorageError> {
        let mut flaw = self.missing_frames(reader.segments(), head.number - 1);
        flaw.why += &format!(", before {}", reader.segments()[begin.segment].position(begin.at));
        if let Some(why) = reader.find_unreadable_block(self.end, begin) {
            flaw.why += &format!("; {why}");
        }
        // According to `head`, no missing frame did more than append.
        let only_appended = head.last_non_append <= self.number;
        // Purged entries are not needed.
        if let Some(purged) =
            head.purged.as_ref().filter(|new| only_appended && new.last.index >= self.purged.last.index)
        {
            self.purge(purged);
        }
        let before = self.index.last();
        let lost = head.after().0.saturating_sub(before.index.0);
        if only_appended && lost <= self.max_lost_entries(reader.segments(), begin) {
            // `head` also tells the index of the last missing entry.
            let term = if head.after() == head.last.index { head.last.term } else { before.term };
            for index in before.index.next().0..=head.after().0 {
                self.index.push(term, RecordLocation { at: 0, len: 0 });
                self.entries.push_back((LogId { term, index: LogIndex(index) }, 0));
            }
            self.flaws.add(before.index.next(), head.after(), flaw);
        } else if begin.at == FIRST_FRAME && head.hard_state.is_some() && head.purged.is_some() {
            // The first head of a segment contains the whole state, but not the entries before it. They may be purged;
            // if not, the entries that were read so far may have been replaced by missing frames.
            self.flaws = Flaws::default();
            self.restart_after(head.after());
            self.flaws.add(LogIndex(1), head.after(), flaw);
        } else {
            return Err(flaw.into());
        }
        Ok(())
    }

    /// The most entries that fit in the space of the missing frames. It bounds the memory that a wrong head can demand.
    fn max_lost_entries(&self, segments: &[Arc<Segment>], begin: Position) -> u64 {
        let there = &segments[self.end.segment..=begin.segment];
        let bytes: u64 = there.iter().filter_map(|segment| segment.len().ok()).sum();
        let last_begun = self.indexed_segments.checked_sub(1).map_or(0, |last| segments[last].sequence);
        let numbers = segments[begin.segment].sequence - last_begun;
        let missing = numbers.saturating_sub((begin.segment + 1 - self.indexed_segments) as u64);
        bytes.saturating_add(missing.saturating_mul(SEGMENT_BYTES_MAX)) / RECORD_BYTES_MIN
    }

    /// Describes the missing frames, from the one after the last frame to number `last`.
    fn missing_frames(&self, segments: &[Arc<Segment>], last: u64) -> Flaw {
        let position = segments.get(self.end.segment).map(|segment| segment.position(self.end.at));
        let why = match self.number + 1 {
            first if first == last => format!("frame {first} is damaged or missing"),
            first => format!("frames {first} to {last} are damaged or missing"),
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

    fn truncate_after(&mut self, after: LogIndex) {
        if after < self.index.base() {
            self.restart_after(after);
        } else {
            self.index.truncate(after);
            self.entries.truncate((after.0 - self.index.base().0) as usize);
            self.memberships.retain(|(index, _)| *index <= after);
        }
        self.flaws.truncate_after(after);
    }

    /// Removes all entries; those up to `base` are unknown. Their configurations are kept, because every configuration that
    /// may be in force decides whether the log may be truncated.
    fn restart_after(&mut self, base: LogIndex) {
        self.index.restart_after(LogId { index: base, ..LogId::ZERO });
        self.entries.clear();
        self.memberships.retain(|(index, _)| *index <= base);
    }

    fn append(&mut self, reader: &mut Reader<'_>, begin: Position, head: &Head) -> Result<(), StorageError> {
        let mut at = begin.at + head.len;
        for (len, sum) in head.records() {
            let found = reader.read_record(Position { at, ..begin }, len, sum)?;
            let before = self.index.last();
            let index = before.index.next();
            let place = RecordLocation { at: at as u32, len };
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

    fn check_end(&self, segments: &[Arc<Segment>], mark: Mark) -> Result<(), StorageError> {
        if self.number < mark.writes {
            let mut flaw = self.missing_frames(segments, mark.writes);
            flaw.why += &format!(
                "; according to the write mark they were written, the last one to segment {}",
                mark.file
            );
            return Err(flaw.into());
        }
        let purged = self.purged.last;
        if let Some((first, _)) = self.entries.front().filter(|(_, size)| *size > 0)
            && first.term < purged.term
        {
            let why = format!("entry {first} cannot follow the last purged entry {purged}");
            return Err(segments[self.end.segment].corrupt(self.begin, why));
        }
        // At most one segment is prepared after the current one.
        if let Some(unused) = segments.get(self.end.segment + 1)
            && segments.len() > self.end.segment + 2
        {
            return Err(unused.corrupt(FIRST_FRAME, "it is empty, but is not the last segment".to_owned()));
        }
        Ok(())
    }

    /// Takes the state that [`LogStorage::load`](consensus_core::LogStorage::load) returns, and leaves what the storage needs.
    pub(crate) fn take_log_state(&mut self, storage: StorageId) -> LogState {
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

/// Size of a record without a payload, plus its row in the head.
const RECORD_BYTES_MIN: u64 = 30;

fn follows(before: LogId, entry: Entry) -> Result<Entry, String> {
    if entry.id.index == before.index.next() && entry.id.term >= before.term {
        return Ok(entry);
    }
    Err(format!("entry {} cannot follow {before}", entry.id))
}
