//! Connections that are plain or encrypted.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, tcp},
};
use tokio_rustls::TlsStream;

use crate::certificate::PeerCertificate;

/// A connection that is plain or encrypted.
///
/// An encrypted one may hold up to 64 KiB that were written and not yet sent: who writes must flush, or the other side waits.
/// For a plain one that costs nothing.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Waits for the first byte that is not yet read, which stays to be read. `None`: the other side has closed the connection.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn peek(&mut self) -> io::Result<Option<u8>> {
        match self {
            Self::Plain(stream) => {
                let mut first = [0];
                Ok((stream.peek(&mut first).await? > 0).then_some(first[0]))
            }
            Self::Tls(stream) => Ok(stream.fill_buf().await?.first().copied()),
        }
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The certificate that the other side showed, verified; `None` if it showed none.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<PeerCertificate> {
        let Self::Tls(stream) = self else { return None };
        let (_, session) = stream.get_ref();
        session.peer_certificates()?.first().map(PeerCertificate::of)
    }

    /// The TCP connection.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Splits the connection into its directions, for tasks of their own.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                (ReadHalf::Plain(reader), WriteHalf::Plain(writer))
            }
            Self::Tls(stream) => {
                let (reader, writer) = tokio::io::split(*stream);
                (ReadHalf::Tls(reader), WriteHalf::Tls(writer))
            }
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

/// The direction from the other side.
#[derive(Debug)]
pub enum ReadHalf {
    /// Without TLS.
    Plain(tcp::OwnedReadHalf),
    /// With TLS.
    Tls(tokio::io::ReadHalf<TlsStream<TcpStream>>),
}

/// The direction to the other side. See [`Stream`] on flushing. Dropping one of a plain connection closes the direction; one of an
/// encrypted connection must be shut down.
#[derive(Debug)]
pub enum WriteHalf {
    /// Without TLS.
    Plain(tcp::OwnedWriteHalf),
    /// With TLS.
    Tls(tokio::io::WriteHalf<TlsStream<TcpStream>>),
}

macro_rules! delegate {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain($stream) => $call,
            Self::Tls($stream) => $call,
        }
    };
}

macro_rules! reads {
    ($name:ident) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                delegate!(self, stream => Pin::new(stream).poll_read(context, buffer))
            }
        }
    };
}

macro_rules! writes {
    ($name:ident) => {
        impl AsyncWrite for $name {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                delegate!(self, stream => Pin::new(stream).poll_write(context, bytes))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                parts: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                delegate!(self, stream => Pin::new(stream).poll_write_vectored(context, parts))
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Plain(stream) => stream.is_write_vectored(),
                    Self::Tls(stream) => stream.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                delegate!(self, stream => Pin::new(stream).poll_flush(context))
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                delegate!(self, stream => Pin::new(stream).poll_shutdown(context))
            }
        }
    };
}

reads!(Stream);
reads!(ReadHalf);
writes!(Stream);
writes!(WriteHalf);
