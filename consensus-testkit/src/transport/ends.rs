//! Start, endpoints, shutdown, reachability.

use consensus_core::{Message, Reachability, SendError, TransportError};

use super::net::{Net, chunk};

fn message(n: u8) -> Message {
    Message::Extension(vec![1, n].into())
}

pub(super) async fn local(net: Net) {
    for (node, transport) in net.transports.iter().enumerate() {
        assert_eq!(transport.local(), net.id(node));
    }
    net.stop().await;
}

pub(super) async fn started_twice(net: Net) {
    net.start().await;
    let again = net.transports[0].start(net.arrived[0].clone()).await;
    assert!(matches!(again, Err(TransportError::Misuse(_))), "{again:?}");
    net.deliver(1, 0, &message(1)).await;
    net.stop().await;
}

pub(super) async fn unknown(net: Net) {
    net.start().await;
    let unknown = net.id(4711);
    assert_eq!(net.transports[0].send(unknown, message(1)), Err(SendError::UnknownNode(unknown)));
    net.stop().await;
}

pub(super) async fn removed(net: Net) {
    net.start().await;
    net.deliver(0, 1, &message(1)).await;
    net.transports[0].remove_endpoint(net.id(1));
    assert_eq!(net.transports[0].send(net.id(1), message(2)), Err(SendError::UnknownNode(net.id(1))));
    net.deliver(0, 2, &message(3)).await;
    net.stop().await;
}

pub(super) async fn sends_no_more(net: Net) {
    net.start().await;
    net.deliver(0, 1, &message(1)).await;
    net.transports[0].shutdown().await;
    assert_eq!(net.transports[0].send(net.id(1), message(2)), Err(SendError::Closed));
    let result = net.transports[0].send_snapshot_chunk(net.id(1), chunk(1, 0, None)).await;
    assert!(matches!(result, Err(TransportError::Send(SendError::Closed))), "a chunk: {result:?}");
    net.deliver(1, 2, &message(3)).await;
    net.stop().await;
}

/// Neither messages in transit nor later ones may be delivered.
pub(super) async fn delivers_no_more(net: Net) {
    net.start().await;
    net.deliver(0, 1, &message(0)).await;
    let send = |n| {
        let _ = net.transports[0].send(net.id(1), message(n)); // Succeeds until the shutdown is noticed.
    };
    (1..100).for_each(send);
    net.transports[1].shutdown().await;
    let arrived = net.arrived[1].messages().len();
    (100..200).for_each(send);
    // A message to another node that is sent later must arrive.
    net.deliver(0, 2, &message(200)).await;
    assert_eq!(
        net.arrived[1].messages().len(),
        arrived,
        "messages that arrived until the end of the shutdown, and later"
    );
    net.stop().await;
}

pub(super) async fn reachable(net: Net) {
    net.start().await;
    net.deliver(0, 1, &message(1)).await;
    let reachability = net.transports[0].reachability();
    net.eventually("node 1 is reachable", || {
        let known = reachability.borrow().get(&net.id(1)).copied();
        if known == Some(Reachability::Reachable) { Ok(()) } else { Err(known) }
    })
    .await;
    net.stop().await;
}

pub(super) async fn unreachable(net: Net) {
    net.start().await;
    net.deliver(0, 1, &message(1)).await;
    net.transports[1].shutdown().await;
    let reachability = net.transports[0].reachability();
    net.eventually("node 1 is not reachable", || {
        let _ = net.transports[0].send(net.id(1), message(2)); // Makes the transport notice.
        let known = reachability.borrow().get(&net.id(1)).copied();
        if known == Some(Reachability::Reachable) { Err(known) } else { Ok(()) }
    })
    .await;
    net.stop().await;
}
