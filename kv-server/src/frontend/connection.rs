//! One client's connection.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use consensus_tls::{ReadHalf, WriteHalf};
use consensus_transport_thrift::framing::{self, FrameMemory, FrameRoom};
use futures::{StreamExt, stream::FuturesUnordered};
use kv_store_client::protocol::{self, Call, Fault, Incoming, Reply};
use thrift::ApplicationErrorKind;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Instant, Sleep},
};
use tokio_util::codec::FramedRead;

use super::{caller::ConnectionCaller, stopped};
use crate::{
    answers::{ConnectionBudget, Room},
    call_log, convert,
    measure::{self, ThriftMeasures},
    polls::ConnectionPolls,
    routing::RoutingManager,
};

/// Frames from a client.
pub(super) type Frames = FramedRead<ReadHalf, framing::FrameDecoder>;

pub(super) fn frames(reader: ReadHalf, memory: FrameMemory) -> Frames {
    framing::reader_within(reader, FRAME_BYTES_MAX, memory)
}

/// Both directions of a connection.
pub(super) struct Halves {
    pub(super) frames: Frames,
    pub(super) writer: WriteHalf,
}

/// Serves a connection until the client ends it or `stop` says so.
pub(super) async fn serve(
    Halves { frames, writer }: Halves,
    router: Arc<RoutingManager>,
    budget: ConnectionBudget,
    polls: ConnectionPolls,
    caller: ConnectionCaller,
    may_forward: bool,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut connection = Connection {
        frames,
        writer,
        budget: budget.clone(),
        answers: Outgoing::default(),
        request_bytes: 0,
        received: None,
        stalled: None,
        arrival: None,
    };
    let may_forward = AtomicBool::new(may_forward);
    let answer = |incoming: Incoming, request_bytes: usize, request_room: FrameRoom| {
        if matches!(incoming.call, Ok(Call::NoForwarding(_))) {
            may_forward.store(false, Ordering::Relaxed);
        }
        let (may_forward, mut room) = (may_forward.load(Ordering::Relaxed), budget.room());
        let (router, polls, caller) = (router.clone(), polls.clone(), caller.clone());
        async move {
            let frame =
                answer(&router, &polls, &caller, may_forward, incoming, Some(request_bytes), &mut room).await;
            Answer { frame, room, request_bytes, _request_room: request_room }
        }
    };
    let mut calls = FuturesUnordered::new();
    let mut stopped = pin!(stopped(&mut stop));
    poll_fn(|context| {
        if connection.received.is_none() && stopped.as_mut().poll(context).is_ready() {
            connection.received = Some(Ok(()));
        }
        let polled = connection.poll(context, &mut calls, answer);
        if connection.received.is_some() {
            // Nobody waits for events any more.
            polls.end();
        }
        polled
    })
    .await?;
    // A connection with TLS first sends the bytes that it holds, for which the client must read.
    tokio::time::timeout(STALLED_MAX, connection.writer.shutdown()).await??;
    connection.received.unwrap_or(Ok(()))
}

/// The answer to a call, as a frame; in `room` what it takes.
pub(super) async fn answer(
    router: &RoutingManager,
    polls: &ConnectionPolls,
    caller: &ConnectionCaller,
    may_forward: bool,
    incoming: Incoming,
    request_bytes: Option<usize>,
    room: &mut Room,
) -> Bytes {
    let Incoming { sequence, name, call } = incoming;
    let measures = measure::thrift_calls(&name);
    let start = measures.and_then(ThriftMeasures::start_time);
    let served = async {
        let user = caller.get(router);
        call_log::note_caller(&user);
        match call {
            Ok(Call::Login(request)) => Box::pin(caller.log_in(router, request)).await,
            Ok(Call::NoForwarding(expected)) => caller.identify(router, &expected),
            // On the heap, so that other calls take no room for it.
            Ok(Call::Watch(request)) => Box::pin(polls.poll(router, &user, request, room)).await,
            Ok(Call::ChangeAuth(change)) => {
                Box::pin(router.change_auth(&user, caller.origin(), change, room)).await
            }
            Ok(Call::BetweenNodes(bytes)) => {
                Box::pin(router.execute_for_node(caller.channel(), &bytes, may_forward, room)).await
            }
            Ok(call) => match caller.count_session(router, &call) {
                Ok(()) => router.execute(&user, call, may_forward, room).await,
                Err(fault) => Err(fault),
            },
            Err(fault) => Err(fault),
        }
    };
    let (outcome, record) = call_log::recorded(caller.record(router, &name), served).await;
    if let Some(measures) = measures {
        measures.done(start, &outcome);
    }
    let record = record.map(|mut record| {
        record.note_revision(outcome.as_ref().ok().and_then(convert::revision_of));
        (record, outcome.as_ref().map_or_else(convert::fault_name, |_| call_log::OK))
    });
    let frame = encode(&name, sequence, outcome);
    if let Some((mut record, result)) = record {
        record.note_sizes(request_bytes, frame.len());
        record.end(result);
    }
    room.settle(frame.len());
    frame
}

/// An outcome as a frame; empty if there is no way to say it.
pub(super) fn encode(name: &str, sequence: i32, outcome: Result<Reply, Fault>) -> Bytes {
    let frame = protocol::encode_reply(name, sequence, outcome).or_else(|error| {
        let message = framing::error_text(&error);
        let fault = Fault::Application { kind: ApplicationErrorKind::InternalError, message };
        protocol::encode_reply(name, sequence, Err(fault))
    });
    frame.unwrap_or_default()
}

pub(super) fn read_call(frame: &[u8]) -> io::Result<Incoming> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, framing::error_text(&error));
    protocol::read_call(frame).map_err(invalid)
}

/// The answer to a call, and what is given back with it.
struct Answer {
    frame: Bytes,
    room: Room,
    /// Length of the request.
    request_bytes: usize,
    /// Memory of the request.
    _request_room: FrameRoom,
}

/// One task does everything for a connection: what comes together is taken together, and what is answered together goes out
/// in one write.
struct Connection {
    frames: Frames,
    writer: WriteHalf,
    budget: ConnectionBudget,
    answers: Outgoing,
    /// Of the calls in hand.
    request_bytes: usize,
    /// Set when no call is taken any more, with the reason.
    received: Option<io::Result<()>>,
    /// Since the client takes no answers: the next moment to look whether others wait for the memory of its answers, and
    /// when it is to be taken.
    stalled: Option<Stalled>,
    /// Set while a large request arrives.
    arrival: Option<Arrival>,
}

/// Progress of a large request.
struct Arrival {
    /// Bytes that had arrived at the last look.
    bytes: usize,
    /// When the connection ends without more.
    until: std::pin::Pin<Box<Sleep>>,
}

impl Arrival {
    fn new(bytes: usize) -> Self {
        Self { bytes, until: Box::pin(tokio::time::sleep(ARRIVAL_TIME)) }
    }

    /// Notes how many bytes of the request there are. Fewer than before: another request has begun.
    fn note(&mut self, bytes: usize) {
        if bytes < self.bytes || bytes >= self.bytes + ARRIVAL_BYTES {
            *self = Self::new(bytes);
        }
    }
}

struct Stalled {
    until: Instant,
    look: std::pin::Pin<Box<Sleep>>,
}

impl Connection {
    /// Ready when nothing is to be done any more, or nothing can be.
    fn poll<F: Future<Output = Answer>>(
        &mut self,
        context: &mut Context<'_>,
        calls: &mut FuturesUnordered<F>,
        answer: impl Fn(Incoming, usize, FrameRoom) -> F,
    ) -> Poll<io::Result<()>> {
        let mut left = AT_ONCE;
        loop {
            let mut moved = false;
            // Calls in hand go on whether or not the client takes its answers: they may hold what others wait for.
            while left > 0
                && let Poll::Ready(Some(answer)) = calls.poll_next_unpin(context)
            {
                self.request_bytes -= answer.request_bytes;
                self.answers.push(answer.frame, answer.room);
                (left, moved) = (left - 1, true);
            }
            // But no more is taken from one that does not.
            while left > 0
                && self.takes_calls(calls.len())
                && let Poll::Ready(frame) = self.frames.poll_next_unpin(context)
            {
                let call = frame.map(|frame| frame.and_then(|frame| Ok((read_call(&frame)?, frame.len()))));
                match call {
                    Some(Ok((incoming, bytes))) => {
                        self.request_bytes += bytes;
                        calls.push(answer(incoming, bytes, self.frames.decoder_mut().take_room()));
                    }
                    Some(Err(error)) => self.received = Some(Err(error)),
                    None => self.received = Some(Ok(())),
                }
                (left, moved) = (left - 1, true);
            }
            if moved && left > 0 {
                continue;
            }
            let wrote = self.answers.poll_write(&mut self.writer, context)?;
            if left == 0 {
                context.waker().wake_by_ref(); // Others have their turn.
                return Poll::Pending;
            }
            if wrote {
                self.stalled = None;
                continue;
            }
            if self.answers.is_empty() && self.received.is_some() && calls.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = self.poll_arrival(context, calls.len()) {
                self.received = Some(Err(error)); // Calls in hand are answered first.
                continue;
            }
            if self.answers.is_sent() {
                self.stalled = None;
                return Poll::Pending;
            }
            return self.poll_stalled(context);
        }
    }

    fn takes_calls(&self, in_hand: usize) -> bool {
        self.received.is_none()
            && in_hand < CALLS_MAX
            && self.request_bytes < REQUESTS_BYTES_MAX
            && self.answers.bytes < WRITTEN_BYTES_MAX
    }

    /// Ends a connection whose client stops in the middle of a large request, which takes memory from other clients.
    fn poll_arrival(&mut self, context: &mut Context<'_>, in_hand: usize) -> io::Result<()> {
        // While no call is taken, the client waits for this server.
        if !self.takes_calls(in_hand) || !self.frames.decoder().holds_memory() {
            self.arrival = None;
            return Ok(());
        }
        let bytes = self.frames.read_buffer().len();
        let arrival = self.arrival.get_or_insert_with(|| Arrival::new(bytes));
        arrival.note(bytes);
        match arrival.until.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                let why = "a large request does not arrive";
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }

    /// Ends a connection whose client takes no answers while others wait for the memory that they occupy.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let budget = &self.budget;
        let now = Instant::now();
        let stalled = self.stalled.get_or_insert_with(|| Stalled {
            until: now + STALLED_MAX,
            look: Box::pin(tokio::time::sleep(STALLED_MAX)),
        });
        loop {
            ready!(stalled.look.as_mut().poll(context));
            if Instant::now() >= stalled.until && budget.is_contended() {
                let why = "it takes no answers while others wait for the memory that they occupy";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
            stalled.look.as_mut().reset(Instant::now() + STALLED_LOOK);
        }
    }
}

/// Answers on their way out.
#[derive(Default)]
struct Outgoing {
    /// Large ones, and what was gathered before them.
    ready: VecDeque<Bytes>,
    /// Small ones in one piece, behind the others.
    gathered: BytesMut,
    /// Bytes in both.
    bytes: usize,
    /// Bytes pushed and bytes written, since the beginning.
    pushed: u64,
    written: u64,
    /// Up to where which answers go, for those that occupy room.
    rooms: VecDeque<(u64, Room)>,
    /// Whether the connection may hold written bytes that it has not sent.
    is_unflushed: bool,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether the connection holds nothing either that the client does not take.
    fn is_sent(&self) -> bool {
        self.is_empty() && !self.is_unflushed
    }

    fn push(&mut self, frame: Bytes, room: Room) {
        self.bytes += frame.len();
        self.pushed += frame.len() as u64;
        if !room.is_empty() {
            self.rooms.push_back((self.pushed, room));
        }
        if frame.len() < LARGE_BYTES {
            self.gathered.extend_from_slice(&frame);
            return;
        }
        if !self.gathered.is_empty() {
            self.ready.push_back(self.gathered.split().freeze());
        }
        self.ready.push_back(frame);
    }

    /// Whether something was written.
    fn poll_write(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> io::Result<bool> {
        if self.is_empty() {
            if self.is_unflushed && pin!(writer).poll_flush(context)?.is_ready() {
                self.is_unflushed = false;
            }
            return Ok(false);
        }
        let piece = self.ready.front().map_or(&self.gathered[..], |front| &front[..]);
        let written = match pin!(writer).poll_write(context, piece)? {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(written) => written,
            Poll::Pending => return Ok(false),
        };
        self.is_unflushed = true;
        self.forget(written);
        Ok(true)
    }

    fn forget(&mut self, written: usize) {
        self.bytes -= written;
        self.written += written as u64;
        match self.ready.front_mut() {
            Some(front) => {
                front.advance(written);
                if front.is_empty() {
                    self.ready.pop_front();
                }
            }
            None => self.gathered.advance(written),
        }
        while self.rooms.front().is_some_and(|(end, _)| *end <= self.written) {
            self.rooms.pop_front();
        }
        if self.is_empty() && self.gathered.capacity() > 2 * WRITTEN_BYTES_MAX {
            self.gathered = BytesMut::new(); // The memory of many responses is freed.
        }
    }
}

/// Longest request and reply.
pub(super) const FRAME_BYTES_MAX: usize = 16 << 20;
/// Calls in hand per connection.
const CALLS_MAX: usize = 1024;
/// Requests in hand per connection. With more, no call is taken; the last one may come on top.
const REQUESTS_BYTES_MAX: usize = 16 << 20;
/// Answers that wait for the client to read. With more, no call is taken; those in hand may come on top.
const WRITTEN_BYTES_MAX: usize = 256 << 10;
/// Calls and answers that a connection may move before others have their turn.
const AT_ONCE: usize = 256;
/// Answers that are not copied together with others into one write.
const LARGE_BYTES: usize = 64 << 10;
/// A large request must grow by so many bytes in this time.
const ARRIVAL_BYTES: usize = 64 << 10;
const ARRIVAL_TIME: Duration = Duration::from_secs(20);
/// How long a client may take no answers while others wait for their memory, and how often that is looked at.
const STALLED_MAX: Duration = Duration::from_secs(3);
const STALLED_LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::{pin::Pin, task::Waker};

    use super::*;
    use crate::answers::NodeBudget;

    /// Takes so many bytes with each write.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let piece = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..piece]);
            Poll::Ready(Ok(piece))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn answers_go_out_in_order_and_give_their_room_back_when_written() {
        let budget = NodeBudget::new(1 << 20, 1 << 20).connection();
        let (mut outgoing, mut expected) = (Outgoing::default(), Vec::new());
        for (fill, len) in [(1, 10), (2, LARGE_BYTES), (3, 20), (4, 30), (5, LARGE_BYTES + 1), (6, 5)] {
            let frame = vec![fill; len];
            expected.extend_from_slice(&frame);
            let mut room = budget.room();
            room.reserve(300 << 10).await;
            room.settle(len);
            outgoing.push(frame.into(), room);
        }
        assert_eq!((outgoing.bytes, outgoing.rooms.len()), (expected.len(), 6));
        let (mut writer, mut context) = (Slow(Vec::new(), 1000), Context::from_waker(Waker::noop()));
        let mut last = outgoing.rooms.len();
        while outgoing.poll_write(&mut writer, &mut context).unwrap() {
            assert!(outgoing.rooms.len() <= last);
            last = outgoing.rooms.len();
        }
        assert!(writer.0 == expected);
        assert!(outgoing.is_empty() && outgoing.rooms.is_empty());
    }

    /// Each request has its own time, also if the next one begins at once.
    #[tokio::test(start_paused = true)]
    async fn slow_large_requests_one_after_the_other_arrive() {
        let mut arrival = Arrival::new(0);
        let is_over = |arrival: &mut Arrival| {
            arrival.until.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        for request in 0..3 {
            for bytes in (0..=16).map(|piece| piece * ARRIVAL_BYTES) {
                arrival.note(bytes);
                tokio::time::advance(ARRIVAL_TIME - Duration::from_secs(1)).await;
                arrival.note(bytes + ARRIVAL_BYTES - 1);
                assert!(!is_over(&mut arrival), "{bytes} bytes of request {request}");
            }
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(is_over(&mut arrival), "no more came");
    }

    /// Takes what is written, and sends nothing of it.
    struct Unsent;

    impl AsyncWrite for Unsent {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn answers_that_a_connection_holds_are_not_sent() {
        let (mut outgoing, mut context) = (Outgoing::default(), Context::from_waker(Waker::noop()));
        assert!(outgoing.is_sent());
        let room = NodeBudget::new(1 << 20, 1 << 20).connection().room();
        outgoing.push(Bytes::from_static(b"answer"), room);
        while outgoing.poll_write(&mut Unsent, &mut context).unwrap() {}
        assert!(outgoing.is_empty() && !outgoing.is_sent());
        while outgoing.poll_write(&mut Slow(Vec::new(), 1), &mut context).unwrap() {}
        assert!(outgoing.is_sent());
    }
}
