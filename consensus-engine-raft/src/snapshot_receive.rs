//! Gathers a snapshot that arrives in chunks.

use std::{
    fs::File,
    io::{Seek, Write},
    path::PathBuf,
};

use consensus_core::{NodeId, SnapshotChunk, SnapshotMeta, SnapshotOutcome};
use consensus_storage_dir::Reserve;

/// What a chunk leads to.
pub(crate) enum Received {
    /// To be answered at once.
    Answer(SnapshotOutcome),
    /// To be refused, for a reason of this node.
    Blocked(String),
    /// All is here and checked; the file stands at its beginning.
    Whole(SnapshotMeta, File),
}

/// The stream being received, if any. A chunk of another stream begins that one, the old one is forgotten.
#[derive(Debug)]
pub(crate) struct Receiver {
    dir: PathBuf,
    /// Room on the disk of `dir` that snapshots leave.
    reserve: Reserve,
    current: Option<Stream>,
    /// Room that the next snapshot needs, at least, in bytes: as much as one that was refused for want of room had needed by
    /// then. Less with each refusal, as the next snapshot may be smaller.
    needed_bytes: u64,
    /// The last snapshot was refused; it was said why.
    is_blocked: bool,
}

#[derive(Debug)]
struct Stream {
    from: NodeId,
    transfer: u64,
    meta: SnapshotMeta,
    file: File,
    offset: u64,
    sum: u32,
}

impl Receiver {
    /// For snapshots that are kept in `dir` while they arrive, and leave `reserve_bytes` of its disk free.
    pub(crate) fn new(dir: PathBuf, reserve_bytes: u64) -> Self {
        let reserve = Reserve::new(&dir, reserve_bytes);
        Self { dir, reserve, current: None, needed_bytes: 0, is_blocked: false }
    }

    /// Takes in a chunk; blocks on the disk.
    pub(crate) fn take(&mut self, from: NodeId, chunk: &SnapshotChunk) -> Received {
        self.try_take(from, chunk).unwrap_or_else(|error| {
            self.current = None;
            let why = format!("cannot keep the snapshot of node {from} in {}: {error}", self.dir.display());
            self.blocked(why)
        })
    }

    /// The state machine did not take a snapshot that was whole; it has `bytes`.
    pub(crate) fn not_installed(&mut self, bytes: u64) {
        // The stream is kept while the state machine makes its own files of it.
        self.needed_bytes = self.needed_bytes.max(bytes.saturating_mul(2));
    }

    /// A snapshot was taken: what is refused next is said again.
    pub(crate) fn installed(&mut self) {
        (self.needed_bytes, self.is_blocked) = (0, false);
    }

    fn blocked(&mut self, why: String) -> Received {
        if std::mem::replace(&mut self.is_blocked, true) {
            tracing::debug!(why, "a snapshot is refused");
        } else {
            tracing::warn!(why, "a snapshot is refused; the leader sends another one later");
        }
        Received::Blocked(why)
    }

    /// Refuses what would leave less than the reserve.
    fn check_room(&mut self, stream: &Stream, more: u64) -> Result<(), String> {
        let needed = if stream.offset == 0 { more.max(self.needed_bytes) } else { more };
        self.reserve.check(needed).inspect_err(|_| {
            self.needed_bytes = if stream.offset == 0 && self.needed_bytes > more {
                self.needed_bytes / 8 * 7
            } else {
                stream.offset.saturating_add(more)
            };
        })
    }

    fn try_take(&mut self, from: NodeId, chunk: &SnapshotChunk) -> std::io::Result<Received> {
        let is_current =
            |s: &mut Stream| s.from == from && s.transfer == chunk.transfer && s.meta.last == chunk.meta.last;
        let mut stream = match self.current.take_if(is_current) {
            Some(stream) => stream,
            // A later chunk of a stream that is not known cannot begin it (known bug S7).
            None if chunk.offset > 0 => {
                return Ok(Received::Answer(SnapshotOutcome::Refused));
            }
            None => Stream {
                from,
                transfer: chunk.transfer,
                meta: chunk.meta.clone(),
                file: tempfile::tempfile_in(&self.dir)?,
                offset: 0,
                sum: 0,
            },
        };
        if chunk.offset == stream.offset {
            if let Err(why) = self.check_room(&stream, chunk.data.len() as u64) {
                return Ok(self.blocked(format!("no room for the snapshot of node {from}: {why}")));
            }
            stream.file.write_all(&chunk.data)?;
            stream.offset += chunk.data.len() as u64;
            stream.sum = crc32c::crc32c_append(stream.sum, &chunk.data);
            if let Some(sum) = chunk.last {
                if sum != stream.sum {
                    tracing::warn!(%from, "the snapshot's checksum is wrong; refused");
                    return Ok(Received::Answer(SnapshotOutcome::Refused));
                }
                stream.file.rewind()?;
                return Ok(Received::Whole(stream.meta, stream.file));
            }
        }
        // A chunk seen before is answered like the first time.
        let offset = stream.offset;
        self.current = Some(stream);
        Ok(Received::Answer(SnapshotOutcome::Continue { offset }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use consensus_core::{LogId, Term};
    use proptest::prelude::*;

    use super::*;

    fn chunk(transfer: u64, offset: u64, data: &'static str, last: Option<u32>) -> SnapshotChunk {
        let meta = SnapshotMeta { last: LogId::new(1, 5), ..SnapshotMeta::default() };
        SnapshotChunk { term: Term(1), transfer, meta, offset, data: data.into(), last }
    }

    fn outcome(received: Received) -> SnapshotOutcome {
        match received {
            Received::Answer(outcome) => outcome,
            Received::Blocked(_) => SnapshotOutcome::Refused,
            Received::Whole(..) => SnapshotOutcome::Installed,
        }
    }

    #[test]
    fn repeated_chunks_are_taken_once() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 0);
        let five = SnapshotOutcome::Continue { offset: 5 };
        for _ in 0..2 {
            assert_eq!(outcome(receiver.take(NodeId(1), &chunk(7, 0, "hello", None))), five);
        }
        match receiver.take(NodeId(1), &chunk(7, 5, "", Some(crc32c::crc32c(b"hello")))) {
            Received::Whole(_, mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello");
            }
            Received::Answer(outcome) => panic!("{outcome:?}"),
            Received::Blocked(why) => panic!("{why}"),
        }
    }

    #[test]
    fn chunk_beyond_the_reserve_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = Receiver::new(dir.path().to_owned(), 1 << 60);
        let Received::Blocked(why) = receiver.take(NodeId(1), &chunk(7, 0, "hello", None)) else {
            panic!("it was taken");
        };
        assert!(why.contains("node 1") && why.contains("MiB free"), "{why}");
        // Nothing is left of the stream.
        assert_eq!(outcome(receiver.take(NodeId(1), &chunk(7, 5, "x", None))), SnapshotOutcome::Refused);
    }

    #[test]
    fn snapshot_that_had_no_room_is_refused_at_its_start_until_there_is_enough() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 1);
        receiver.not_installed(1 << 59);
        let mut refused = 0;
        while let Received::Blocked(_) = receiver.take(NodeId(1), &chunk(7, 0, "hello", None)) {
            refused += 1;
        }
        assert!(refused > 10, "{refused}: the next one may be smaller, but not at once by much");
    }

    #[test]
    fn directory_that_cannot_be_written_is_named() {
        let mut receiver = Receiver::new("/nonexistent/snapshots".into(), 0);
        let Received::Blocked(why) = receiver.take(NodeId(1), &chunk(7, 0, "hello", None)) else {
            panic!("it was taken");
        };
        assert!(why.contains("/nonexistent/snapshots"), "{why}");
    }

    #[test]
    fn a_later_chunk_begins_nothing() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 0);
        receiver.take(NodeId(1), &chunk(7, 0, "hello", None));
        assert_eq!(outcome(receiver.take(NodeId(1), &chunk(8, 5, "x", None))), SnapshotOutcome::Refused);
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 0);
        assert_eq!(
            outcome(receiver.take(NodeId(1), &chunk(7, 0, "hello", Some(1)))),
            SnapshotOutcome::Refused
        );
    }

    proptest! {
        /// Chunks come late, twice, from others and changed; and the sender goes on where it is told to.
        #[test]
        fn what_is_whole_is_what_was_sent(
            data in prop::collection::vec(any::<u8>(), 0..200),
            size in 1usize..50,
            noise in prop::collection::vec((0u64..3, 0u64..3, 0u64..250, any::<Vec<u8>>(), any::<Option<u32>>()), 0..12),
        ) {
            let mut receiver = Receiver::new(std::env::temp_dir(), 0);
            let meta = SnapshotMeta { last: LogId::new(1, 5), ..SnapshotMeta::default() };
            let chunk = |transfer, offset: u64, data: &[u8], last| {
                let (meta, data) = (meta.clone(), data.to_vec().into());
                SnapshotChunk { term: Term(1), transfer, meta, offset, data, last }
            };
            let sum = crc32c::crc32c(&data);
            let (mut offset, mut noise) = (0usize, noise.into_iter());
            loop {
                if let Some((from, transfer, at, bytes, last)) = noise.next()
                    && let Received::Whole(_, mut file) = receiver.take(NodeId(from), &chunk(transfer, at, &bytes, last))
                {
                    let mut whole = Vec::new();
                    file.read_to_end(&mut whole).unwrap();
                    prop_assert_eq!(Some(crc32c::crc32c(&whole)), last);
                }
                let piece = &data[offset..data.len().min(offset + size)];
                let last = (offset + piece.len() == data.len()).then_some(sum);
                match receiver.take(NodeId(9), &chunk(7, offset as u64, piece, last)) {
                    Received::Whole(_, mut file) => {
                        let mut whole = Vec::new();
                        file.read_to_end(&mut whole).unwrap();
                        prop_assert_eq!(&whole, &data);
                        break;
                    }
                    Received::Answer(SnapshotOutcome::Continue { offset: next }) => offset = next as usize,
                    // Another stream has begun meanwhile.
                    Received::Answer(_) | Received::Blocked(_) => offset = 0,
                }
            }
        }
    }
}
