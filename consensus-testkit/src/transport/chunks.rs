//! Snapshot chunks.

use consensus_core::{Message, SendError, SnapshotOutcome, TransportError};
use tokio::task::JoinSet;

use super::net::{Net, chunk, expected_ack};

pub(super) async fn gets_response(net: Net) {
    net.start().await;
    for chunk in [chunk(1, 0, None), chunk(1, 100_000, Some(u32::MAX)), chunk(9, 0, None)] {
        assert_eq!(net.send_chunk(0, 1, &chunk).await, expected_ack(&chunk));
        assert!(
            net.arrived[1].chunks().iter().any(|(_, arrived)| *arrived == chunk),
            "the chunk was altered"
        );
    }
    net.stop().await;
}

pub(super) async fn senders(net: Net) {
    net.start().await;
    for from in [0, 2] {
        net.send_chunk(from, 1, &chunk(from as u64, 0, None)).await;
    }
    for (sender, chunk) in net.arrived[1].chunks() {
        assert_eq!(sender.0, chunk.term.0, "reported and actual sender");
    }
    net.stop().await;
}

pub(super) async fn own_response(net: Net) {
    net.start().await;
    let mut calls = JoinSet::new();
    for n in 0..12 {
        let (net, chunk) = (net.clone(), chunk(100 + n, 1000 * n, None));
        let (from, to) = [(0, 1), (0, 2), (2, 1)][n as usize % 3];
        calls.spawn(async move { (net.send_chunk(from, to, &chunk).await, expected_ack(&chunk)) });
    }
    for (ack, expected) in calls.join_all().await {
        assert_eq!(ack, expected);
    }
    net.stop().await;
}

/// Sends a chunk to a receiver that delays its response.
async fn send_delayed_chunk(net: &Net) -> tokio::task::JoinHandle<consensus_core::SnapshotAck> {
    net.arrived[1].held.send_replace(true);
    let call = tokio::spawn({
        let net = net.clone();
        async move { net.send_chunk(0, 1, &chunk(1, 0, None)).await }
    });
    net.eventually(
        "a chunk arrives",
        || if net.arrived[1].chunks().is_empty() { Err("none") } else { Ok(()) },
    )
    .await;
    call
}

pub(super) async fn delays_no_message(net: Net) {
    net.start().await;
    let call = send_delayed_chunk(&net).await;
    for n in 0..10 {
        net.deliver(0, 1, &Message::Extension(vec![1, n].into())).await;
    }
    assert!(!call.is_finished(), "the response came before the receiver sent it");
    net.arrived[1].held.send_replace(false);
    assert_eq!(call.await.expect("no panic"), expected_ack(&chunk(1, 0, None)));
    net.stop().await;
}

pub(super) async fn cancelled(net: Net) {
    net.start().await;
    let call = send_delayed_chunk(&net).await;
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()));
    net.arrived[1].held.send_replace(false);
    for term in 2..5 {
        let chunk = chunk(term, 7, None);
        assert_eq!(net.send_chunk(0, 1, &chunk).await, expected_ack(&chunk));
    }
    net.stop().await;
}

pub(super) async fn without_response(net: Net) {
    net.start().await;
    assert!(matches!(
        net.send_chunk(0, 1, &chunk(1, 0, None)).await.outcome,
        SnapshotOutcome::Continue { .. }
    ));
    let to_unknown = net.transports[0].send_snapshot_chunk(net.id(4711), chunk(1, 0, None)).await;
    let unknown = matches!(to_unknown, Err(TransportError::Send(SendError::UnknownNode(_))));
    assert!(unknown, "a chunk to an unknown node: {to_unknown:?}");
    net.transports[1].shutdown().await;
    let to_stopped = net.transports[0].send_snapshot_chunk(net.id(1), chunk(1, 1, None));
    let to_stopped = tokio::time::timeout(net.time_limit, to_stopped).await;
    assert!(to_stopped.expect("the call returns").is_err(), "a node that is shut down responded");
    net.stop().await;
}
