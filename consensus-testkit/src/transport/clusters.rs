//! Nodes of different clusters.

use consensus_core::{ClusterId, Message};

use super::net::{Net, chunk, expected_ack};

fn message(n: u8) -> Message {
    Message::Extension(vec![1, n].into())
}

/// Nodes 0 and 1 have exchanged messages and then learn that they belong to different clusters; node 2 knows no cluster.
async fn start_in_two_clusters(net: &Net) {
    net.start().await;
    net.deliver(0, 1, &message(0)).await;
    net.deliver(1, 0, &message(1)).await;
    for node in [0, 1] {
        net.transports[node].set_cluster(ClusterId(7 + node as u64));
    }
}

pub(super) async fn compatible(net: Net) {
    net.start().await;
    net.deliver(0, 1, &message(0)).await;
    // The nodes learn the cluster's identity one after another.
    for node in 0..net.transports.len() {
        net.transports[node].set_cluster(ClusterId(7));
        for other in (0..net.transports.len()).filter(|other| *other != node) {
            let n = (10 * node + other) as u8;
            net.deliver(node, other, &message(n)).await;
            net.deliver(other, node, &message(100 + n)).await;
        }
    }
    assert_eq!(net.send_chunk(0, 1, &chunk(1, 0, None)).await, expected_ack(&chunk(1, 0, None)));
    net.stop().await;
}

pub(super) async fn messages(net: Net) {
    start_in_two_clusters(&net).await;
    for n in 100..150 {
        let _ = net.transports[0].send(net.id(1), message(n));
        let _ = net.transports[1].send(net.id(0), message(n));
        // Messages to and from a node without a cluster must arrive. They give the others time to arrive, which must not.
        net.deliver(0, 2, &message(n)).await;
        net.deliver(2, 1, &message(n)).await;
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let passed =
            |(sender, got): &(_, Message)| *sender == net.id(from) && (100..150).any(|n| *got == message(n));
        let passed = net.arrived[to].messages().iter().filter(|arrived| passed(arrived)).count();
        assert_eq!(passed, 0, "messages of node {from} that arrived at node {to}");
    }
    net.stop().await;
}

pub(super) async fn chunks(net: Net) {
    net.start().await;
    // Over an established connection.
    net.send_chunk(0, 1, &chunk(1, 0, None)).await;
    net.transports[0].set_cluster(ClusterId(7));
    net.transports[1].set_cluster(ClusterId(8));
    for (from, to) in [(0, 1), (1, 0)] {
        let response = net.transports[from].send_snapshot_chunk(net.id(to), chunk(2, 0, None));
        let response = tokio::time::timeout(net.time_limit, response).await;
        assert!(
            response.expect("the call returns").is_err(),
            "node {to} responded to a chunk of node {from}"
        );
        assert!(net.arrived[to].chunks().iter().all(|(_, chunk)| chunk.term.0 == 1), "the chunk arrived");
    }
    net.stop().await;
}
