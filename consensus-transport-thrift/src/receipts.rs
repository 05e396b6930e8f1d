//! Receipts, which detect connections that do not deliver.
//!
//! Messages are one-way, and a connection over a network that drops all packets looks like an idle one: TCP repeats lost
//! packets in growing intervals and gives up after minutes. When the network works again, it may take seconds until TCP
//! tries again. So the callee sends receipts on the same connection, with the number of bytes that it has received. A caller
//! with unacknowledged bytes that gets no receipt for a while replaces the connection.
//!
//! These are receipts of the application instead of TCP's acknowledgements (`TCP_USER_TIMEOUT`, `TIOCOUTQ`), because they
//! work the same on every operating system, and because they also detect a proxy or firewall that drops what it has
//! acknowledged, and a stopped process. They count bytes, so that a large frame on a slow network counts as progress.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use consensus_core::ClusterId;
use consensus_tls::{ReadHalf, WriteHalf};
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::{Mutex, Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::codec::FramedRead;

use crate::{
    calls::{self, Receipt},
    framing,
};

/// Counts the bytes of one direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct ByteCounter {
    bytes: AtomicU64,
    grown: Notify,
}

impl ByteCounter {
    fn add(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.grown.notify_one();
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// One half of a connection, which counts its bytes.
#[derive(Debug)]
pub(crate) struct CountingHalf<T> {
    half: T,
    counter: Arc<ByteCounter>,
}

impl<T> CountingHalf<T> {
    pub(crate) fn new(half: T, counter: Arc<ByteCounter>) -> Self {
        Self { half, counter }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CountingHalf<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.half).poll_read(context, buffer))?;
        self.counter.add(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CountingHalf<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.half).poll_write(context, bytes))?;
        self.counter.add(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(context)
    }
}

/// The caller's reading half of a connection: reads responses and receipts.
#[derive(Debug)]
pub(crate) struct ResponseReader {
    frames: FramedRead<ReadHalf, framing::FrameDecoder>,
    sent: Arc<ByteCounter>,
    /// Bytes received by the callee, according to its last receipt.
    received: u64,
    /// Cluster of the callee, according to its last receipt.
    callee_cluster: watch::Sender<ClusterId>,
    stall_timeout: Duration,
}

impl ResponseReader {
    pub(crate) fn new(
        frames: FramedRead<ReadHalf, framing::FrameDecoder>,
        sent: Arc<ByteCounter>,
        stall_timeout: Duration,
        callee_cluster: ClusterId,
    ) -> Self {
        let callee_cluster = watch::Sender::new(callee_cluster);
        Self { frames, sent, received: 0, callee_cluster, stall_timeout }
    }

    /// Cluster of the callee, as a value that can be watched.
    pub(crate) fn callee_cluster(&self) -> watch::Receiver<ClusterId> {
        self.callee_cluster.subscribe()
    }

    /// Reads the next response, and handles receipts in the meantime.
    ///
    /// # Errors
    /// The connection ended, or there are unacknowledged bytes and no receipt arrived for the stall timeout.
    pub(crate) async fn next(&mut self) -> io::Result<BytesMut> {
        loop {
            let frame = if self.received < self.sent.bytes() {
                timeout(self.stall_timeout, next_frame(&mut self.frames))
                    .await
                    .map_err(|_| self.stalled())??
            } else {
                tokio::select! {
                    frame = next_frame(&mut self.frames) => frame?,
                    () = self.sent.grown.notified() => continue,
                }
            };
            match calls::read_receipt(&frame) {
                Some(Receipt { bytes, cluster }) => {
                    self.received = self.received.max(bytes);
                    self.callee_cluster
                        .send_if_modified(|known| std::mem::replace(known, cluster) != cluster);
                }
                None => return Ok(frame),
            }
        }
    }

    fn stalled(&self) -> io::Error {
        let silence = self.stall_timeout.as_millis();
        let why = format!("the peer acknowledged none of the sent bytes for {silence} ms");
        io::Error::new(io::ErrorKind::TimedOut, why)
    }
}

/// Sends receipts to the caller whenever bytes were received or this node's cluster changed, but at most one per `interval`.
/// Returns when the connection ends.
pub(crate) async fn acknowledge(
    received: &ByteCounter,
    writer: &Mutex<WriteHalf>,
    interval: Duration,
    mut cluster: watch::Receiver<ClusterId>,
) -> io::Result<()> {
    loop {
        tokio::select! {
            () = received.grown.notified() => {}
            changed = cluster.changed() => changed.map_err(|_| io::ErrorKind::ConnectionAborted)?,
        }
        let receipt = Receipt { bytes: received.bytes(), cluster: *cluster.borrow_and_update() };
        let frame = calls::encode_receipt(receipt)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, framing::error_text(&error)))?;
        let mut writer = writer.lock().await;
        writer.write_all(&frame).await?;
        writer.flush().await?;
        drop(writer);
        sleep(interval).await;
    }
}

pub(crate) async fn next_frame<R: AsyncRead + Unpin>(
    frames: &mut FramedRead<R, framing::FrameDecoder>,
) -> io::Result<BytesMut> {
    frames.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}

/// Shortest interval between receipts; shorter requests are raised.
pub(crate) const INTERVAL_MIN: Duration = Duration::from_millis(5);
/// Longest interval between receipts.
pub(crate) const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Receipts per stall timeout: several, so that a single late receipt does not replace the connection.
pub(crate) const RECEIPTS_PER_STALL_TIMEOUT: u32 = 4;
