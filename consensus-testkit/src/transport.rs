//! Conformance of a [`NetworkTransport`].
//!
//! [`run_suite`] needs a function that makes a small network of your transports. For the one in memory it is:
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
//! What this is *not*: a check of what a network does that loses, delays or cuts; the suite's network is whole.

mod chunks;
mod clusters;
mod ends;
mod messages;
mod net;
mod samples;

pub use samples::samples;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use consensus_core::NetworkTransport;

use crate::{rule, wait::PATIENCE};
use net::Net;

/// Checks an implementation: `cluster(n)` makes the transports of nodes 0 to n-1, not started, each with the endpoints of
/// all others set, over a network that is whole.
///
/// # Panics
/// A rule is broken; the message says which.
pub async fn run_suite<F: Future<Output = Vec<Arc<dyn NetworkTransport>>>>(cluster: impl Fn(u64) -> F) {
    run_suite_within(PATIENCE, cluster).await;
}

/// The same with another patience than 30 s for a message to arrive or a call to return.
///
/// # Panics
/// A rule is broken; the message says which.
pub async fn run_suite_within<F: Future<Output = Vec<Arc<dyn NetworkTransport>>>>(
    patience: Duration,
    cluster: impl Fn(u64) -> F,
) {
    for (rule, case) in cases() {
        let net = Net::new(cluster(NODES).await, patience);
        rule::check_within("transport", rule, 4 * patience, case(net)).await;
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
        ("a transport says whose end it is", |net| Box::pin(ends::local(net))),
        ("every kind of message arrives as it was sent", |net| Box::pin(messages::unaltered(net))),
        ("who sent a message is told truly", |net| Box::pin(messages::senders(net))),
        ("a message reaches nobody but the node that it is for", |net| Box::pin(messages::receivers(net))),
        ("send returns at once, on any thread", |net| Box::pin(messages::at_once(net))),
        ("what waits for a node is bounded, and a full queue says so", |net| {
            Box::pin(messages::bounded(net))
        }),
        ("a snapshot chunk arrives as it was sent, and its answer comes back", |net| {
            Box::pin(chunks::answered(net))
        }),
        ("who sent a snapshot chunk is told truly", |net| Box::pin(chunks::senders(net))),
        ("each snapshot chunk gets the answer to itself", |net| Box::pin(chunks::own_answer(net))),
        ("a snapshot chunk that waits for its answer holds up no message", |net| {
            Box::pin(chunks::beside_messages(net))
        }),
        ("a snapshot chunk that was given up disturbs no later one", |net| Box::pin(chunks::given_up(net))),
        ("a snapshot chunk without an answer is an error", |net| Box::pin(chunks::unanswered(net))),
        ("a second start is misuse", |net| Box::pin(ends::started_twice(net))),
        ("a node without an endpoint is unknown", |net| Box::pin(ends::unknown(net))),
        ("a node whose endpoint was removed is unknown, and no other", |net| Box::pin(ends::removed(net))),
        ("nodes of one cluster, and those that know none yet, talk to each other", |net| {
            Box::pin(clusters::compatible(net))
        }),
        ("no message passes between nodes of two clusters", |net| Box::pin(clusters::messages(net))),
        ("no snapshot chunk passes between nodes of two clusters", |net| Box::pin(clusters::chunks(net))),
        ("a transport that is shut down sends nothing, and says so", |net| {
            Box::pin(ends::sends_no_more(net))
        }),
        ("a transport that is shut down delivers nothing more", |net| Box::pin(ends::delivers_no_more(net))),
        ("a node that was reached is reported as reachable", |net| Box::pin(ends::reachable(net))),
        ("a node that is shut down does not stay reachable", |net| Box::pin(ends::unreachable(net))),
    ]
}

/// Two that talk and one that must not hear it.
const NODES: u64 = 3;
