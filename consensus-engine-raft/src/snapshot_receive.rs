//! Gathers a snapshot that arrives in chunks.

use std::{
    fs::File,
    io::{Seek, Write},
    path::PathBuf,
};

use consensus_core::{NodeId, SnapshotChunk, SnapshotMeta, SnapshotOutcome};

/// What a chunk leads to.
pub(crate) enum Received {
    /// To be answered at once.
    Answer(SnapshotOutcome),
    /// All is here and checked; the file stands at its beginning.
    Whole(SnapshotMeta, File),
}

/// The stream being received, if any. A chunk of another stream begins that one, the old one is forgotten.
#[derive(Debug)]
pub(crate) struct Receiver {
    dir: PathBuf,
    current: Option<Stream>,
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
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, current: None }
    }

    /// Takes in a chunk; blocks on the disk.
    pub(crate) fn take(&mut self, from: NodeId, chunk: &SnapshotChunk) -> Received {
        self.try_take(from, chunk).unwrap_or_else(|error| {
            tracing::warn!(%from, %error, dir = %self.dir.display(), "cannot keep the snapshot that arrives");
            self.current = None;
            Received::Answer(SnapshotOutcome::Refused)
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
            Received::Whole(..) => SnapshotOutcome::Installed,
        }
    }

    #[test]
    fn repeated_chunks_are_taken_once() {
        let mut receiver = Receiver::new(std::env::temp_dir());
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
        }
    }

    #[test]
    fn a_later_chunk_begins_nothing() {
        let mut receiver = Receiver::new(std::env::temp_dir());
        receiver.take(NodeId(1), &chunk(7, 0, "hello", None));
        assert_eq!(outcome(receiver.take(NodeId(1), &chunk(8, 5, "x", None))), SnapshotOutcome::Refused);
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut receiver = Receiver::new(std::env::temp_dir());
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
            let mut receiver = Receiver::new(std::env::temp_dir());
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
                    Received::Answer(_) => offset = 0,
                }
            }
        }
    }
}
