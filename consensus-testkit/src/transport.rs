//! Conformance suite for implementations of [`NetworkTransport`].
//!
//! [`run_suite`] needs a function that creates a small network of your transports. For the transport in memory:
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use std::sync::Arc;
//!
//! use consensus_core::{NetworkTransport, NodeId};
//! use consensus_testkit::transport::run_suite;
//! use consensus_transport_mem::MemNetwork;
//!
//! run_suite(|size| async move {
//!     let network = MemNetwork::new(7);
//!     (0..size).map(|id| network.transport(NodeId(id)) as Arc<dyn NetworkTransport>).collect()
//! })
//! .await;
//! # }
//! ```
//! What this is *not*: a test of networks that lose, delay or block messages. The suite's network has no faults.

mod chunks;
mod clusters;
mod ends;
mod messages;
mod net;
mod samples;

pub use samples::samples;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use consensus_core::NetworkTransport;

use crate::{rule, wait::TIME_LIMIT};
use net::Net;

/// Checks an implementation. `cluster(n)` creates the transports of nodes 0 to n-1, not started, with the endpoints of all
/// others set, on a network without faults.
///
/// # Panics
/// A rule is broken; the message names it.
pub async fn run_suite<F: Future<Output = Vec<Arc<dyn NetworkTransport>>>>(cluster: impl Fn(u64) -> F) {
    run_suite_within(TIME_LIMIT, cluster).await;
}

/// Like [`run_suite`], but allows `time_limit` instead of 30 s for a message to arrive or a call to return.
///
/// # Panics
/// A rule is broken; the message names it.
pub async fn run_suite_within<F: Future<Output = Vec<Arc<dyn NetworkTransport>>>>(
    time_limit: Duration,
    cluster: impl Fn(u64) -> F,
) {
    for (rule, case) in cases() {
        let net = Net::new(cluster(NODES).await, time_limit);
        rule::check_within("transport", rule, 4 * time_limit, case(net)).await;
    }
}

/// The rules of [`run_suite`], in the order in which they are checked.
#[must_use]
pub fn rules() -> Vec<&'static str> {
    cases().into_iter().map(|(rule, _)| rule).collect()
}

type Case = fn(Net) -> Pin<Box<dyn Future<Output = ()>>>;

fn cases() -> [(&'static str, Case); 22] {
    [
        ("a transport reports the id of its node", |net| Box::pin(ends::local(net))),
        ("every kind of message arrives as it was sent", |net| Box::pin(messages::unaltered(net))),
        ("a message arrives with the id of its sender", |net| Box::pin(messages::senders(net))),
        ("a message reaches only its receiver", |net| Box::pin(messages::receivers(net))),
        ("send returns at once, on any thread", |net| Box::pin(messages::at_once(net))),
        ("the queue for a node is limited, and a full queue is reported", |net| {
            Box::pin(messages::bounded(net))
        }),
        ("a snapshot chunk arrives as it was sent, and its response is returned", |net| {
            Box::pin(chunks::gets_response(net))
        }),
        ("a snapshot chunk arrives with the id of its sender", |net| Box::pin(chunks::senders(net))),
        ("each snapshot chunk gets its own response", |net| Box::pin(chunks::own_response(net))),
        ("a snapshot chunk that waits for its response delays no message", |net| {
            Box::pin(chunks::delays_no_message(net))
        }),
        ("a cancelled snapshot chunk affects no later one", |net| Box::pin(chunks::cancelled(net))),
        ("a snapshot chunk without a response is an error", |net| Box::pin(chunks::without_response(net))),
        ("a second start is misuse", |net| Box::pin(ends::started_twice(net))),
        ("a node without an endpoint is unknown", |net| Box::pin(ends::unknown(net))),
        ("a node whose endpoint was removed is unknown, and no other node is", |net| {
            Box::pin(ends::removed(net))
        }),
        ("nodes of one cluster, and nodes that know no cluster yet, exchange messages", |net| {
            Box::pin(clusters::compatible(net))
        }),
        ("no message passes between nodes of two clusters", |net| Box::pin(clusters::messages(net))),
        ("no snapshot chunk passes between nodes of two clusters", |net| Box::pin(clusters::chunks(net))),
        ("a transport that is shut down sends nothing, and reports it", |net| {
            Box::pin(ends::sends_no_more(net))
        }),
        ("a transport that is shut down delivers no further message", |net| {
            Box::pin(ends::delivers_no_more(net))
        }),
        ("a node that was reached is reported as reachable", |net| Box::pin(ends::reachable(net))),
        ("a node that is shut down is not reported as reachable for long", |net| {
            Box::pin(ends::unreachable(net))
        }),
    ]
}

/// Two nodes that exchange messages, and one that must not receive them.
const NODES: u64 = 3;
