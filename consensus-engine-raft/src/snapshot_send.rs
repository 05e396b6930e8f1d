//! Streams a snapshot to a follower, separately from other messages.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use consensus_core::{
    LogIndex, NetworkTransport, NodeId, Snapshot, SnapshotChunk, SnapshotMeta, SnapshotOutcome, Term,
};
use tokio::sync::mpsc;

use crate::measure;

/// A transfer of one snapshot.
pub(crate) struct Transfer {
    pub(crate) transport: Arc<dyn NetworkTransport>,
    pub(crate) to: NodeId,
    pub(crate) term: Term,
    /// Number of the transfer, which this node has not used before.
    pub(crate) number: u64,
    pub(crate) meta: SnapshotMeta,
    pub(crate) chunk_bytes: usize,
    pub(crate) threads: bool,
    pub(crate) retry: Duration,
    pub(crate) resume: Duration,
    /// Limit in bytes per second; 0 for none.
    pub(crate) bytes_per_second: u64,
    /// Number of bytes that the follower has acknowledged.
    pub(crate) progress: Arc<AtomicU64>,
}

impl Transfer {
    /// Sends the snapshot. Returns its last index once the follower has installed it.
    pub(crate) async fn run(self, snapshot: Box<dyn Snapshot>) -> Result<LogIndex, SendFailure> {
        self.stream(snapshot).await?;
        measure::snapshot_sent();
        Ok(self.meta.last.index)
    }

    async fn stream(&self, snapshot: Box<dyn Snapshot>) -> Result<(), SendFailure> {
        let pieces = if self.threads { pieces_of } else { pieces_in_memory };
        let mut pieces = pieces(snapshot, self.chunk_bytes);
        let (mut offset, mut sum) = (0, 0);
        let began = tokio::time::Instant::now();
        loop {
            let data = match pieces.recv().await {
                Some(Piece::Data(data)) => data,
                Some(Piece::End) => {
                    return match self.send(offset, Bytes::new(), Some(sum)).await? {
                        SnapshotOutcome::Installed => Ok(()),
                        other => Err(self.refused(&other, offset)),
                    };
                }
                Some(Piece::Failed(error)) => {
                    return Err(SendFailure::Local(format!("the snapshot cannot be read: {error}")));
                }
                None => {
                    return Err(SendFailure::Local(
                        "the thread that reads the snapshot ended unexpectedly".to_owned(),
                    ));
                }
            };
            sum = crc32c::crc32c_append(sum, &data);
            let next = offset + data.len() as u64;
            match self.send(offset, data, None).await? {
                SnapshotOutcome::Continue { offset } if offset == next => {}
                // A repeated chunk is acknowledged like the first copy; a stream cannot be resumed at any other offset.
                other => return Err(self.refused(&other, offset)),
            }
            measure::snapshot_chunk_sent((next - offset) as usize);
            offset = next;
            self.progress.store(offset, Ordering::Relaxed);
            // The deadline is computed from the start, so that delays are made up for.
            if self.bytes_per_second > 0 {
                let due = Duration::from_secs_f64(offset as f64 / self.bytes_per_second as f64);
                tokio::time::sleep_until(began + due).await;
            }
        }
    }

    /// Sends one chunk, repeatedly with the same offset while the network fails; the receiver accepts it once.
    async fn send(
        &self,
        offset: u64,
        data: Bytes,
        last: Option<u32>,
    ) -> Result<SnapshotOutcome, SendFailure> {
        let began = tokio::time::Instant::now();
        loop {
            let (term, transfer, meta) = (self.term, self.number, self.meta.clone());
            let chunk = SnapshotChunk { term, transfer, meta, offset, data: data.clone(), last };
            match self.transport.send_snapshot_chunk(self.to, chunk).await {
                Ok(ack) => return Ok(ack.outcome),
                // Without an accepted chunk there is nothing to resume.
                Err(error) if offset == 0 || began.elapsed() >= self.resume => {
                    return Err(SendFailure::Network(error.to_string()));
                }
                Err(_) => tokio::time::sleep(self.retry).await,
            }
        }
    }
}

impl Transfer {
    fn refused(&self, outcome: &SnapshotOutcome, offset: u64) -> SendFailure {
        let to = self.to;
        SendFailure::Refused(match outcome {
            SnapshotOutcome::Refused => {
                format!(
                    "node {to} refused it after {offset} bytes; the log and the status of node {to} have the reason"
                )
            }
            other => format!("node {to} responded {other:?} after {offset} bytes"),
        })
    }
}

/// Why sending a snapshot failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendFailure {
    /// This node could not take or read the snapshot.
    Local(String),
    /// The member refused the snapshot.
    Refused(String),
    /// The member could not be reached.
    Network(String),
}

enum Piece {
    Data(Bytes),
    End,
    Failed(std::io::Error),
}

/// Runs the snapshot's writer on a thread that may block, at most two chunks ahead of the network.
fn pieces_of(mut snapshot: Box<dyn Snapshot>, chunk_bytes: usize) -> mpsc::Receiver<Piece> {
    let (pieces, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut writer = ChunkWriter { buffer: BytesMut::with_capacity(chunk_bytes), chunk_bytes, pieces };
        let last = match snapshot.write_to(&mut writer).and_then(|()| writer.flush()) {
            Ok(()) => Piece::End,
            Err(error) => Piece::Failed(error),
        };
        let _ = writer.pieces.blocking_send(last);
    });
    receiver
}

/// Writes the whole snapshot at once, for one that is in memory anyway.
fn pieces_in_memory(mut snapshot: Box<dyn Snapshot>, chunk_bytes: usize) -> mpsc::Receiver<Piece> {
    let mut bytes = Vec::new();
    let last = match snapshot.write_to(&mut bytes) {
        Ok(()) => Piece::End,
        Err(error) => Piece::Failed(error),
    };
    let data = bytes.chunks(chunk_bytes).map(|data| Piece::Data(Bytes::copy_from_slice(data)));
    let pieces: Vec<Piece> = data.chain([last]).collect();
    let (sender, receiver) = mpsc::channel(pieces.len());
    for piece in pieces {
        let _ = sender.try_send(piece); // The channel has room for all.
    }
    receiver
}

struct ChunkWriter {
    buffer: BytesMut,
    chunk_bytes: usize,
    pieces: mpsc::Sender<Piece>,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let take = bytes.len().min(self.chunk_bytes - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..take]);
        if self.buffer.len() == self.chunk_bytes {
            self.flush()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = self.buffer.split().freeze();
        self.buffer.reserve(self.chunk_bytes);
        let stopped = |_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the transfer was stopped");
        self.pieces.blocking_send(Piece::Data(data)).map_err(stopped)
    }
}
