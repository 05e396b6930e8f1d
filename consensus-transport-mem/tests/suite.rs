//! The conformance suite, and the faults of links.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    Message, MessageHandler, NetworkTransport, NodeId, SnapshotAck, SnapshotChunk, SnapshotOutcome,
};
use consensus_testkit::transport::run_suite;
use consensus_transport_mem::{Link, MemNetwork};
use tokio::time::Instant;

#[tokio::test]
async fn transport_passes_the_suite() {
    run_suite(|size| async move {
        let network = MemNetwork::new(7);
        (0..size).map(|id| network.transport(NodeId(id)) as Arc<dyn NetworkTransport>).collect()
    })
    .await;
}

#[derive(Default)]
struct Arrivals(Mutex<Vec<(Instant, u8)>>);

#[async_trait]
impl MessageHandler for Arrivals {
    fn on_message(&self, _: NodeId, message: Message) {
        let Message::Extension(bytes) = message else { return };
        self.0.lock().unwrap().push((Instant::now(), bytes[0]));
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused }
    }
}

/// Sends the messages 0..100 over `link` in paused time. Returns the arrival time of each.
async fn sent_over(seed: u64, link: Link) -> Vec<(Duration, u8)> {
    let network = MemNetwork::new(seed);
    let (a, b) = (network.transport(NodeId(1)), network.transport(NodeId(2)));
    let arrivals = Arc::new(Arrivals::default());
    b.start(arrivals.clone()).await.unwrap();
    network.set_link(NodeId(1), NodeId(2), link);
    let start = Instant::now();
    for n in 0..100 {
        a.send(NodeId(2), Message::Extension(vec![n].into())).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(10)).await; // Paused time: everything due has arrived.
    let arrived = arrivals.0.lock().unwrap();
    arrived.iter().map(|(at, n)| (at.duration_since(start), *n)).collect()
}

#[tokio::test(start_paused = true)]
async fn link_with_latency_delays_messages_and_keeps_their_order() {
    let latency = (Duration::from_millis(50), Duration::from_millis(90));
    let arrived = sent_over(1, Link { latency, ..Link::default() }).await;
    assert_eq!(arrived.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert!(arrived.iter().all(|(at, _)| (50..=92).contains(&at.as_millis())), "{arrived:?}");
}

#[tokio::test(start_paused = true)]
async fn faults_of_a_link_happen_and_are_determined_by_the_seed() {
    let latency = (Duration::ZERO, Duration::from_millis(90));
    let bad = Link { latency, loss: 0.3, duplication: 0.3, reordering: true, cut: false };
    let arrived = sent_over(2, bad.clone()).await;
    let mut kinds: Vec<u8> = arrived.iter().map(|(_, n)| *n).collect();
    assert!(!kinds.is_sorted());
    kinds.sort_unstable();
    kinds.dedup();
    assert!((50..90).contains(&kinds.len()), "{} of 100 arrived", kinds.len());
    assert!(arrived.len() > kinds.len(), "some arrived twice");
    assert_eq!(sent_over(2, bad.clone()).await, arrived);
    assert_ne!(sent_over(3, bad).await, arrived);
}

#[tokio::test(start_paused = true)]
async fn cut_of_a_link_has_one_direction_and_can_be_healed() {
    let network = MemNetwork::new(1);
    let (a, b) = (network.transport(NodeId(1)), network.transport(NodeId(2)));
    let (at_a, at_b) = (Arc::new(Arrivals::default()), Arc::new(Arrivals::default()));
    a.start(at_a.clone()).await.unwrap();
    b.start(at_b.clone()).await.unwrap();
    let exchange = async || {
        a.send(NodeId(2), Message::Extension(vec![1].into())).unwrap();
        b.send(NodeId(1), Message::Extension(vec![2].into())).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        (at_a.0.lock().unwrap().len(), at_b.0.lock().unwrap().len())
    };
    network.cut(NodeId(1), NodeId(2));
    assert_eq!(exchange().await, (1, 0));
    network.heal();
    assert_eq!(exchange().await, (2, 1));
}
