//! For the crate `fuzz`: what an engine makes of bytes that peers send.

use std::{io::Read, path::Path};

use consensus_core::{NodeId, SnapshotChunk, SnapshotMeta, SnapshotOutcome, codec::CodecError};

use crate::{
    driver,
    snapshot_receive::{Received, Receiver},
};

/// Reads a message of the engine's own and writes it again.
///
/// # Errors
/// It is none.
pub fn forwarded(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    driver::reread_forwarded(bytes)
}

/// Gathers the streams that these chunks make, with files in `dir`; the answers, and what came to be whole.
pub fn gather(
    dir: &Path,
    chunks: impl IntoIterator<Item = (NodeId, SnapshotChunk)>,
) -> Vec<Result<SnapshotOutcome, (SnapshotMeta, Vec<u8>)>> {
    let mut receiver = Receiver::new(dir.to_owned(), 0);
    let take = |(from, chunk)| match receiver.take(from, &chunk) {
        Received::Answer(outcome) => Ok(outcome),
        Received::Blocked(_) => Ok(SnapshotOutcome::Refused),
        Received::Whole(meta, mut file) => {
            let mut whole = Vec::new();
            file.read_to_end(&mut whole).expect("a file just written can be read");
            Err((meta, whole))
        }
    };
    chunks.into_iter().map(take).collect()
}
