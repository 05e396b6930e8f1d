//! Receives a snapshot in chunks.

use std::{
    fs::File,
    io::{Seek, Write},
    path::PathBuf,
};

use consensus_core::{NodeId, SnapshotChunk, SnapshotMeta, SnapshotOutcome};
use consensus_storage_dir::Reserve;

/// Result of receiving a chunk.
pub(crate) enum Received {
    /// The response to send at once.
    Respond(SnapshotOutcome),
    /// Respond with a refusal; the reason is on this node.
    Blocked(String),
    /// The snapshot is complete and verified; the file is positioned at its start.
    Complete(SnapshotMeta, File),
}

/// The stream that is being received, if any. The first chunk of another stream replaces it.
#[derive(Debug)]
pub(crate) struct Receiver {
    dir: PathBuf,
    /// Free space that snapshots must leave on the disk of `dir`.
    reserve: Reserve,
    current: Option<Stream>,
    /// Bytes that the next snapshot is assumed to need at least: what one that was refused for lack of room had needed by
    /// then. Decreases with each refusal, because the next snapshot may be smaller.
    needed_bytes: u64,
    /// Whether the last snapshot was refused, and the reason was logged.
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
    /// Receives snapshots into files in `dir`, and leaves `reserve_bytes` of its disk free.
    pub(crate) fn new(dir: PathBuf, reserve_bytes: u64) -> Self {
        let reserve = Reserve::new(&dir, reserve_bytes);
        Self { dir, reserve, current: None, needed_bytes: 0, is_blocked: false }
    }

    /// Processes a chunk; blocks on the disk.
    pub(crate) fn take(&mut self, from: NodeId, chunk: &SnapshotChunk) -> Received {
        self.try_take(from, chunk).unwrap_or_else(|error| {
            self.current = None;
            let why = format!("cannot keep the snapshot of node {from} in {}: {error}", self.dir.display());
            self.blocked(why)
        })
    }

    /// Must be called when the state machine failed to restore a complete snapshot of `bytes` bytes.
    pub(crate) fn not_installed(&mut self, bytes: u64) {
        // The received file still exists while the state machine writes its own files.
        self.needed_bytes = self.needed_bytes.max(bytes.saturating_mul(2));
    }

    /// Must be called when a snapshot was installed: the next refusal is logged as a warning again.
    pub(crate) fn installed(&mut self) {
        (self.needed_bytes, self.is_blocked) = (0, false);
    }

    fn blocked(&mut self, why: String) -> Received {
        if std::mem::replace(&mut self.is_blocked, true) {
            tracing::debug!(why, "a snapshot was refused");
        } else {
            tracing::warn!(why, "a snapshot was refused; the leader will send another one");
        }
        Received::Blocked(why)
    }

    /// Refuses data that would leave less free space than the reserve.
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
            // A stream cannot start with a later chunk (known bug S7).
            None if chunk.offset > 0 => {
                return Ok(Received::Respond(SnapshotOutcome::Refused));
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
                    tracing::warn!(%from, "the snapshot was refused: its checksum is wrong");
                    return Ok(Received::Respond(SnapshotOutcome::Refused));
                }
                stream.file.rewind()?;
                return Ok(Received::Complete(stream.meta, stream.file));
            }
        }
        // A repeated chunk gets the same response as the first copy.
        let offset = stream.offset;
        self.current = Some(stream);
        Ok(Received::Respond(SnapshotOutcome::Continue { offset }))
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
            Received::Respond(outcome) => outcome,
            Received::Blocked(_) => SnapshotOutcome::Refused,
            Received::Complete(..) => SnapshotOutcome::Installed,
        }
    }

    #[test]
    fn repeated_chunks_are_accepted_once() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 0);
        let five = SnapshotOutcome::Continue { offset: 5 };
        for _ in 0..2 {
            assert_eq!(outcome(receiver.take(NodeId(1), &chunk(7, 0, "hello", None))), five);
        }
        match receiver.take(NodeId(1), &chunk(7, 5, "", Some(crc32c::crc32c(b"hello")))) {
            Received::Complete(_, mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello");
            }
            Received::Respond(outcome) => panic!("{outcome:?}"),
            Received::Blocked(why) => panic!("{why}"),
        }
    }

    #[test]
    fn chunk_beyond_the_reserve_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = Receiver::new(dir.path().to_owned(), 1 << 60);
        let Received::Blocked(why) = receiver.take(NodeId(1), &chunk(7, 0, "hello", None)) else {
            panic!("it was accepted");
        };
        assert!(why.contains("node 1") && why.contains("MiB free"), "{why}");
        // The stream was discarded.
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
            panic!("it was accepted");
        };
        assert!(why.contains("/nonexistent/snapshots"), "{why}");
    }

    #[test]
    fn later_chunk_does_not_start_a_stream() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 0);
        receiver.take(NodeId(1), &chunk(7, 0, "hello", None));
        assert_eq!(outcome(receiver.take(NodeId(1), &chunk(8, 5, "x", None))), SnapshotOutcome::Refused);
    }

    #[test]
    fn wrong_checksum_is_refused() {
        let mut receiver = Receiver::new(std::env::temp_dir(), 0);
        assert_eq!(
            outcome(receiver.take(NodeId(1), &chunk(7, 0, "hello", Some(1)))),
            SnapshotOutcome::Refused
        );
    }

    proptest! {
        /// Chunks arrive late, twice, from other senders and changed; the sender continues at the offset in each response.
        #[test]
        fn complete_stream_equals_the_sent_data(
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
                    && let Received::Complete(_, mut file) = receiver.take(NodeId(from), &chunk(transfer, at, &bytes, last))
                {
                    let mut whole = Vec::new();
                    file.read_to_end(&mut whole).unwrap();
                    prop_assert_eq!(Some(crc32c::crc32c(&whole)), last);
                }
                let piece = &data[offset..data.len().min(offset + size)];
                let last = (offset + piece.len() == data.len()).then_some(sum);
                match receiver.take(NodeId(9), &chunk(7, offset as u64, piece, last)) {
                    Received::Complete(_, mut file) => {
                        let mut whole = Vec::new();
                        file.read_to_end(&mut whole).unwrap();
                        prop_assert_eq!(&whole, &data);
                        break;
                    }
                    Received::Respond(SnapshotOutcome::Continue { offset: next }) => offset = next as usize,
                    // Another stream has started in the meantime.
                    Received::Respond(_) | Received::Blocked(_) => offset = 0,
                }
            }
        }
    }
}
