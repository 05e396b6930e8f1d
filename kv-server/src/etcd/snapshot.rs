//! `Snapshot` of the service `Maintenance`: a copy of the store, and the SHA-256 of its bytes.

use std::{
    io::{self, Write},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use kv_etcd_api::etcdserverpb::SnapshotResponse;
use kv_state_machine::StoreSnapshot;
use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch as channel},
};
use tonic::Status;

use super::{error, maintenance::ETCD_VERSION};
use crate::frontend::stopped;

pub(super) type Answers = BoxStream<'static, Result<SnapshotResponse, Status>>;

/// Sends a copy of the store to a client, as fast as the client takes it.
pub(super) fn send(snapshot: StoreSnapshot, stop: channel::Receiver<bool>) -> Answers {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let mut out = Pieces::new(snapshot.size_bytes(), sender, Handle::current());
    tokio::task::spawn_blocking(move || {
        let written = snapshot.write_to(&mut out).and_then(|()| out.end());
        if let Err(error) = written {
            tracing::warn!(%error, "a snapshot for a client was not sent to its end");
            out.fail(&error);
        }
    });
    Box::pin(futures::stream::unfold(Some((receiver, stop)), |state| async move {
        let (mut receiver, mut stop) = state?;
        tokio::select! {
            piece = receiver.recv() => Some((piece?, Some((receiver, stop)))),
            // The client must not treat the messages so far as the whole.
            () = stopped(&mut stop) => Some((Err(error::stopped()), None)),
        }
    }))
}

/// Divides written bytes into messages.
struct Pieces {
    sender: mpsc::Sender<Result<SnapshotResponse, Status>>,
    runtime: Handle,
    buffer: BytesMut,
    digest: Sha256,
    /// Number of bytes left to send, without the checksum.
    left: u64,
    /// Number of zeros at the end.
    padding: usize,
}

impl Pieces {
    fn new(size_bytes: u64, sender: mpsc::Sender<Result<SnapshotResponse, Status>>, runtime: Handle) -> Self {
        let left = size_bytes.next_multiple_of(BLOCK_BYTES);
        let padding = usize::try_from(left - size_bytes).unwrap_or_default();
        Self { sender, runtime, buffer: BytesMut::new(), digest: Sha256::new(), left, padding }
    }

    /// Sends the buffered bytes.
    fn send_buffer(&mut self) -> io::Result<()> {
        let blob = self.buffer.split().freeze();
        self.digest.update(&blob);
        self.left = self.left.saturating_sub(blob.len() as u64);
        self.send(blob)
    }

    fn send(&self, blob: Bytes) -> io::Result<()> {
        let (remaining_bytes, version) = (self.left, ETCD_VERSION.to_owned());
        let response = SnapshotResponse { header: None, remaining_bytes, blob, version };
        let sent = tokio::time::timeout(STALL_MAX, self.sender.send(Ok(response)));
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")),
        }
    }

    /// Sends the rest, and the checksum in a message of its own.
    fn end(&mut self) -> io::Result<()> {
        let zeros = vec![0; self.padding];
        self.write_all(&zeros)?;
        self.send_buffer()?;
        let digest = std::mem::take(&mut self.digest).finalize();
        self.send(Bytes::copy_from_slice(&digest))
    }

    /// Tells the client, if it is still there, that its copy is incomplete.
    fn fail(&self, error: &io::Error) {
        let _ = self.sender.try_send(Err(Status::internal(format!("etcdserver: snapshot: {error}"))));
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE_BYTES {
            self.send_buffer()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of one message, as in etcd.
const PIECE_BYTES: usize = 32 << 10;
/// Maximum number of messages that wait for the client.
const PIECES_MAX: usize = 4;
/// etcd's clients check that the length is a multiple of this, plus a checksum.
const BLOCK_BYTES: u64 = 512;
/// Time after which a client that reads nothing is given up, because its copy takes disk space.
const STALL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_count_down_to_the_checksum_of_a_padded_whole() {
        let (sender, mut receiver) = mpsc::channel(64);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mut out = Pieces::new(bytes.len() as u64, sender, Handle::current());
        let sent = bytes.clone();
        let writing = tokio::task::spawn_blocking(move || out.write_all(&sent).and_then(|()| out.end()));
        writing.await.unwrap().unwrap();
        let mut messages = Vec::new();
        while let Some(message) = receiver.recv().await {
            messages.push(message.unwrap());
        }
        let digest = messages.pop().unwrap();
        assert_eq!((digest.blob.len(), digest.remaining_bytes), (32, 0));
        let whole: Vec<u8> = messages.iter().flat_map(|message| message.blob.to_vec()).collect();
        assert_eq!(whole.len(), 100_352);
        assert!(whole.starts_with(&bytes) && whole[bytes.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(Sha256::digest(&whole)[..], digest.blob[..]);
        let mut left = whole.len() as u64;
        for message in &messages {
            left -= message.blob.len() as u64;
            assert_eq!((message.remaining_bytes, &message.version[..]), (left, ETCD_VERSION));
        }
    }

    #[tokio::test]
    async fn client_that_goes_ends_the_writing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let mut out = Pieces::new(1 << 20, sender, Handle::current());
        let writing = tokio::task::spawn_blocking(move || out.write_all(&[0; PIECE_BYTES]));
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
