//! The first bytes of a connection of HTTP, which tell its version.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use consensus_tls::Stream;
use metrics::Counter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::timeout,
};

use crate::measure;

/// A connection whose first bytes were read. They are read again.
pub(super) struct Opened {
    stream: Stream,
    first: [u8; PREFACE.len()],
    /// Bytes of `first` that are still to be read again.
    left: std::ops::Range<usize>,
    written: Arc<LastWrite>,
    received_bytes: Counter,
    sent_bytes: Counter,
}

/// Time of the last write of more than answers to pings and the like.
pub(super) struct LastWrite {
    opened: Instant,
    /// Milliseconds since `opened`.
    millis: AtomicU64,
}

impl LastWrite {
    /// Time since then.
    pub(super) fn elapsed(&self) -> Duration {
        self.opened.elapsed().saturating_sub(Duration::from_millis(self.millis.load(Ordering::Relaxed)))
    }

    fn note(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(bytes)) if *bytes > CONTROL_BYTES) {
            let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.millis.store(millis, Ordering::Relaxed);
        }
    }
}

impl Opened {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.sent_bytes.increment(*bytes as u64);
        }
        self.written.note(written);
    }

    pub(super) fn last_write(&self) -> Arc<LastWrite> {
        self.written.clone()
    }
}

/// Reads as much of a connection as it takes to tell HTTP/2 from HTTP/1. A client that does not send as much in time keeps
/// nothing: its connection is closed.
///
/// # Errors
/// The connection failed, or the client is too slow.
pub(super) async fn read(mut stream: Stream) -> io::Result<Opened> {
    let (mut first, mut length) = ([0; PREFACE.len()], 0);
    let reading = async {
        while length < first.len() && PREFACE.starts_with(&first[..length]) {
            match stream.read(&mut first[length..]).await? {
                0 => break,
                read => length += read,
            }
        }
        Ok::<(), io::Error>(())
    };
    let too_slow =
        |_| io::Error::new(io::ErrorKind::TimedOut, "the client does not say which HTTP it speaks");
    timeout(FIRST_BYTES_TIMEOUT, reading).await.map_err(too_slow)??;
    let written = Arc::new(LastWrite { opened: Instant::now(), millis: AtomicU64::new(0) });
    let (received_bytes, sent_bytes) = (measure::received_bytes(), measure::sent_bytes());
    Ok(Opened { stream, first, left: 0..length, written, received_bytes, sent_bytes })
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            let before = buffer.filled().len();
            let read = Pin::new(&mut self.stream).poll_read(context, buffer);
            self.received_bytes.increment((buffer.filled().len() - before) as u64);
            return read;
        }
        let length = self.left.len().min(buffer.remaining());
        buffer.put_slice(&self.first[self.left.start..][..length]);
        self.left.start += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// First bytes of an HTTP/2 client.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frames of HTTP/2 without data, a few together, have at most so many bytes.
const CONTROL_BYTES: usize = 64;
/// Time for the first bytes. HTTP's own timeouts bound the rest.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A client's end of a connection, and the server's.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_that_tell_the_version_are_read_again() {
        for request in [&b"GET /health HTTP/1.1\r\n\r\n"[..], b"PUT / HTTP/1.1\r\n\r\n", PREFACE, b"P"] {
            let (mut client, server) = connection().await;
            client.write_all(request).await.unwrap();
            client.shutdown().await.unwrap();
            let mut seen = Vec::new();
            read(server.into()).await.unwrap().read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, request);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_sends_one_letter_is_given_up() {
        let (mut client, server) = connection().await;
        client.write_all(b"P").await.unwrap();
        let error = read(server.into()).await.err().expect("it is given up");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
