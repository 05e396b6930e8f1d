//! The flight recorder: every input of the protocol, in a ring of files, for `raft-replay` to step through.
//!
//! A recording holds no commands: the protocol does not see any. It is for finding out what happened, so it is never in the
//! way: it is not synced, and when it cannot be written it ends with a warning and the engine goes on.
//!
//! # Format
//! The directory has files `00000001.flight`, `00000002.flight`, ..., the oldest of which go as new ones come. Each begins
//! with [`MAGIC`]; then records follow, each as its length, the CRC-32C of these four bytes, that of its body (all u32,
//! little-endian) and the body, a [`Record`] by `consensus_core::codec`. The first record of a file is a [`Record::Began`], so that each file can be
//! replayed alone.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    ops::Deref,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use consensus_core::{
    LogId, NodeId,
    codec::{self, CodecError},
};
use consensus_raft_protocol::{Call, Event, Output, Persist, Raft, Returned, Time};
use serde::{Deserialize, Serialize};

/// Where to record, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlightRecorder {
    /// Directory of the recording; made if there is none.
    pub dir: PathBuf,
    /// About the most that it takes there; at least 1 MiB. A quarter is kept for one file, which begins with the whole state
    /// of the protocol: a few bytes per entry of the log.
    pub bytes_max: u64,
}

/// A piece of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A file begins.
    Began {
        /// Of this node.
        node: NodeId,
        /// When the engine was started, in milliseconds since 1970: names the run.
        run: u64,
        /// When, on the clock of the calls.
        now: Time,
        /// How many calls of this run were recorded before.
        calls: u64,
        /// A [checkpoint](Raft::checkpoint).
        state: Bytes,
    },
    /// The protocol is called.
    Called(Call),
    /// It returned; the CRC-32C of what it returned. Absent if it panicked.
    Returned(u32),
}

/// What each file begins with.
pub const MAGIC: [u8; 16] = *b"raft flight 1\n\0\0";
const RECORD_VERSION: u8 = 2;
const HEAD_BYTES: u64 = 12;

/// CRC-32C of what a call returned, as it stands in [`Record::Returned`].
#[must_use]
pub fn checksum(returned: &Returned) -> u32 {
    crc32c::crc32c(&codec::encode(RECORD_VERSION, returned))
}

/// The protocol, recorded if so wished. What only reads goes to it directly.
pub(crate) struct Recorded {
    raft: Raft,
    recorder: Option<Recorder>,
    /// A recorder that is to start again.
    stopped: Option<Stopped>,
}

impl Deref for Recorded {
    type Target = Raft;

    fn deref(&self) -> &Raft {
        &self.raft
    }
}

impl Recorded {
    pub(crate) fn new(raft: Raft, recorder: Option<&FlightRecorder>) -> io::Result<Self> {
        let recorder = recorder.map(|settings| Recorder::start(settings, &raft)).transpose()?;
        Ok(Self { raft, recorder, stopped: None })
    }

    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Output> {
        if self.recorder.is_none() {
            return self.raft.step(now, event);
        }
        match self.call(Call::Step(now, event)) {
            Returned::Outputs(outputs) => outputs,
            other => unreachable!("a step returns outputs: {other:?}"),
        }
    }

    pub(crate) fn finish_turn(&mut self, now: Time) -> Vec<Output> {
        if self.recorder.is_none() {
            return self.raft.finish_turn(now);
        }
        match self.call(Call::FinishTurn(now)) {
            Returned::Outputs(outputs) => outputs,
            other => unreachable!("a turn ends with outputs: {other:?}"),
        }
    }

    pub(crate) fn recycle(&mut self, outputs: Vec<Output>) {
        self.raft.recycle(outputs);
    }

    pub(crate) fn take_persist(&mut self) -> Option<Persist> {
        if self.recorder.is_none() {
            return self.raft.take_persist();
        }
        match self.call(Call::TakePersist) {
            Returned::Persist(persist) => persist,
            other => unreachable!("a write is asked for: {other:?}"),
        }
    }

    pub(crate) fn propose(&mut self, now: Time, sizes_bytes: &[u64]) -> Option<LogId> {
        if self.recorder.is_none() {
            return self.raft.propose(now, sizes_bytes);
        }
        match self.call(Call::Propose(now, sizes_bytes.to_vec())) {
            Returned::Proposed(first) => first,
            other => unreachable!("a place in the log is asked for: {other:?}"),
        }
    }

    /// The call is written before it is made: it may be the one that panics.
    fn call(&mut self, call: Call) -> Returned {
        self.record(|recorder, raft| recorder.called(raft, &call));
        let returned = self.raft.call(call);
        self.record(|recorder, _| recorder.append(&Record::Returned(checksum(&returned))));
        returned
    }

    /// What was recorded so far outlives the process from here on.
    pub(crate) fn flush(&mut self) {
        self.record(|recorder, _| recorder.file.flush());
        if self.stopped.as_ref().is_some_and(|stopped| stopped.retry_at <= Instant::now()) {
            self.restart();
        }
    }

    fn restart(&mut self) {
        let Some(Stopped { settings, .. }) = self.stopped.take() else { return };
        match Recorder::start(&settings, &self.raft) {
            Ok(recorder) => {
                tracing::info!(dir = %settings.dir.display(), "the flight recorder records again");
                self.recorder = Some(recorder);
            }
            Err(error) => {
                tracing::debug!(dir = %settings.dir.display(), %error, "the flight recorder does not start");
                self.stopped = Some(Stopped { settings, retry_at: Instant::now() + RETRY });
            }
        }
    }

    fn record(&mut self, write: impl FnOnce(&mut Recorder, &Raft) -> io::Result<()>) {
        let Some(recorder) = &mut self.recorder else { return };
        if let Err(error) = write(recorder, &self.raft) {
            let dir = recorder.settings.dir.display();
            tracing::warn!(%dir, %error, "the flight recorder stopped; it tries to start again once a minute");
            let settings = recorder.settings.clone();
            self.recorder = None;
            self.stopped = Some(Stopped { settings, retry_at: Instant::now() + RETRY });
        }
    }
}

/// A recorder that failed.
struct Stopped {
    settings: FlightRecorder,
    retry_at: Instant,
}

/// Time between two attempts to record again.
const RETRY: Duration = Duration::from_secs(60);

struct Recorder {
    settings: FlightRecorder,
    run: u64,
    calls: u64,
    now: Time,
    file: BufWriter<File>,
    /// Bytes of the file in hand.
    written: u64,
}

impl Recorder {
    fn start(settings: &FlightRecorder, raft: &Raft) -> io::Result<Self> {
        std::fs::create_dir_all(&settings.dir)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut recorder = Self {
            settings: settings.clone(),
            run: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            calls: 0,
            now: Time::ZERO,
            file: BufWriter::new(next_file(settings)?),
            written: 0,
        };
        recorder.begin(raft)?;
        Ok(recorder)
    }

    fn begin(&mut self, raft: &Raft) -> io::Result<()> {
        let state = Bytes::from(raft.checkpoint());
        if state.len() as u64 > self.settings.bytes_max / 8 {
            let (max, needed) = (self.settings.bytes_max, 8 * state.len());
            let why = format!(
                "the state alone has {} bytes: {max} in all are too few, {needed} would do",
                state.len()
            );
            return Err(io::Error::other(why));
        }
        self.written = 0;
        self.file.write_all(&MAGIC)?;
        let (node, run, now, calls) = (raft.id(), self.run, self.now, self.calls);
        self.append(&Record::Began { node, run, now, calls, state })
    }

    fn called(&mut self, raft: &Raft, call: &Call) -> io::Result<()> {
        if self.written >= self.settings.bytes_max / 4 {
            self.file.flush()?;
            self.file = BufWriter::new(next_file(&self.settings)?);
            self.begin(raft)?;
        }
        self.now = call.time().map_or(self.now, |now| self.now.max(now));
        self.calls += 1;
        self.append(&Record::Called(call.clone()))
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let bytes = framed(record)?;
        self.file.write_all(&bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// A record as it stands in the file.
///
/// # Errors
/// It is larger than 4 GiB.
pub fn framed(record: &Record) -> io::Result<Vec<u8>> {
    let body = codec::encode(RECORD_VERSION, record);
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("a record of 4 GiB"))?.to_le_bytes();
    let (sum_of_length, sum) = (crc32c::crc32c(&length).to_le_bytes(), crc32c::crc32c(&body).to_le_bytes());
    Ok([&length, &sum_of_length, &sum, &*body].concat())
}

/// The next file of the recording; the oldest make room for it.
fn next_file(settings: &FlightRecorder) -> io::Result<File> {
    let files = files(&settings.dir)?;
    let mut bytes = 0;
    let mut keep = settings.bytes_max - settings.bytes_max / 4;
    for (_, path) in files.iter().rev() {
        bytes += std::fs::metadata(path)?.len();
        if bytes > keep {
            keep = 0; // And everything older.
            std::fs::remove_file(path)?;
        }
    }
    let number = files.last().map_or(1, |(number, _)| number + 1);
    File::create_new(settings.dir.join(format!("{number:08}.flight")))
}

/// The files of a recording with their numbers, oldest first.
fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".flight"));
        if let Some(number) = name.and_then(|name| name.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlightError {
    /// The system says so.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// Of which file.
        path: PathBuf,
        /// What.
        error: io::Error,
    },
    /// It is not a recording, or one by another version.
    #[error("{} is no recording that this version reads: it does not begin with \"raft flight 1\"", .0.display())]
    Foreign(PathBuf),
    /// There is no recording.
    #[error("{} has no files named *.flight", .0.display())]
    Empty(PathBuf),
    /// The file ends within a record: the process was killed there, or writes still.
    #[error("{path}: the record at byte {at} is incomplete", path = path.display())]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
    },
    /// A record is not what was written.
    #[error("{path}: the record at byte {at} is damaged: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
        /// What is wrong.
        why: String,
    },
}

/// The files of the recording at `path`, a directory or one file, oldest first.
///
/// # Errors
/// There are none.
pub fn recording(path: &Path) -> Result<Vec<PathBuf>, FlightError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let files = files(path).map_err(|error| FlightError::Io { path: path.to_owned(), error })?;
    if files.is_empty() {
        return Err(FlightError::Empty(path.to_owned()));
    }
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Reads one file of a recording.
#[derive(Debug)]
pub struct FlightReader<R = BufReader<File>> {
    path: PathBuf,
    file: R,
    at: u64,
}

impl FlightReader {
    /// Opens a file.
    ///
    /// # Errors
    /// It is no recording.
    pub fn open(path: &Path) -> Result<Self, FlightError> {
        let io = |error| FlightError::Io { path: path.to_owned(), error };
        Self::new(path, BufReader::new(File::open(path).map_err(io)?))
    }
}

impl<R: Read> FlightReader<R> {
    /// Reads what a file has from somewhere else; errors name `path`.
    ///
    /// # Errors
    /// It is no recording.
    pub fn new(path: &Path, mut file: R) -> Result<Self, FlightError> {
        let io = |error| FlightError::Io { path: path.to_owned(), error };
        let mut magic = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        if magic != MAGIC {
            return Err(FlightError::Foreign(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), file, at: MAGIC.len() as u64 })
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// It cannot be read. Nothing can be read behind it.
    pub fn next_record(&mut self) -> Result<Option<Record>, FlightError> {
        let head = self.bytes(HEAD_BYTES)?;
        if head.is_empty() {
            return Ok(None);
        }
        let number =
            |at| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        let (Some(length), Some(sum_of_length), Some(sum)) = (number(0), number(4), number(8)) else {
            return Err(self.cut_short());
        };
        // Or a file that is damaged there would be taken for an incomplete one.
        if crc32c::crc32c(&length.to_le_bytes()) != sum_of_length {
            return Err(self.damaged("its length is not what was written".to_owned()));
        }
        let length = u64::from(length);
        let body = self.bytes(length)?;
        if (body.len() as u64) < length {
            return Err(self.cut_short());
        }
        if crc32c::crc32c(&body) != sum {
            return Err(self.damaged("its checksum is another".to_owned()));
        }
        let record = codec::decode("flight record", RECORD_VERSION, &body);
        let record = record.map_err(|error: CodecError| self.damaged(error.to_string()))?;
        self.at += HEAD_BYTES + length;
        Ok(Some(record))
    }

    /// As many as there are, at most `count`; memory grows with what is there, not with what is announced.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, FlightError> {
        let mut bytes = Vec::new();
        let read = self.file.by_ref().take(count).read_to_end(&mut bytes);
        read.map_err(|error| FlightError::Io { path: self.path.clone(), error })?;
        Ok(bytes)
    }

    fn cut_short(&self) -> FlightError {
        FlightError::CutShort { path: self.path.clone(), at: self.at }
    }

    fn damaged(&self, why: String) -> FlightError {
        FlightError::Damaged { path: self.path.clone(), at: self.at, why }
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::{LogId, LogIndex, Membership, SnapshotMeta, Term};
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let numbers = any::<(u64, u64)>();
        let arrived = (numbers, any::<Vec<u64>>()).prop_map(|((term, index), voters)| {
            let meta =
                SnapshotMeta { last: LogId::new(term, index), membership: Membership::of_voters(voters) };
            Event::SnapshotArrived { from: NodeId(index), term: Term(term), meta }
        });
        prop_oneof![
            Just(Event::Tick),
            any::<u64>().prop_map(|through| Event::Compact(LogIndex(through))),
            arrived,
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let began = (any::<(u64, u64, u64)>(), any::<Time>(), any::<Vec<u8>>());
        let began = began.prop_map(|((node, run, calls), now, state)| Record::Began {
            node: NodeId(node),
            run,
            now,
            calls,
            state: state.into(),
        });
        prop_oneof![
            began,
            (any::<Time>(), event()).prop_map(|(now, event)| Record::Called(Call::Step(now, event))),
            Just(Record::Called(Call::TakePersist)),
            any::<(Time, Vec<u64>)>().prop_map(|(now, sizes)| Record::Called(Call::Propose(now, sizes))),
            any::<u32>().prop_map(Record::Returned),
        ]
    }

    #[test]
    fn recorder_that_failed_records_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let settings = FlightRecorder { dir: dir.path().join("flight"), bytes_max: 1 << 20 };
        let config = consensus_raft_protocol::Config::new(NodeId(1));
        let raft = Raft::new(config, consensus_raft_protocol::Restored::default(), Time::ZERO).unwrap();
        let mut recorded = Recorded::new(raft, Some(&settings)).unwrap();
        recorded.step(Time::ZERO, Event::Tick);
        // Its directory is gone when it wants the next file, and a file is in the place.
        std::fs::remove_dir_all(&settings.dir).unwrap();
        std::fs::write(&settings.dir, "in the way").unwrap();
        for _ in 0..20_000 {
            recorded.propose(Time::ZERO, &[1]);
            recorded.step(Time::ZERO, Event::Tick);
        }
        assert!(recorded.recorder.is_none());
        let again = |recorded: &mut Recorded| {
            recorded.stopped.as_mut().unwrap().retry_at = Instant::now();
            recorded.flush();
        };
        again(&mut recorded);
        assert!(recorded.recorder.is_none() && recorded.stopped.is_some());
        std::fs::remove_file(&settings.dir).unwrap();
        again(&mut recorded);
        recorded.step(Time::ZERO, Event::Tick);
        recorded.flush();
        assert!(recorded.recorder.is_some() && recorded.stopped.is_none());
        assert_eq!(recording(&settings.dir).unwrap().len(), 1);
    }

    /// The records, and what ended them if it was no orderly end.
    fn read(bytes: &[u8]) -> Result<(Vec<Record>, Option<FlightError>), FlightError> {
        let mut reader = FlightReader::new(Path::new("recording"), bytes)?;
        let mut records = Vec::new();
        loop {
            match reader.next_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => return Ok((records, None)),
                Err(error) => return Ok((records, Some(error))),
            }
        }
    }

    proptest! {
        #[test]
        fn records_come_back_and_a_cut_and_a_changed_bit_are_told(
            records in prop::collection::vec(record(), 1..6),
            cut: prop::sample::Index,
            bit: prop::sample::Index,
        ) {
            let (mut bytes, mut ends) = (MAGIC.to_vec(), vec![MAGIC.len()]);
            for record in &records {
                bytes.extend(framed(record).unwrap());
                ends.push(bytes.len());
            }
            let (all, end) = read(&bytes).unwrap();
            prop_assert_eq!(&all, &records);
            prop_assert!(end.is_none());

            let cut = MAGIC.len() + cut.index(bytes.len() - MAGIC.len());
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            let (some, end) = read(&bytes[..cut]).unwrap();
            prop_assert_eq!(&some[..], &records[..whole]);
            prop_assert_eq!(end.is_none(), ends.contains(&cut));
            prop_assert!(matches!(end, None | Some(FlightError::CutShort { .. })), "{:?}", end);

            let bit = bit.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            match read(&bytes) {
                Err(error) => prop_assert!(matches!(error, FlightError::Foreign(_)) && bit / 8 < MAGIC.len()),
                Ok((some, end)) => {
                    let whole = ends.iter().filter(|end| **end <= bit / 8).count() - 1;
                    prop_assert_eq!(&some[..], &records[..whole]);
                    prop_assert!(matches!(end, Some(FlightError::Damaged { .. })), "{:?}", end);
                }
            }
        }
    }
}
