//! Whether what is sent arrives.
//!
//! Messages are one-way, and a connection over a network that drops everything looks like one whose peer has nothing to
//! say: TCP repeats what is lost, waits longer each time, and gives up after minutes. When the network is back it may be
//! seconds until TCP tries again. So the callee says on the same connection how many bytes it has received. A caller
//! with bytes under way that hears nothing for a while replaces the connection.
//!
//! Receipts of the application, and not the acknowledgements of TCP (`TCP_USER_TIMEOUT`, `TIOCOUTQ`), because they are
//! the same on every system, and because they also tell of a proxy or a firewall in between that swallows what it has
//! acknowledged, and of a process that is stopped. They are counted in bytes, so that a large frame on a slow network is
//! progress while it arrives.

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
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
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
pub(crate) struct Counter {
    bytes: AtomicU64,
    grown: Notify,
}

impl Counter {
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

/// Half of a connection whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    half: T,
    counter: Arc<Counter>,
}

impl<T> Counted<T> {
    pub(crate) fn new(half: T, counter: Arc<Counter>) -> Self {
        Self { half, counter }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
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

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
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

/// The caller's reading half: what the callee answers, and whether it still receives.
#[derive(Debug)]
pub(crate) struct Answers {
    frames: FramedRead<OwnedReadHalf, framing::FrameDecoder>,
    sent: Arc<Counter>,
    /// Bytes that the callee has, as it last said.
    received: u64,
    /// To which cluster the callee belongs, as it last said.
    callee_cluster: watch::Sender<ClusterId>,
    stall_timeout: Duration,
}

impl Answers {
    pub(crate) fn new(
        frames: FramedRead<OwnedReadHalf, framing::FrameDecoder>,
        sent: Arc<Counter>,
        stall_timeout: Duration,
        callee_cluster: ClusterId,
    ) -> Self {
        let callee_cluster = watch::Sender::new(callee_cluster);
        Self { frames, sent, received: 0, callee_cluster, stall_timeout }
    }

    /// To which cluster the callee belongs.
    pub(crate) fn callee_cluster(&self) -> watch::Receiver<ClusterId> {
        self.callee_cluster.subscribe()
    }

    /// The next answer. Takes in receipts meanwhile.
    ///
    /// # Errors
    /// The connection ended, or bytes are under way and the callee has said nothing for the stall timeout.
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
            match calls::read_received(&frame) {
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
        let why = format!("the peer acknowledged nothing for {silence} ms of what was sent to it");
        io::Error::new(io::ErrorKind::TimedOut, why)
    }
}

/// Tells the caller how much was received, and to which cluster this node belongs: at once when something was or that
/// changed, then at most every `interval`. Ends with the connection.
pub(crate) async fn acknowledge(
    received: &Counter,
    writer: &Mutex<OwnedWriteHalf>,
    interval: Duration,
    mut cluster: watch::Receiver<ClusterId>,
) -> io::Result<()> {
    loop {
        tokio::select! {
            () = received.grown.notified() => {}
            changed = cluster.changed() => changed.map_err(|_| io::ErrorKind::ConnectionAborted)?,
        }
        let receipt = Receipt { bytes: received.bytes(), cluster: *cluster.borrow_and_update() };
        let frame = calls::received(receipt)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, framing::describe(&error)))?;
        writer.lock().await.write_all(&frame).await?;
        sleep(interval).await;
    }
}

pub(crate) async fn next_frame<R: AsyncRead + Unpin>(
    frames: &mut FramedRead<R, framing::FrameDecoder>,
) -> io::Result<BytesMut> {
    frames.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}

/// The shortest interval between receipts, whatever the caller asks for.
pub(crate) const INTERVAL_MIN: Duration = Duration::from_millis(5);
/// The longest one.
pub(crate) const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Receipts come so many times within the stall timeout, so that one that is late replaces no connection.
pub(crate) const RECEIPTS_PER_STALL_TIMEOUT: u32 = 4;
