//! Conformance of a [`ConsensusEngine`].
//!
//! [`run_suite`] needs a function that starts a cluster of your engines, each with a [`Journal`](crate::Journal) as its
//! state machine. With the smallest engine, on one node, it is:
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use std::sync::Arc;
//!
//! use consensus_core::NodeId;
//! use consensus_mock::MockConsensusEngine;
//! use consensus_testkit::{Journal, engine::{Node, run_suite}};
//!
//! run_suite(&[1], |_| async {
//!     let journal = Journal::new();
//!     let reader = journal.reader();
//!     let engine = MockConsensusEngine::new(NodeId(0), Box::new(journal)).unwrap();
//!     vec![Node { engine: Arc::new(engine), journal: reader }]
//! })
//! .await;
//! # }
//! ```
//! What this is *not*: a check of what an engine does when nodes crash or the network fails. For that, run your clients
//! through faults and ask the checker of [linearizability](crate::linearizability).

mod changes;
mod commands;
mod reads;
mod refusals;
mod stopping;
mod watching;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use consensus_core::{ConsensusEngine, EngineStatus, Health, LogId, NodeId, TransferError};

use crate::{JournalReader, eventually, rule};

/// One node: its engine and a look into its state machine, a [`Journal`](crate::Journal).
pub struct Node {
    /// The engine.
    pub engine: Arc<dyn ConsensusEngine>,
    /// What it applied.
    pub journal: JournalReader,
}

/// Checks an implementation: `cluster(n)` starts n nodes over a network that is whole.
///
/// # Panics
/// A rule is broken; the message says which.
pub async fn run_suite<F: Future<Output = Vec<Node>>>(sizes: &[u64], cluster: impl Fn(u64) -> F) {
    for size in sizes {
        let suite = format!("engine of {size} nodes");
        for (rule, case) in cases() {
            let nodes = cluster(*size).await;
            rule::check_within(&suite, rule, RULE_TIME_MAX, case(nodes)).await;
        }
    }
}

/// The rules of [`run_suite`], in the order in which they are checked.
#[must_use]
pub fn rules() -> Vec<&'static str> {
    cases().into_iter().map(|(rule, _)| rule).collect()
}

type Case = fn(Vec<Node>) -> Pin<Box<dyn Future<Output = ()>>>;

fn cases() -> [(&'static str, Case); 20] {
    [
        ("all nodes apply one order, and each command once", |nodes| Box::pin(commands::agreement(nodes))),
        ("an answer has the position and the response of its command", |nodes| {
            Box::pin(commands::answers(nodes))
        }),
        ("any bytes are a command, and none too", |nodes| Box::pin(commands::any_bytes(nodes))),
        ("a proposal or read that was dropped disturbs nobody, and is applied once at most", |nodes| {
            Box::pin(commands::dropped(nodes))
        }),
        ("a read after a barrier sees what was acknowledged before", |nodes| {
            Box::pin(reads::barriers(nodes))
        }),
        ("a stale read is answered at once by every node, with what it has applied", |nodes| {
            Box::pin(reads::stale(nodes))
        }),
        ("who does not lead names the leader, or hands on", |nodes| Box::pin(refusals::followers(nodes))),
        ("what is refused is not applied", |nodes| Box::pin(refusals::not_applied(nodes))),
        ("the status is that of the node, and never goes backwards", |nodes| {
            Box::pin(watching::progress(nodes))
        }),
        ("all statuses name one leader in a term", |nodes| Box::pin(watching::one_leader(nodes))),
        ("members change in one step, or the engine says that they cannot", |nodes| {
            Box::pin(changes::members(nodes))
        }),
        ("a change of members that is refused changes nothing", |nodes| {
            Box::pin(changes::refused_members(nodes))
        }),
        ("the log is compacted and nothing is lost, or the engine has none", |nodes| {
            Box::pin(changes::compaction(nodes))
        }),
        ("the lead is handed over, or the engine says that it cannot be", |nodes| {
            Box::pin(changes::transfer(nodes))
        }),
        ("the lead is not given to who cannot take it, nor by who does not have it", |nodes| {
            Box::pin(changes::refused_transfer(nodes))
        }),
        ("who is shut down says so", |nodes| Box::pin(stopping::says_so(nodes))),
        ("a shutdown leaves no proposal without a true answer", |nodes| Box::pin(stopping::answers(nodes))),
        ("a shutdown flushes the state machine", |nodes| Box::pin(stopping::flushes(nodes))),
        ("a leader that is shut down leaves the lead to another, if the engine can", |nodes| {
            Box::pin(stopping::leaves_the_lead(nodes))
        }),
        ("a panic of the state machine stops its engine, which says why", |nodes| {
            Box::pin(stopping::machine_panics(nodes))
        }),
    ]
}

/// The node that leads, once there is one.
pub async fn leader(nodes: &[Node]) -> &Node {
    let leads = |node: &&Node| {
        let status = node.status();
        status.health == Health::Running && status.leader == Some(status.node_id)
    };
    eventually("a leader is elected", || nodes.iter().find(leads).ok_or("no node leads")).await
}

/// Waits until all journals are equal and `count` commands long, and returns them.
pub async fn converged(nodes: &[Node], count: usize) -> Vec<(LogId, Bytes)> {
    eventually("all nodes converge", || {
        let journals: Vec<_> = nodes.iter().map(|node| node.journal.commands()).collect();
        let same = journals.iter().all(|journal| *journal == journals[0] && journal.len() == count);
        if same { Ok(journals[0].clone()) } else { Err(journals.iter().map(Vec::len).collect::<Vec<_>>()) }
    })
    .await
}

impl Node {
    fn status(&self) -> Arc<EngineStatus> {
        self.engine.status().borrow().clone()
    }

    fn id(&self) -> NodeId {
        self.status().node_id
    }
}

/// The node that leads and those that do not, who all know it.
async fn leader_and_followers(nodes: &[Node]) -> (&Node, Vec<&Node>) {
    let leading = leader(nodes).await;
    let own = leading.id();
    let followers: Vec<_> = nodes.iter().filter(|node| node.id() != own).collect();
    for follower in &followers {
        eventually("followers learn who leads", || {
            let known = follower.status().leader;
            if known == Some(own) { Ok(()) } else { Err(known) }
        })
        .await;
    }
    (leading, followers)
}

/// Whether the engine can hand over the lead: it is asked to hand it to who has it.
async fn can_transfer(leading: &Node) -> bool {
    leading.engine.transfer_leadership(Some(leading.id())).await != Err(TransferError::Unsupported)
}

async fn stop(nodes: &[Node]) {
    for node in nodes {
        node.engine.shutdown().await.unwrap();
    }
}

/// For what cannot be waited for in another way than by asking again.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Longest time that one rule takes on any cluster.
const RULE_TIME_MAX: Duration = Duration::from_secs(120);
