//! Thrift messages in frames of limited size. Other services use this as well (`kv-store-client`, `kv-server`).
//!
//! A frame is a length (4 bytes, big-endian) followed by that many bytes: one message of the strict binary protocol.

use std::{io, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use thrift::{
    TConfiguration,
    protocol::{
        TBinaryInputProtocol, TBinaryOutputProtocol, TInputProtocol, TMessageIdentifier, TMessageType,
        TOutputProtocol,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::codec::{Decoder, FramedRead};

/// Creates a stream of frames of at most `frame_bytes_max` bytes. A longer frame is an error before its body is read.
pub fn reader<R: AsyncRead>(io: R, frame_bytes_max: usize) -> FramedRead<R, FrameDecoder> {
    FramedRead::new(io, FrameDecoder { frame_bytes_max, awaited: None, memory: None })
}

/// Like [`reader`]. The frames of all streams that share `memory` take their bytes from it, but for the first
/// [`FREE_BYTES`] of each. If none is left, the stream fails.
pub fn reader_within<R: AsyncRead>(
    io: R,
    frame_bytes_max: usize,
    memory: FrameMemory,
) -> FramedRead<R, FrameDecoder> {
    let memory = Some(Share { memory, taken: FrameRoom::default() });
    FramedRead::new(io, FrameDecoder { frame_bytes_max, awaited: None, memory })
}

/// Memory for frames, shared by streams.
#[derive(Clone, Debug)]
pub struct FrameMemory(Arc<Semaphore>);

impl FrameMemory {
    /// `bytes` is rounded up to a multiple of 4 KiB.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes.div_ceil(UNIT_BYTES as u64)).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }
}

/// Memory that a frame takes. Dropping it gives it back.
#[derive(Debug, Default)]
pub struct FrameRoom(Option<OwnedSemaphorePermit>);

/// A stream's share of the memory.
#[derive(Debug)]
struct Share {
    memory: FrameMemory,
    taken: FrameRoom,
}

impl Share {
    /// Takes memory for a frame of which so many bytes are to be in memory.
    fn cover(&mut self, bytes: usize) -> io::Result<()> {
        let needed = bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let taken = self.taken.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(needed.saturating_sub(taken)).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        let more = self.memory.0.clone().try_acquire_many_owned(more).map_err(|_| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                "there is no memory left for large requests of all clients",
            )
        })?;
        match &mut self.taken.0 {
            Some(taken) => taken.merge(more),
            taken => *taken = Some(more),
        }
        Ok(())
    }
}

/// Splits a stream into frames, without their lengths. The memory grows with the bytes that have arrived, and not with the
/// announced length (`tokio-util`'s own codec reserves the announced length at once, for each of ten thousand connections).
#[derive(Debug)]
pub struct FrameDecoder {
    frame_bytes_max: usize,
    /// Length of the frame whose body is being received.
    awaited: Option<usize>,
    memory: Option<Share>,
}

impl FrameDecoder {
    /// Sets the length of the longest frame, in bytes, starting with the next frame.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Returns the memory that the last frame takes, or the one that is being received. To be called for each frame that was received;
    /// otherwise its memory is counted for the next one.
    pub fn take_room(&mut self) -> FrameRoom {
        self.memory.as_mut().map(|share| std::mem::take(&mut share.taken)).unwrap_or_default()
    }

    /// Whether a frame that is being received takes memory that it shares with other streams.
    #[must_use]
    pub fn holds_memory(&self) -> bool {
        self.memory.as_ref().is_some_and(|share| share.taken.0.is_some())
    }

    fn decode_length(&mut self, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
        let Some(length) = buffer.first_chunk().map(|length| u32::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= self.frame_bytes_max);
        let length = length.ok_or_else(|| {
            let why = format!("the frame exceeds the limit of {} bytes", self.frame_bytes_max);
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
            None => self.decode_length(buffer)?,
        };
        let Some(length) = awaited else { return Ok(None) };
        if let Some(share) = &mut self.memory {
            share.cover(length.min(buffer.len()))?;
        }
        if buffer.len() < length {
            buffer.reserve((length - buffer.len()).min(buffer.len().max(RESERVE_BYTES)));
            return Ok(None);
        }
        self.awaited = None;
        Ok(Some(buffer.split_to(length)))
    }
}

/// Encodes one message as a frame, including its length. `write` writes the arguments or the result.
///
/// # Errors
/// `write` failed, or the message is longer than 2 GiB.
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
            "the message is longer than a frame can be (2 GiB)",
        ))
    })?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame.into())
}

/// Opens a frame without its length. Returns the header of the message, and the protocol that reads its arguments.
///
/// Decoding allocates in proportion to the frame, whatever lengths it claims: no string may be longer than the frame, and no
/// list may have more elements than the frame has bytes, or more than 65 536.
///
/// # Errors
/// The frame does not start with a message header of the strict binary protocol.
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

/// Encodes the reply to a call that failed in the protocol itself (unknown method, arguments that cannot be decoded).
///
/// # Errors
/// The message is longer than 2 GiB.
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

/// Text of an error of the Thrift library; its own `Display` omits some texts.
#[must_use]
pub fn error_text(error: &thrift::Error) -> String {
    match error {
        thrift::Error::User(inner) => format!("refused: {inner}"),
        thrift::Error::Protocol(inner) => inner.message.clone(),
        thrift::Error::Application(inner) => inner.message.clone(),
        thrift::Error::Transport(inner) => inner.message.clone(),
    }
}

/// Writes frames until all senders are dropped or the connection fails. Frames that are queued at the same time go into one
/// write. `written` is called with the length of each frame. If `more_may_come` returns true, the task yields once before a
/// write, so that frames of other ready tasks go into the same write.
///
/// # Errors
/// Those of the connection.
pub async fn write_all<W: AsyncWrite + Unpin>(
    mut io: W,
    mut frames: mpsc::Receiver<Bytes>,
    mut written: impl FnMut(usize),
    more_may_come: impl Fn() -> bool,
) -> io::Result<()> {
    let mut batch = Vec::new();
    let mut buffer = BytesMut::new();
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
        io.flush().await?;
    }
    io.shutdown().await
}

/// Bytes of the length before a frame.
pub const LENGTH_BYTES: usize = 4;
/// Bytes of each frame for which no shared memory is taken.
pub const FREE_BYTES: usize = 64 << 10;
/// Shared memory is taken in units of this size.
const UNIT_BYTES: usize = 4 << 10;
/// Bytes reserved at first for the body of a frame, if it is that long.
const RESERVE_BYTES: usize = 64 << 10;
/// Most elements that a list may claim; the Thrift library allocates them before it reads them.
pub(crate) const CONTAINER_MAX: usize = 65_536;
/// Deepest nesting of structs; the IDLs of the workspace need six levels.
const RECURSION_MAX: usize = 32;
/// Most frames taken from the queue at once.
const BATCH_FRAMES_MAX: usize = 256;
/// Bytes up to which small frames are collected into one write.
const BUFFER_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use futures::StreamExt;
    use proptest::prelude::*;

    use super::*;

    fn call(body: &[u8]) -> Vec<u8> {
        let frame = encode("m", TMessageType::Call, 7, |_| Ok(())).unwrap();
        [&frame[4..], body].concat()
    }

    #[test]
    fn encoded_message_round_trips() {
        let frame = encode("put", TMessageType::Call, 42, |out| out.write_i32(5)).unwrap();
        let (identifier, mut protocol) = open(&frame[4..]).unwrap();
        assert_eq!((identifier.name.as_str(), identifier.sequence_number), ("put", 42));
        assert_eq!(protocol.read_i32().unwrap(), 5);
    }

    #[test]
    fn length_beyond_the_frame_is_refused() {
        for length in [i32::MAX, 1 << 24, 100, -1] {
            let frame = call(&length.to_be_bytes());
            assert!(open(&frame).unwrap().1.read_bytes().is_err(), "a string of {length} bytes");
            let frame = call(&[&[12][..], &length.to_be_bytes()].concat());
            assert!(open(&frame).unwrap().1.read_list_begin().is_err(), "a list of {length} structs");
        }
    }

    #[tokio::test]
    async fn frame_above_the_limit_is_refused_before_its_body_is_read() {
        use futures::StreamExt;
        let mut frames = reader(&[0x7f, 0xff, 0xff, 0xff, 1][..], 1000);
        assert_eq!(frames.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn memory_for_a_frame_grows_as_it_arrives() {
        use futures::StreamExt;
        let announced: &[u8] = &[0x00, 0xff, 0xff, 0xff, 1, 2, 3];
        let mut frames = reader(announced, 1 << 24);
        assert!(frames.next().await.unwrap().is_err(), "it ends within a frame");
        assert!(frames.read_buffer().capacity() < 1 << 18, "{}", frames.read_buffer().capacity());
    }

    /// Records the length of each write.
    struct Writes(Arc<std::sync::Mutex<Vec<usize>>>);

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

    #[tokio::test]
    async fn large_frames_of_all_streams_take_shared_memory_until_their_room_is_dropped() {
        let memory = FrameMemory::new(2 * FREE_BYTES as u64);
        let length = 2 * FREE_BYTES;
        let frame = [&u32::try_from(length).unwrap().to_be_bytes()[..], &vec![7; length]].concat();
        let stream = || reader_within(&frame[..], 16 << 20, memory.clone());
        let (mut first, mut second, mut third) = (stream(), stream(), stream());
        assert_eq!(first.next().await.unwrap().unwrap().len(), length);
        let room = first.decoder_mut().take_room();
        assert!(!first.decoder().holds_memory());
        assert_eq!(second.next().await.unwrap().unwrap().len(), length);
        assert_eq!(third.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        drop((room, second, third));
        let mut fourth = stream();
        assert_eq!(fourth.next().await.unwrap().unwrap().len(), length);
        let small = [&[0, 0, 0, 1][..], b"x"].concat();
        let mut fifth = reader_within(&small[..], 16 << 20, FrameMemory::new(0));
        assert_eq!(&fifth.next().await.unwrap().unwrap()[..], b"x", "a small frame needs none");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn frames_of_ready_tasks_go_into_one_write() {
        let writes = Writes(Arc::default());
        let seen = writes.0.clone();
        let (sender, frames) = mpsc::channel(16);
        let writer = tokio::spawn(write_all(writes, frames, |_| (), || true));
        // One task makes all senders ready, as a batch of responses does.
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
        fn frames_round_trip_however_the_stream_is_split(
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
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, mut protocol)) = open(&bytes) {
                let _ = protocol.skip(thrift::protocol::TType::Struct);
            }
        }
    }
}
