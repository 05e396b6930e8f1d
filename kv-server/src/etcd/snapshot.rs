//! `Snapshot` of the service `Maintenance`: a copy of the store, and the SHA-256 of its bytes.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, stream::BoxStream};
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
    let message = |blob, remaining_bytes| {
        Ok(SnapshotResponse { header: None, remaining_bytes, blob, version: ETCD_VERSION.to_owned() })
    };
    let mut out = Pieces::new(snapshot.size_bytes(), 0, sender, message, Handle::current());
    let failure = out.failure();
    tokio::task::spawn_blocking(move || {
        let written = snapshot.write_to(&mut out).and_then(|()| out.end());
        if let Err(error) = written {
            tracing::warn!(%error, "a snapshot for a client was not sent to its end");
            // The client, if it is still there, is told that its copy is incomplete.
            out.fail(Status::internal(format!("etcdserver: snapshot: {error}")));
        }
    });
    Box::pin(until_stopped(receiver, failure, stop))
}

/// The messages of a channel, and an error when the server stops: the client must not treat the messages so far as the whole.
pub(super) fn until_stopped<T: Send + 'static>(
    receiver: mpsc::Receiver<Result<T, Status>>,
    failure: Failure,
    stop: channel::Receiver<bool>,
) -> impl Stream<Item = Result<T, Status>> + Send {
    futures::stream::unfold(Some((receiver, failure, stop)), |state| async move {
        let (mut receiver, failure, mut stop) = state?;
        tokio::select! {
            piece = receiver.recv() => match piece {
                Some(piece) => Some((piece, Some((receiver, failure, stop)))),
                None => failure.take().map(|status| (Err(status), None)),
            },
            () = stopped(&mut stop) => Some((Err(error::stopped()), None)),
        }
    })
}

/// Bytes of a copy with its padding and its checksum.
pub(super) fn saved_bytes(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(BLOCK_BYTES) + DIGEST_BYTES
}

/// The reason that the messages end before their end. It is not among the messages: a client that takes nothing leaves no room there.
#[derive(Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Status>>>);

impl Failure {
    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }
}

/// Divides written bytes into messages.
pub(super) struct Pieces<T> {
    sender: mpsc::Sender<Result<T, Status>>,
    /// Makes a message of bytes, and of the number of bytes that follow without the checksum.
    message: fn(Bytes, u64) -> Result<T, Status>,
    runtime: Handle,
    buffer: BytesMut,
    digest: Sha256,
    /// Number of bytes left to send, without the checksum.
    left: u64,
    /// Number of bytes at the start that the client has already.
    skip: u64,
    /// Number of zeros at the end.
    padding: usize,
    failure: Failure,
}

impl<T> Pieces<T> {
    pub(super) fn new(
        size_bytes: u64,
        skip: u64,
        sender: mpsc::Sender<Result<T, Status>>,
        message: fn(Bytes, u64) -> Result<T, Status>,
        runtime: Handle,
    ) -> Self {
        let left = size_bytes.next_multiple_of(BLOCK_BYTES);
        let padding = usize::try_from(left - size_bytes).unwrap_or_default();
        Self {
            sender,
            message,
            runtime,
            buffer: BytesMut::new(),
            digest: Sha256::new(),
            left,
            skip,
            padding,
            failure: Failure::default(),
        }
    }

    /// Sends the buffered bytes.
    fn send_buffer(&mut self) -> io::Result<()> {
        let blob = self.buffer.split().freeze();
        self.digest.update(&blob);
        self.left = self.left.saturating_sub(blob.len() as u64);
        self.send(blob)
    }

    fn send(&mut self, mut blob: Bytes) -> io::Result<()> {
        let skipped = blob.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        self.skip -= skipped as u64;
        blob.advance(skipped);
        if blob.is_empty() {
            // Without messages it would go unnoticed.
            let is_gone = self.sender.is_closed();
            return if is_gone { Err(client_is_gone()) } else { Ok(()) };
        }
        let sent = tokio::time::timeout(STALL_MAX, self.sender.send((self.message)(blob, self.left)));
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(client_is_gone()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")),
        }
    }

    /// Sends the rest, and the checksum in a message of its own.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let zeros = vec![0; self.padding];
        self.write_all(&zeros)?;
        self.send_buffer()?;
        let digest = std::mem::take(&mut self.digest).finalize();
        self.send(Bytes::copy_from_slice(&digest))
    }

    /// Where the reason is found if the messages end before their end.
    pub(super) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Ends the messages with an error.
    pub(super) fn fail(&self, status: Status) {
        self.failure.set(status);
    }
}

fn client_is_gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")
}

impl<T> Write for Pieces<T> {
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
pub(super) const PIECES_MAX: usize = 4;
/// etcd's clients check that the length is a multiple of this, plus a checksum.
const BLOCK_BYTES: u64 = 512;
const DIGEST_BYTES: u64 = 32;
/// Time after which a client that reads nothing is given up, because its copy takes disk space.
const STALL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_count_down_to_the_checksum_of_a_padded_whole() {
        let (sender, mut receiver) = mpsc::channel(64);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let message = |blob, left: u64| Ok::<(Bytes, u64), Status>((blob, left));
        let mut out = Pieces::new(bytes.len() as u64, 0, sender, message, Handle::current());
        let sent = bytes.clone();
        let writing = tokio::task::spawn_blocking(move || out.write_all(&sent).and_then(|()| out.end()));
        writing.await.unwrap().unwrap();
        let mut messages = Vec::new();
        while let Some(message) = receiver.recv().await {
            messages.push(message.unwrap());
        }
        let digest = messages.pop().unwrap();
        assert_eq!((digest.0.len(), digest.1), (32, 0));
        let whole: Vec<u8> = messages.iter().flat_map(|message| message.0.to_vec()).collect();
        assert_eq!(whole.len(), 100_352);
        assert!(whole.starts_with(&bytes) && whole[bytes.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(Sha256::digest(&whole)[..], digest.0[..]);
        let mut left = whole.len() as u64;
        for message in &messages {
            left -= message.0.len() as u64;
            assert_eq!(message.1, left);
        }
    }

    #[tokio::test]
    async fn resumed_copy_continues_where_the_client_is() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let received = async |skip: u64| {
            let (sender, mut receiver) = mpsc::channel(64);
            let message = |blob: Bytes, _| Ok::<Bytes, Status>(blob);
            let mut out = Pieces::new(bytes.len() as u64, skip, sender, message, Handle::current());
            let sent = bytes.clone();
            let writing = tokio::task::spawn_blocking(move || out.write_all(&sent).and_then(|()| out.end()));
            writing.await.unwrap().unwrap();
            let mut all = Vec::new();
            while let Some(blob) = receiver.recv().await {
                all.extend_from_slice(&blob.unwrap());
            }
            all
        };
        let whole = received(0).await;
        assert_eq!(whole.len() as u64, saved_bytes(100_000));
        for skip in [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 100_000, 100_352, whole.len() - 1] {
            assert_eq!(received(skip as u64).await, whole[skip..], "{skip}");
        }
    }

    #[tokio::test]
    async fn client_that_goes_ends_the_writing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let message = |blob: Bytes, _| Ok::<Bytes, Status>(blob);
        let mut out = Pieces::new(1 << 20, 0, sender, message, Handle::current());
        let writing = tokio::task::spawn_blocking(move || out.write_all(&[0; PIECE_BYTES]));
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
