//! Thrift messages in frames, with bounds; of use to other services too (`kv-store-client`, `kv-server`).
//!
//! A frame is a length (4 bytes, big-endian) and that many bytes: one message of the strict binary protocol.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use thrift::{
    TConfiguration,
    protocol::{
        TBinaryInputProtocol, TBinaryOutputProtocol, TInputProtocol, TMessageIdentifier, TMessageType,
        TOutputProtocol,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::codec::{Decoder, FramedRead};

/// Reads frames of at most `frame_bytes_max`; a longer one is an error before it is read.
pub fn reader<R: AsyncRead>(io: R, frame_bytes_max: usize) -> FramedRead<R, FrameDecoder> {
    FramedRead::new(io, FrameDecoder { frame_bytes_max, awaited: None })
}

/// Cuts frames out of a stream, without their lengths. Memory grows with what has arrived, not with what is announced
/// (`tokio-util`'s own codec reserves that at once, for each of ten thousand connections).
#[derive(Debug)]
pub struct FrameDecoder {
    frame_bytes_max: usize,
    /// Length of the frame that has begun.
    awaited: Option<usize>,
}

impl FrameDecoder {
    /// Sets the length of the longest frame, from the next one on.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    fn begin(&mut self, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
        let Some(length) = buffer.first_chunk().map(|length| u32::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= self.frame_bytes_max);
        let length = length.ok_or_else(|| {
            let why = format!("a frame of more than {} bytes", self.frame_bytes_max);
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        buffer.advance(LENGTH_BYTES);
        self.awaited = Some(length);
        Ok(Some(length))
    }
}

impl Decoder for FrameDecoder {
    type Item = BytesMut;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        let awaited = match self.awaited {
            Some(length) => Some(length),
            None => self.begin(buffer)?,
        };
        let Some(length) = awaited else { return Ok(None) };
        if buffer.len() < length {
            buffer.reserve((length - buffer.len()).min(buffer.len().max(RESERVE_BYTES)));
            return Ok(None);
        }
        self.awaited = None;
        Ok(Some(buffer.split_to(length)))
    }
}

/// One message as a frame, length included.
///
/// # Errors
/// `write` failed, or the message is longer than a frame can say.
pub fn encode(
    name: &str,
    kind: TMessageType,
    sequence: i32,
    write: impl FnOnce(&mut dyn TOutputProtocol) -> thrift::Result<()>,
) -> thrift::Result<Bytes> {
    let mut frame = vec![0; LENGTH_BYTES];
    let mut protocol = TBinaryOutputProtocol::new(&mut frame, true);
    protocol.write_message_begin(&TMessageIdentifier::new(name, kind, sequence))?;
    write(&mut protocol)?;
    protocol.write_message_end()?;
    let length = i32::try_from(frame.len() - LENGTH_BYTES).map_err(|_| {
        thrift::Error::Protocol(thrift::ProtocolError::new(
            thrift::ProtocolErrorKind::SizeLimit,
            "the message is longer than a frame",
        ))
    })?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame.into())
}

/// Opens a frame: who is called, and the protocol that reads the arguments.
///
/// Decoding allocates in proportion to the frame, whatever lengths it claims: no string is longer than the frame and no
/// list has more elements than the frame has bytes (or than 65 536).
///
/// # Errors
/// The frame does not begin with a message of the strict binary protocol.
pub fn open(frame: &[u8]) -> thrift::Result<(TMessageIdentifier, TBinaryInputProtocol<&[u8]>)> {
    let config = TConfiguration::builder()
        .max_message_size(Some(frame.len()))
        .max_frame_size(Some(frame.len()))
        .max_string_size(Some(frame.len()))
        .max_container_size(Some(frame.len().min(CONTAINER_MAX)))
        .max_recursion_depth(Some(RECURSION_MAX))
        .build()?;
    let mut protocol = TBinaryInputProtocol::with_config(frame, true, config);
    let identifier = protocol.read_message_begin()?;
    Ok((identifier, protocol))
}

/// Answers a call with an error of the protocol itself (unknown method, arguments that cannot be read).
///
/// # Errors
/// The message is longer than a frame can say.
pub fn encode_application_error(
    name: &str,
    sequence: i32,
    kind: thrift::ApplicationErrorKind,
    message: &str,
) -> thrift::Result<Bytes> {
    let error = thrift::ApplicationError::new(kind, message);
    encode(name, TMessageType::Exception, sequence, |out| {
        thrift::Error::write_application_error_to_out_protocol(&error, out)
    })
}

/// An error of the Thrift library in words; its own `Display` leaves some out.
#[must_use]
pub fn describe(error: &thrift::Error) -> String {
    match error {
        thrift::Error::User(inner) => format!("refused: {inner}"),
        thrift::Error::Protocol(inner) => inner.message.clone(),
        thrift::Error::Application(inner) => inner.message.clone(),
        thrift::Error::Transport(inner) => inner.message.clone(),
    }
}

/// Writes frames as they come, as many as wait in one write; ends when the senders are gone or the connection fails.
/// `written` hears of the length of each. If `more_may_come`, other tasks that are ready go first: what they send goes out in
/// the same write.
///
/// # Errors
/// Those of the connection.
pub async fn write_all<W: AsyncWrite + Unpin>(
    mut io: W,
    mut frames: mpsc::Receiver<Bytes>,
    mut written: impl FnMut(usize),
    more_may_come: impl Fn() -> bool,
) -> io::Result<()> {
    let (mut batch, mut buffer) = (Vec::new(), BytesMut::new());
    while frames.recv_many(&mut batch, BATCH_FRAMES_MAX).await > 0 {
        if more_may_come() {
            tokio::task::yield_now().await;
            let waiting = frames.len().min(BATCH_FRAMES_MAX);
            batch.extend((0..waiting).map_while(|_| frames.try_recv().ok()));
        }
        for frame in batch.drain(..) {
            if buffer.len() + frame.len() > BUFFER_BYTES {
                io.write_all_buf(&mut buffer).await?;
            }
            if frame.len() > BUFFER_BYTES {
                io.write_all(&frame).await?;
            } else {
                buffer.extend_from_slice(&frame);
            }
            written(frame.len());
        }
        io.write_all_buf(&mut buffer).await?;
    }
    io.shutdown().await
}

/// Of the length in front of a frame.
const LENGTH_BYTES: usize = 4;
/// Room made at least for a frame that has begun, if it needs as much.
const RESERVE_BYTES: usize = 64 << 10;
/// Elements that a list may claim to have; they are allocated at once, before they are read.
pub(crate) const CONTAINER_MAX: usize = 65_536;
/// Structs within structs; the vocabularies of the workspace need six.
const RECURSION_MAX: usize = 32;
/// Frames taken from the queue at once.
const BATCH_FRAMES_MAX: usize = 256;
/// Small frames are gathered up to here into one write.
const BUFFER_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use proptest::prelude::*;

    use super::*;

    fn call(body: &[u8]) -> Vec<u8> {
        let frame = encode("m", TMessageType::Call, 7, |_| Ok(())).unwrap();
        [&frame[4..], body].concat()
    }

    #[test]
    fn a_message_comes_back() {
        let frame = encode("put", TMessageType::Call, 42, |out| out.write_i32(5)).unwrap();
        let (identifier, mut protocol) = open(&frame[4..]).unwrap();
        assert_eq!((identifier.name.as_str(), identifier.sequence_number), ("put", 42));
        assert_eq!(protocol.read_i32().unwrap(), 5);
    }

    #[test]
    fn hostile_lengths_are_refused_before_they_allocate() {
        for length in [i32::MAX, 1 << 24, 100, -1] {
            let frame = call(&length.to_be_bytes());
            assert!(open(&frame).unwrap().1.read_bytes().is_err(), "a string of {length} bytes");
            let frame = call(&[&[12][..], &length.to_be_bytes()].concat());
            assert!(open(&frame).unwrap().1.read_list_begin().is_err(), "a list of {length} structs");
        }
    }

    #[tokio::test]
    async fn a_long_frame_is_refused_by_its_length_alone() {
        use futures::StreamExt;
        let mut frames = reader(&[0x7f, 0xff, 0xff, 0xff, 1][..], 1000);
        assert_eq!(frames.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_announced_frame_is_allocated_as_it_arrives() {
        use futures::StreamExt;
        let announced: &[u8] = &[0x00, 0xff, 0xff, 0xff, 1, 2, 3];
        let mut frames = reader(announced, 1 << 24);
        assert!(frames.next().await.unwrap().is_err(), "it ends within a frame");
        assert!(frames.read_buffer().capacity() < 1 << 18, "{}", frames.read_buffer().capacity());
    }

    /// Counts what is written at once.
    struct Writes(std::sync::Arc<std::sync::Mutex<Vec<usize>>>);

    impl AsyncWrite for Writes {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_others_are_about_to_send_goes_out_in_the_same_write() {
        let writes = Writes(std::sync::Arc::default());
        let seen = writes.0.clone();
        let (sender, frames) = mpsc::channel(16);
        let writer = tokio::spawn(write_all(writes, frames, |_| (), || true));
        // All are made ready by one task, as by the answers that came together.
        let senders = tokio::spawn(async move {
            for _ in 0..10 {
                let sender = sender.clone();
                tokio::spawn(async move { sender.send(Bytes::from_static(b"frame")).await });
            }
        });
        senders.await.unwrap();
        writer.await.unwrap().unwrap();
        assert_eq!(*seen.lock().unwrap(), [50]);
    }

    proptest! {
        #[test]
        fn frames_come_back_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
            piece in 1usize..100,
            missing in 1usize..10,
        ) {
            let framed = |frame: &Vec<u8>| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
            let stream: Vec<u8> = frames.iter().flat_map(framed).collect();
            let read = |stream: &[u8]| {
                let (mut buffer, mut decoder) = (BytesMut::new(), reader(&[][..], 300).into_parts().codec);
                let mut read = Vec::new();
                for piece in stream.chunks(piece) {
                    buffer.extend_from_slice(piece);
                    while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                        read.push(frame.to_vec());
                    }
                }
                read
            };
            prop_assert_eq!(&read(&stream), &frames);
            let cut = &stream[..stream.len().saturating_sub(missing)];
            let whole = frames.iter().scan(0, |end, frame| { *end += 4 + frame.len(); Some(*end) });
            let whole = whole.filter(|end| *end <= cut.len()).count();
            prop_assert_eq!(&read(cut)[..], &frames[..whole]);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, mut protocol)) = open(&bytes) {
                let _ = protocol.skip(thrift::protocol::TType::Struct);
            }
        }
    }
}
