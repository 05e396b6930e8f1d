//! Helpers for tests: nodes on free ports of the loopback interface, and their frames.

use std::{net::Ipv6Addr, sync::Arc};

use consensus_core::{NetworkTransport, NodeId};

use crate::{
    ThriftConfig, ThriftTransport,
    calls::{self, Call},
    convert::unsigned,
};

/// Node that opened a connection, according to its first frame (without the length); `None` for any other frame.
#[must_use]
pub fn caller(frame: &[u8]) -> Option<NodeId> {
    let caller = match calls::read_call(frame).ok()?.1 {
        Call::Hello(hello) => hello.caller,
        Call::Describe(asker, _) => asker,
        _ => return None,
    };
    Some(NodeId(unsigned(caller.node_id)))
}

/// Transports of nodes 0 to `size` - 1 with each other's endpoints. Node 1 listens on IPv6 if the machine supports it.
///
/// # Panics
/// No port is free.
pub async fn loopback_cluster(size: u64) -> Vec<Arc<dyn NetworkTransport>> {
    let v6 = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok();
    let mut transports = Vec::new();
    for id in 0..size {
        let listen = if id == 1 && v6 { "[::1]:0" } else { "localhost:0" };
        let config = ThriftConfig::new(NodeId(id), listen.parse().expect("an endpoint"));
        transports.push(Arc::new(ThriftTransport::bind(config).await.expect("a free port")));
    }
    for transport in &transports {
        for other in transports.iter().filter(|other| other.local() != transport.local()) {
            transport.set_endpoint(other.local(), other.local_endpoint().clone());
        }
    }
    transports.into_iter().map(|transport| transport as Arc<dyn NetworkTransport>).collect()
}
