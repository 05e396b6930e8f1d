//! Entry points for the crate `fuzz`: functions that process bytes of peers.

use std::{io::Read, path::Path};

use consensus_core::{NodeId, SnapshotChunk, SnapshotMeta, SnapshotOutcome, codec::CodecError};

use crate::{
    driver,
    snapshot_receive::{Received, Receiver},
};

/// Decodes a message between engines and encodes it again.
///
/// # Errors
/// `bytes` is not such a message.
pub fn forwarded(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    driver::reencode_forwarded(bytes)
}

/// Receives the snapshot streams in `chunks`, with files in `dir`. Returns the response to each chunk, or the complete
/// snapshot.
pub fn gather(
    dir: &Path,
    chunks: impl IntoIterator<Item = (NodeId, SnapshotChunk)>,
) -> Vec<Result<SnapshotOutcome, (SnapshotMeta, Vec<u8>)>> {
    let mut receiver = Receiver::new(dir.to_owned(), 0);
    let take = |(from, chunk)| match receiver.take(from, &chunk) {
        Received::Respond(outcome) => Ok(outcome),
        Received::Blocked(_) => Ok(SnapshotOutcome::Refused),
        Received::Complete(meta, mut file) => {
            let mut whole = Vec::new();
            file.read_to_end(&mut whole).expect("a file just written can be read");
            Err((meta, whole))
        }
    };
    chunks.into_iter().map(take).collect()
}
