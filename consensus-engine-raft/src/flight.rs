//! Flight recorder: records every input of the protocol in a ring of files, which `raft-replay` can step through.
//!
//! A recording holds no commands, because the protocol never sees them. It serves diagnosis. It
//! is not synced, so it delays the engine only if the disk blocks even unsynced writes. When it cannot be opened or written,
//! recording stops with a warning, the engine continues, and recording is retried once a minute.
//!
//! # Format
//! The directory has files `00000001.flight`, `00000002.flight` and so on; the oldest are removed as new ones are created.
//! Each file starts with [`MAGIC`]. Records follow: the length of the body, the CRC-32C of these four bytes, the CRC-32C of
//! the body (each a u32, little-endian), and the body, a [`Record`] encoded by `consensus_core::codec`. The first record of
//! a file is a [`Record::FileStart`], so that each file can be replayed by itself.

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

/// Settings of the flight recorder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlightRecorder {
    /// Directory of the recording; created if it does not exist.
    pub dir: PathBuf,
    /// Approximate limit of the recording's size in bytes; at least 1 MiB. One file has at most about a quarter of it, and
    /// starts with the whole state of the protocol, which has a few bytes per entry of the log.
    pub bytes_max: u64,
}

/// One record of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The start of a file.
    FileStart {
        /// Id of the node.
        node: NodeId,
        /// Start of the engine in milliseconds since 1970; identifies the run.
        run: u64,
        /// Time of the record, on the clock of the calls.
        now: Time,
        /// Number of calls of this run before this file.
        calls: u64,
        /// A [checkpoint](Raft::checkpoint) of the protocol's state.
        state: Bytes,
    },
    /// A call of the protocol.
    Called(Call),
    /// CRC-32C of the call's result. Absent if the call panicked.
    Returned(u32),
}

/// First bytes of each file.
pub const MAGIC: [u8; 16] = *b"raft flight 1\n\0\0";
const RECORD_VERSION: u8 = 2;
const HEAD_BYTES: u64 = 12;

/// CRC-32C of a call's result, as in [`Record::Returned`].
#[must_use]
pub fn checksum(returned: &Returned) -> u32 {
    crc32c::crc32c(&codec::encode(RECORD_VERSION, returned))
}

/// The protocol with an optional recorder. Methods that only read are called on the protocol directly.
pub(crate) struct Recorded {
    raft: Raft,
    recorder: Option<Recorder>,
    /// A recorder that failed and is to start again.
    stopped: Option<Stopped>,
}

impl Deref for Recorded {
    type Target = Raft;

    fn deref(&self) -> &Raft {
        &self.raft
    }
}

impl Recorded {
    /// Starts recording with these settings. If that fails, the engine starts without, and recording is retried.
    pub(crate) fn new(raft: Raft, recorder: Option<&FlightRecorder>) -> Self {
        let mut recorded = Self { raft, recorder: None, stopped: None };
        let Some(settings) = recorder else { return recorded };
        match Recorder::start(settings, &recorded.raft) {
            Ok(recorder) => recorded.recorder = Some(recorder),
            Err(error) => {
                let dir = settings.dir.display();
                tracing::warn!(%dir, %error, "the flight recorder cannot start; the engine starts without it, and recording is retried once a minute");
                let retry_at = Instant::now() + RETRY;
                recorded.stopped = Some(Stopped { settings: settings.clone(), retry_at });
            }
        }
        recorded
    }

    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Output> {
        if self.recorder.is_none() {
            return self.raft.step(now, event);
        }
        match self.call(Call::Step(now, event)) {
            Returned::Outputs(outputs) => outputs,
            other => unreachable!("step returned {other:?}"),
        }
    }

    pub(crate) fn finish_turn(&mut self, now: Time) -> Vec<Output> {
        if self.recorder.is_none() {
            return self.raft.finish_turn(now);
        }
        match self.call(Call::FinishTurn(now)) {
            Returned::Outputs(outputs) => outputs,
            other => unreachable!("finish_turn returned {other:?}"),
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
            other => unreachable!("take_persist returned {other:?}"),
        }
    }

    pub(crate) fn propose(&mut self, now: Time, sizes_bytes: &[u64]) -> Option<LogId> {
        if self.recorder.is_none() {
            return self.raft.propose(now, sizes_bytes);
        }
        match self.call(Call::Propose(now, sizes_bytes.to_vec())) {
            Returned::Proposed(first) => first,
            other => unreachable!("propose returned {other:?}"),
        }
    }

    /// Records the call before making it, because the call may panic.
    fn call(&mut self, call: Call) -> Returned {
        self.record(|recorder, raft| recorder.called(raft, &call));
        let returned = self.raft.call(call);
        self.record(|recorder, _| recorder.append(&Record::Returned(checksum(&returned))));
        returned
    }

    /// Writes buffered records to the file, so that they survive a crash of the process.
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
                tracing::debug!(dir = %settings.dir.display(), %error, "the flight recorder cannot start yet");
                self.stopped = Some(Stopped { settings, retry_at: Instant::now() + RETRY });
            }
        }
    }

    fn record(&mut self, write: impl FnOnce(&mut Recorder, &Raft) -> io::Result<()>) {
        let Some(recorder) = &mut self.recorder else { return };
        if let Err(error) = write(recorder, &self.raft) {
            let dir = recorder.settings.dir.display();
            tracing::warn!(%dir, %error, "the flight recorder stopped; the engine continues, and recording is retried once a minute");
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

/// Time between two attempts to start recording again.
const RETRY: Duration = Duration::from_secs(60);

struct Recorder {
    settings: FlightRecorder,
    run: u64,
    calls: u64,
    now: Time,
    file: BufWriter<File>,
    /// Bytes written to the current file.
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
        recorder.start_file(raft)?;
        Ok(recorder)
    }

    fn start_file(&mut self, raft: &Raft) -> io::Result<()> {
        let state = Bytes::from(raft.checkpoint());
        if state.len() as u64 > self.settings.bytes_max / 8 {
            let (max, needed) = (self.settings.bytes_max, 8 * state.len());
            let why = format!(
                "the state of the protocol has {} bytes, too many for a recording of {max} bytes: set its limit to at least {needed}",
                state.len()
            );
            return Err(io::Error::other(why));
        }
        self.written = 0;
        self.file.write_all(&MAGIC)?;
        let (node, run, now, calls) = (raft.id(), self.run, self.now, self.calls);
        self.append(&Record::FileStart { node, run, now, calls, state })
    }

    fn called(&mut self, raft: &Raft, call: &Call) -> io::Result<()> {
        if self.written >= self.settings.bytes_max / 4 {
            self.file.flush()?;
            self.file = BufWriter::new(next_file(&self.settings)?);
            self.start_file(raft)?;
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

/// Encodes a record as it is written to the file.
///
/// # Errors
/// The record is larger than 4 GiB.
pub fn framed(record: &Record) -> io::Result<Vec<u8>> {
    let body = codec::encode(RECORD_VERSION, record);
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("a record of 4 GiB"))?.to_le_bytes();
    let (sum_of_length, sum) = (crc32c::crc32c(&length).to_le_bytes(), crc32c::crc32c(&body).to_le_bytes());
    Ok([&length, &sum_of_length, &sum, &*body].concat())
}

/// Creates the next file of the recording, and removes the oldest ones if the recording is too large.
fn next_file(settings: &FlightRecorder) -> io::Result<File> {
    let files = files(&settings.dir)?;
    let mut bytes = 0;
    let mut keep = settings.bytes_max - settings.bytes_max / 4;
    for (_, path) in files.iter().rev() {
        bytes += std::fs::metadata(path)?.len();
        if bytes > keep {
            keep = 0; // Removes all older files, too.
            std::fs::remove_file(path)?;
        }
    }
    let number = files.last().map_or(1, |(number, _)| number + 1);
    File::create_new(settings.dir.join(format!("{number:08}.flight")))
}

/// Returns the files of a recording with their numbers, oldest first.
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
    /// The file system reported an error.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// Path of the file or directory.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The file is not a recording, or one of another version.
    #[error("{} is not a recording that this version can read: it does not start with \"raft flight 1\"", .0.display())]
    Foreign(PathBuf),
    /// The directory has no recording.
    #[error("{} has no files named *.flight", .0.display())]
    Empty(PathBuf),
    /// The file ends within a record: the process was killed at this point, or is still writing.
    #[error("{path}: the record at byte {at} is incomplete", path = path.display())]
    Truncated {
        /// Path of the file.
        path: PathBuf,
        /// Offset of the record.
        at: u64,
    },
    /// A record does not have the content that was written.
    #[error("{path}: the record at byte {at} is damaged: {why}", path = path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Offset of the record.
        at: u64,
        /// Description of the damage.
        why: String,
    },
}

/// Returns the files of the recording at `path`, which is a directory or one file, oldest first.
///
/// # Errors
/// The directory cannot be read, or has no recording.
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
    /// Opens a file of a recording.
    ///
    /// # Errors
    /// The file cannot be read, or is not a recording.
    pub fn open(path: &Path) -> Result<Self, FlightError> {
        let io = |error| FlightError::Io { path: path.to_owned(), error };
        Self::new(path, BufReader::new(File::open(path).map_err(io)?))
    }
}

impl<R: Read> FlightReader<R> {
    /// Reads a recording from `file`; errors name `path`.
    ///
    /// # Errors
    /// The content cannot be read, or is not a recording.
    pub fn new(path: &Path, mut file: R) -> Result<Self, FlightError> {
        let io = |error| FlightError::Io { path: path.to_owned(), error };
        let mut magic = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        if magic != MAGIC {
            return Err(FlightError::Foreign(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), file, at: MAGIC.len() as u64 })
    }

    /// Returns the next record; `None` at the end of the file.
    ///
    /// # Errors
    /// The record cannot be read. The records after it cannot be read either.
    pub fn next_record(&mut self) -> Result<Option<Record>, FlightError> {
        let head = self.bytes(HEAD_BYTES)?;
        if head.is_empty() {
            return Ok(None);
        }
        let number =
            |at| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        let (Some(length), Some(sum_of_length), Some(sum)) = (number(0), number(4), number(8)) else {
            return Err(self.truncated());
        };
        // Without this check a file with a damaged length would look incomplete instead of damaged.
        if crc32c::crc32c(&length.to_le_bytes()) != sum_of_length {
            return Err(self.damaged("the checksum of its length is wrong".to_owned()));
        }
        let length = u64::from(length);
        let body = self.bytes(length)?;
        if (body.len() as u64) < length {
            return Err(self.truncated());
        }
        if crc32c::crc32c(&body) != sum {
            return Err(self.damaged("its checksum is wrong".to_owned()));
        }
        let record = codec::decode("flight record", RECORD_VERSION, &body);
        let record = record.map_err(|error: CodecError| self.damaged(error.to_string()))?;
        self.at += HEAD_BYTES + length;
        Ok(Some(record))
    }

    /// Reads up to `count` bytes. Memory use grows with the bytes that exist, not with `count`.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, FlightError> {
        let mut bytes = Vec::new();
        let read = self.file.by_ref().take(count).read_to_end(&mut bytes);
        read.map_err(|error| FlightError::Io { path: self.path.clone(), error })?;
        Ok(bytes)
    }

    fn truncated(&self) -> FlightError {
        FlightError::Truncated { path: self.path.clone(), at: self.at }
    }

    fn damaged(&self, why: String) -> FlightError {
        FlightError::Damaged { path: self.path.clone(), at: self.at, why }
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::{ConsensusEngine, LogId, LogIndex, Membership, SnapshotMeta, Term};
    use consensus_testkit::{Journal, MemLogStorage};
    use consensus_transport_mem::MemNetwork;
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
        let began = began.prop_map(|((node, run, calls), now, state)| Record::FileStart {
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
        let mut recorded = Recorded::new(raft, Some(&settings));
        recorded.step(Time::ZERO, Event::Tick);
        // The directory is gone when the recorder needs the next file, and a file is in its place.
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

    #[tokio::test]
    async fn node_starts_without_a_recorder_that_cannot_start() {
        let dir = tempfile::tempdir().unwrap();
        let settings = FlightRecorder { dir: dir.path().join("flight"), bytes_max: 1 << 20 };
        std::fs::write(&settings.dir, "in the way").unwrap();
        let builder = crate::RaftEngine::builder(NodeId(1)).voters([1]).flight_recorder(settings.clone());
        let (transport, storage) = (MemNetwork::new(1).transport(NodeId(1)), MemLogStorage::new());
        let engine = builder.start(transport, storage, Journal::new()).await.unwrap();
        engine.status().wait_for(|status| status.leader.is_some()).await.unwrap();
        engine.propose("command".into()).await.unwrap();
        engine.shutdown().await.unwrap();

        let config = consensus_raft_protocol::Config::new(NodeId(1));
        let raft = Raft::new(config, consensus_raft_protocol::Restored::default(), Time::ZERO).unwrap();
        let mut recorded = Recorded::new(raft, Some(&settings));
        std::fs::remove_file(&settings.dir).unwrap();
        recorded.flush();
        assert!(recorded.recorder.is_none(), "it is not retried at once");
        recorded.stopped.as_mut().unwrap().retry_at = Instant::now();
        recorded.flush();
        assert!(recorded.recorder.is_some() && recorded.stopped.is_none());
    }

    /// Reads all records, and the error at which reading stopped, if any.
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
        fn records_round_trip_and_truncation_and_bit_flips_are_detected(
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
            prop_assert!(matches!(end, None | Some(FlightError::Truncated { .. })), "{:?}", end);

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
