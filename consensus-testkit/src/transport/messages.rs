//! Messages.

use std::{panic::resume_unwind, thread, time::Instant};

use consensus_core::{Message, SendError};

use super::{net::Net, samples};

pub(super) async fn unaltered(net: Net) {
    net.start().await;
    for message in samples() {
        for (from, to) in [(0, 1), (1, 0), (1, 2)] {
            net.deliver(from, to, &message).await;
        }
    }
    let known = samples();
    for (from, message) in net.arrived.iter().flat_map(|arrived| arrived.messages()) {
        assert!(known.contains(&message), "node {from} never sent {message:?}");
    }
    net.stop().await;
}

/// A message with its sender and receiver.
fn addressed(from: usize, to: usize) -> Message {
    Message::Extension(vec![1, from as u8, to as u8].into())
}

/// Sends a message from every node to every other.
async fn all_to_all(net: &Net) {
    net.start().await;
    let nodes = 0..net.transports.len();
    for from in nodes.clone() {
        for to in nodes.clone().filter(|to| *to != from) {
            net.deliver(from, to, &addressed(from, to)).await;
        }
    }
}

pub(super) async fn senders(net: Net) {
    all_to_all(&net).await;
    for (sender, message) in net.arrived.iter().flat_map(|arrived| arrived.messages()) {
        let Message::Extension(bytes) = message else { panic!("no node sent {message:?}") };
        assert_eq!(sender, net.id(bytes[1].into()), "reported and actual sender");
    }
    net.stop().await;
}

pub(super) async fn receivers(net: Net) {
    all_to_all(&net).await;
    for (node, arrived) in net.arrived.iter().enumerate() {
        for (from, message) in arrived.messages() {
            let Message::Extension(bytes) = message else { panic!("no node sent {message:?}") };
            assert_eq!(usize::from(bytes[2]), node, "a message of node {from} reached the wrong node");
        }
    }
    net.stop().await;
}

/// Sends 2 GB to a node that is not started, so that all messages remain queued. Uses a thread outside the runtime, because
/// a `send` that blocks would block the whole test.
async fn flood(net: &Net) -> Vec<Result<(), SendError>> {
    net.transports[0].start(net.arrived[0].clone()).await.unwrap();
    let (transport, to) = (net.transports[0].clone(), net.id(1));
    let message = Message::Extension(vec![1; 1 << 20].into());
    let sender = thread::spawn(move || (0..2_000).map(|_| transport.send(to, message.clone())).collect());
    let deadline = Instant::now() + net.time_limit;
    while !sender.is_finished() {
        assert!(Instant::now() < deadline, "send blocks: 2000 calls take more than {:?}", net.time_limit);
        // Lets the transport's tasks run, without advancing a paused clock.
        thread::yield_now();
        tokio::task::yield_now().await;
    }
    sender.join().unwrap_or_else(|panic| resume_unwind(panic))
}

pub(super) async fn at_once(net: Net) {
    flood(&net).await;
    net.stop().await;
}

pub(super) async fn bounded(net: Net) {
    let to = net.id(1);
    let mut refused = 0;
    for result in flood(&net).await {
        match result {
            Ok(()) => {}
            Err(SendError::QueueFull(node) | SendError::Unreachable(node)) if node == to => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "2 GB were queued to a node that receives nothing");
    net.stop().await;
}
