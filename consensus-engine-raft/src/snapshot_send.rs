//! Streams a snapshot to a follower, beside the messages.

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

/// One transfer.
pub(crate) struct Transfer {
    pub(crate) transport: Arc<dyn NetworkTransport>,
    pub(crate) to: NodeId,
    pub(crate) term: Term,
    /// Not used by this node before.
    pub(crate) number: u64,
    pub(crate) meta: SnapshotMeta,
    pub(crate) chunk_bytes: usize,
    pub(crate) threads: bool,
    pub(crate) retry: Duration,
    pub(crate) resume: Duration,
    /// 0: no bound.
    pub(crate) bytes_per_second: u64,
    /// How many bytes the follower has, for others to see.
    pub(crate) progress: Arc<AtomicU64>,
}

impl Transfer {
    /// Sends `picture`; returns the snapshot's last index once the follower has it.
    pub(crate) async fn run(self, picture: Box<dyn Snapshot>) -> Result<LogIndex, SendFailure> {
        self.stream(picture).await?;
        measure::snapshot_sent();
        Ok(self.meta.last.index)
    }

    async fn stream(&self, picture: Box<dyn Snapshot>) -> Result<(), SendFailure> {
        let pieces = if self.threads { pieces_of } else { pieces_in_memory };
        let mut pieces = pieces(picture, self.chunk_bytes);
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
                        "the thread that reads the snapshot ended early".to_owned(),
                    ));
                }
            };
            sum = crc32c::crc32c_append(sum, &data);
            let next = offset + data.len() as u64;
            match self.send(offset, data, None).await? {
                SnapshotOutcome::Continue { offset } if offset == next => {}
                // A repeated chunk was already there; anything else cannot be resumed from a stream.
                other => return Err(self.refused(&other, offset)),
            }
            measure::snapshot_chunk_sent((next - offset) as usize);
            offset = next;
            self.progress.store(offset, Ordering::Relaxed);
            // It is due when the whole so far is, so that a late chunk is made up for.
            if self.bytes_per_second > 0 {
                let due = Duration::from_secs_f64(offset as f64 / self.bytes_per_second as f64);
                tokio::time::sleep_until(began + due).await;
            }
        }
    }

    /// One chunk, repeated with the same offset while the network fails; the receiver takes it once.
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
                // Before the first there is nothing to go on with.
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
                format!("node {to} refused it after {offset} bytes; its log and its status say why")
            }
            other => format!("node {to} answered {other:?} after {offset} bytes"),
        })
    }
}

/// Why a snapshot was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendFailure {
    /// This node could not take or read it.
    Local(String),
    /// The member does not take it.
    Refused(String),
    /// The member could not be reached.
    Network(String),
}

enum Piece {
    Data(Bytes),
    End,
    Failed(std::io::Error),
}

/// Runs the picture's writer on a thread that may block; two chunks ahead of the network at most.
fn pieces_of(mut picture: Box<dyn Snapshot>, chunk_bytes: usize) -> mpsc::Receiver<Piece> {
    let (pieces, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut writer = ChunkWriter { buffer: BytesMut::with_capacity(chunk_bytes), chunk_bytes, pieces };
        let last = match picture.write_to(&mut writer).and_then(|()| writer.flush()) {
            Ok(()) => Piece::End,
            Err(error) => Piece::Failed(error),
        };
        let _ = writer.pieces.blocking_send(last);
    });
    receiver
}

/// For a picture that is in memory anyway, all of it at once.
fn pieces_in_memory(mut picture: Box<dyn Snapshot>, chunk_bytes: usize) -> mpsc::Receiver<Piece> {
    let mut bytes = Vec::new();
    let last = match picture.write_to(&mut bytes) {
        Ok(()) => Piece::End,
        Err(error) => Piece::Failed(error),
    };
    let data = bytes.chunks(chunk_bytes).map(|data| Piece::Data(Bytes::copy_from_slice(data)));
    let pieces: Vec<Piece> = data.chain([last]).collect();
    let (sender, receiver) = mpsc::channel(pieces.len());
    for piece in pieces {
        let _ = sender.try_send(piece); // There is room for each.
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
