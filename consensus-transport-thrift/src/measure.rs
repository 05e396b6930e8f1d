//! Counters, through the facade of the `metrics` crate. They reach the recorder that the program installs before the transport
//! is created.
//!
//! | name | |
//! |---|---|
//! | `thrift_peer_sent_bytes_total{peer}` | bytes of messages and snapshots written to a node |
//! | `thrift_peer_received_bytes_total{peer}` | bytes of messages and snapshots received from a node |
//! | `thrift_peer_send_failures_total{peer}` | messages that were not sent: there was no connection, or its queue was full |
//! | `thrift_peer_connections_total{peer}` | connections to a node that were established |

use std::fmt;

use consensus_core::NodeId;
use metrics::{Counter, counter};

/// Metrics of the connections to one node, looked up once.
pub(crate) struct PeerMeasures {
    pub(crate) sent_bytes: Counter,
    pub(crate) send_failures: Counter,
    pub(crate) connections: Counter,
}

impl PeerMeasures {
    pub(crate) fn new(peer: NodeId) -> Self {
        let peer = peer.to_string();
        Self {
            sent_bytes: counter!("thrift_peer_sent_bytes_total", "peer" => peer.clone()),
            send_failures: counter!("thrift_peer_send_failures_total", "peer" => peer.clone()),
            connections: counter!("thrift_peer_connections_total", "peer" => peer),
        }
    }
}

impl fmt::Debug for PeerMeasures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerMeasures").finish_non_exhaustive()
    }
}

/// Counter of the bytes that `peer` sends to this node.
pub(crate) fn received_bytes(peer: NodeId) -> Counter {
    counter!("thrift_peer_received_bytes_total", "peer" => peer.to_string())
}
