//! Networks that drop all packets, and slow networks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    Endpoint, Message, MessageHandler, NetworkTransport, NodeId, Reachability, SnapshotAck, SnapshotChunk,
    SnapshotMeta, SnapshotOutcome, Term,
};
use consensus_testkit::eventually;
use consensus_transport_thrift::{ThriftConfig, ThriftTransport};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

/// Much longer than a task waits on a loaded test machine.
const STALL_TIMEOUT: Duration = Duration::from_millis(400);

struct Handler {
    messages: mpsc::UnboundedSender<Message>,
    chunk_takes: Duration,
}

#[async_trait]
impl MessageHandler for Handler {
    fn on_message(&self, _: NodeId, message: Message) {
        let _ = self.messages.send(message);
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        sleep(self.chunk_takes).await;
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Installed }
    }
}

/// Treatment of the bytes that node 1 sends to node 2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Existing connections stay open, but deliver nothing any more.
    Swallow,
    /// Delivers this many bytes every 20 ms.
    Slow(usize),
}

/// Node 1, which reaches node 2 through a proxy.
struct Pair {
    a: ThriftTransport,
    _b: ThriftTransport,
    arrived: mpsc::UnboundedReceiver<Message>,
    way: watch::Sender<Way>,
    connections: Arc<AtomicUsize>,
    proxy: tokio::task::JoinHandle<()>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

impl Pair {
    /// The proxy never responds on the first `mute` connections.
    async fn start(mute: usize, chunk_takes: Duration) -> Self {
        let anywhere: Endpoint = "127.0.0.1:0".parse().unwrap();
        let bind = |id| {
            let config = ThriftConfig::new(NodeId(id), anywhere.clone()).with_election_timeout(STALL_TIMEOUT);
            ThriftTransport::bind(ThriftConfig { connect_timeout: Duration::from_secs(8), ..config })
        };
        let (a, b) = (bind(1).await.unwrap(), bind(2).await.unwrap());
        let (messages, arrived) = mpsc::unbounded_channel();
        b.start(Arc::new(Handler { messages: messages.clone(), chunk_takes })).await.unwrap();
        a.start(Arc::new(Handler { messages, chunk_takes })).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (way, connections) = (watch::Sender::new(Way::Open), Arc::<AtomicUsize>::default());
        let proxy = tokio::spawn(proxy(
            listener,
            b.local_endpoint().clone(),
            mute,
            way.subscribe(),
            connections.clone(),
        ));
        a.set_endpoint(NodeId(2), place);
        Self { a, _b: b, arrived, way, connections, proxy }
    }

    async fn connected(&self) {
        let mut reachability = self.a.reachability();
        reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Reachable).await.unwrap();
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// `Some` if the message is among those that arrived since the last call.
    fn received(&mut self, message: &Message) -> Option<()> {
        std::iter::from_fn(|| self.arrived.try_recv().ok()).find(|got| got == message).map(drop)
    }

    /// Sends the message repeatedly until it arrives, as an engine does.
    async fn arrives(&mut self, message: Message) {
        eventually("a message arrives", || {
            let sent = self.a.send(NodeId(2), message.clone());
            self.received(&message).ok_or(sent)
        })
        .await;
    }
}

async fn proxy(
    listener: TcpListener,
    place: Endpoint,
    mute: usize,
    way: watch::Receiver<Way>,
    connections: Arc<AtomicUsize>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let number = connections.fetch_add(1, Ordering::SeqCst);
        let (place, mut way) = (place.clone(), way.clone());
        way.mark_unchanged();
        tasks.spawn(async move {
            if number < mute {
                return drop((std::future::pending::<()>().await, stream));
            }
            let callee = TcpStream::connect(place.to_string()).await.unwrap();
            let ((mut from, mut back), (mut answers, mut to)) = (stream.into_split(), callee.into_split());
            let there = async {
                let mut bytes = vec![0; 64 << 10];
                loop {
                    let limit = if let Way::Slow(limit) = *way.borrow() { limit } else { bytes.len() };
                    let Ok(1..) = from.read(&mut bytes[..limit]).await.inspect(|n| bytes.truncate(*n)) else {
                        return;
                    };
                    if *way.borrow() == Way::Swallow && way.has_changed().unwrap_or(true) {
                        return std::future::pending().await;
                    }
                    if limit < 64 << 10 {
                        sleep(Duration::from_millis(20)).await;
                    }
                    let _ = to.write_all(&bytes).await;
                    bytes.resize(64 << 10, 0);
                }
            };
            tokio::select! { () = there => {}, _ = tokio::io::copy(&mut answers, &mut back) => {} }
        });
    }
}

fn message(bytes: usize, content: u8) -> Message {
    Message::Extension(vec![content; bytes].into())
}

#[tokio::test]
async fn connection_that_drops_messages_is_replaced_after_the_stall_timeout() {
    let mut pair = Pair::start(0, Duration::ZERO).await;
    pair.arrives(message(10, 1)).await;
    pair.way.send_replace(Way::Swallow);
    let since = Instant::now();
    pair.arrives(message(10, 2)).await;
    let took = since.elapsed();
    println!("a message arrived {took:?} after its connection began to swallow");
    assert!(took < 5 * STALL_TIMEOUT, "{took:?}");
    assert_eq!(pair.connections(), 2);
}

#[tokio::test]
async fn chunk_on_a_connection_that_drops_it_fails_after_the_stall_timeout() {
    let pair = Pair::start(0, Duration::ZERO).await;
    let chunk = || {
        let (term, meta) = (Term(1), SnapshotMeta::default());
        SnapshotChunk { term, transfer: 1, meta, offset: 0, data: "x".into(), last: None }
    };
    pair.a.send_snapshot_chunk(NodeId(2), chunk()).await.unwrap();
    pair.way.send_replace(Way::Swallow);
    let since = Instant::now();
    let error = pair.a.send_snapshot_chunk(NodeId(2), chunk()).await.unwrap_err();
    assert!(
        since.elapsed() < 5 * STALL_TIMEOUT && error.to_string().contains("acknowledged none"),
        "{error}"
    );
    pair.a.send_snapshot_chunk(NodeId(2), chunk()).await.unwrap();
}

#[tokio::test]
async fn idle_connection_is_kept() {
    let mut pair = Pair::start(0, Duration::ZERO).await;
    pair.arrives(message(10, 1)).await;
    sleep(4 * STALL_TIMEOUT).await;
    pair.arrives(message(10, 2)).await;
    assert_eq!(pair.connections(), 1);
}

#[tokio::test]
async fn slow_connection_is_kept_while_bytes_arrive() {
    let mut pair = Pair::start(0, Duration::ZERO).await;
    pair.arrives(message(10, 1)).await;
    pair.way.send_replace(Way::Slow(32 << 10));
    let since = Instant::now();
    // Large enough to take several stall timeouts, with most of it in buffers of the operating system.
    pair.a.send(NodeId(2), message(4 << 20, 2)).unwrap();
    eventually("it arrives", || pair.received(&message(4 << 20, 2)).ok_or(())).await;
    assert!(since.elapsed() > 2 * STALL_TIMEOUT, "it was not slow: {:?}", since.elapsed());
    assert_eq!(pair.connections(), 1);
}

#[tokio::test]
async fn receiver_of_a_chunk_may_take_its_time() {
    let pair = Pair::start(0, 4 * STALL_TIMEOUT).await;
    let (term, meta) = (Term(1), SnapshotMeta::default());
    let chunk =
        SnapshotChunk { term, transfer: 1, meta, offset: 0, data: vec![1; 1 << 20].into(), last: None };
    let answer = pair.a.send_snapshot_chunk(NodeId(2), chunk).await.unwrap();
    assert_eq!(answer.outcome, SnapshotOutcome::Installed);
}

/// As after a failure of the network: TCP waits before it repeats a lost connection request.
#[tokio::test]
async fn attempt_without_a_response_does_not_delay_the_next_one() {
    let since = Instant::now();
    let pair = Pair::start(1, Duration::ZERO).await;
    pair.connected().await;
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
}

#[tokio::test]
async fn removal_of_a_node_stops_connecting_and_fails_its_chunk() {
    let pair = Pair::start(0, Duration::from_secs(3600)).await;
    pair.connected().await;
    let (term, meta) = (Term(1), SnapshotMeta::default());
    let chunk = SnapshotChunk { term, transfer: 1, meta, offset: 0, data: "x".into(), last: None };
    let remove = async {
        eventually("the chunk is in transit", || if pair.connections() == 2 { Ok(()) } else { Err(()) })
            .await;
        pair.a.remove_endpoint(NodeId(2));
    };
    let (answer, ()) = tokio::join!(pair.a.send_snapshot_chunk(NodeId(2), chunk), remove);
    assert!(answer.unwrap_err().to_string().contains("no endpoint is known for node 2"));
    pair.way.send_replace(Way::Swallow);
    sleep(3 * STALL_TIMEOUT).await;
    assert_eq!(pair.connections(), 2);
}
