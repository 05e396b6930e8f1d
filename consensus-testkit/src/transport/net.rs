//! A network under test, and the messages that arrive.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    LogId, Membership, Message, MessageHandler, NetworkTransport, NodeId, SnapshotAck, SnapshotChunk,
    SnapshotMeta, SnapshotOutcome, Term, TransportError,
};
use tokio::sync::watch;

use crate::wait::eventually_within;

/// Transports, with a collector for each.
#[derive(Clone)]
pub(super) struct Net {
    pub(super) transports: Vec<Arc<dyn NetworkTransport>>,
    pub(super) arrived: Vec<Arc<Collector>>,
    pub(super) time_limit: Duration,
}

/// Records what arrives, and responds to snapshot chunks according to their content.
pub(super) struct Collector {
    messages: Mutex<Vec<(NodeId, Message)>>,
    chunks: Mutex<Vec<(NodeId, SnapshotChunk)>>,
    /// While `true`, responses to snapshot chunks are delayed.
    pub(super) held: watch::Sender<bool>,
}

#[async_trait]
impl MessageHandler for Collector {
    fn on_message(&self, from: NodeId, message: Message) {
        lock(&self.messages).push((from, message));
    }

    async fn on_snapshot_chunk(&self, from: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        let ack = expected_ack(&chunk);
        lock(&self.chunks).push((from, chunk));
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        ack
    }
}

impl Collector {
    pub(super) fn messages(&self) -> Vec<(NodeId, Message)> {
        lock(&self.messages).clone()
    }

    pub(super) fn chunks(&self) -> Vec<(NodeId, SnapshotChunk)> {
        lock(&self.chunks).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Response of a [`Collector`] to a chunk.
pub(super) fn expected_ack(chunk: &SnapshotChunk) -> SnapshotAck {
    let outcome = match (chunk.last, chunk.term.0) {
        (_, 9) => SnapshotOutcome::Refused,
        (Some(_), _) => SnapshotOutcome::Installed,
        (None, _) => SnapshotOutcome::Continue { offset: chunk.offset + chunk.data.len() as u64 },
    };
    SnapshotAck { term: chunk.term, outcome }
}

pub(super) fn chunk(term: u64, offset: u64, last: Option<u32>) -> SnapshotChunk {
    let meta = SnapshotMeta { last: LogId::new(3, 4), membership: Membership::of_voters([1, 2, 3]) };
    let data = vec![5; 100_000].into();
    SnapshotChunk { term: Term(term), transfer: 77, meta, offset, data, last }
}

impl Net {
    pub(super) fn new(transports: Vec<Arc<dyn NetworkTransport>>, time_limit: Duration) -> Self {
        let collector = || Collector {
            messages: Mutex::default(),
            chunks: Mutex::default(),
            held: watch::channel(false).0,
        };
        let arrived = transports.iter().map(|_| Arc::new(collector())).collect();
        Self { transports, arrived, time_limit }
    }

    pub(super) fn id(&self, node: usize) -> NodeId {
        NodeId(node as u64)
    }

    pub(super) async fn start(&self) {
        for (transport, collector) in self.transports.iter().zip(&self.arrived) {
            transport.start(collector.clone()).await.unwrap();
        }
    }

    pub(super) async fn stop(&self) {
        for transport in &self.transports {
            transport.shutdown().await;
        }
    }

    pub(super) async fn eventually<E: Debug>(&self, what: &str, condition: impl FnMut() -> Result<(), E>) {
        eventually_within(self.time_limit, what, condition).await;
    }

    /// Sends a message until it has arrived, because it may be lost before a connection is established.
    pub(super) async fn deliver(&self, from: usize, to: usize, message: &Message) {
        let what = format!("a message of node {from} arrives at node {to}");
        self.eventually(&what, || {
            if lock(&self.arrived[to].messages).iter().any(|(_, arrived)| arrived == message) {
                return Ok(());
            }
            let sent = self.transports[from].send(self.id(to), message.clone());
            Err((sent, format!("of {} bytes", message.size_bytes())))
        })
        .await;
    }

    /// Sends a chunk until it gets a response.
    pub(super) async fn send_chunk(&self, from: usize, to: usize, chunk: &SnapshotChunk) -> SnapshotAck {
        let attempts = async {
            loop {
                match self.transports[from].send_snapshot_chunk(self.id(to), chunk.clone()).await {
                    Ok(ack) => return ack,
                    Err(error @ TransportError::Misuse(_)) => panic!("{error}"),
                    // Not connected yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let ack = tokio::time::timeout(self.time_limit, attempts).await;
        ack.unwrap_or_else(|_| panic!("no response of node {to} to a chunk of node {from}"))
    }
}
