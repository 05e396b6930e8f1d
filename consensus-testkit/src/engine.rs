//! Conformance suite for implementations of [`ConsensusEngine`].
//!
//! [`run_suite`] needs a function that starts a cluster of your engines, each with a [`Journal`](crate::Journal) as its
//! state machine. For the smallest engine, on one node:
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
//! What this is *not*: a test of crashes and network failures. For those, run clients while faults are injected, and check
//! their results for [linearizability](crate::linearizability).

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

/// One node: an engine, and a reader of its state machine, which is a [`Journal`](crate::Journal).
pub struct Node {
    /// The engine.
    pub engine: Arc<dyn ConsensusEngine>,
    /// Reads the commands that the engine applied.
    pub journal: JournalReader,
}

/// Checks an implementation on clusters of the given sizes. `cluster(n)` starts n nodes on a network without faults.
///
/// # Panics
/// A rule is broken; the message names it.
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
        ("all nodes apply every command once, in the same order", |nodes| {
            Box::pin(commands::agreement(nodes))
        }),
        ("the result of a proposal has the position and the response of its command", |nodes| {
            Box::pin(commands::results(nodes))
        }),
        ("a command may be any bytes, or empty", |nodes| Box::pin(commands::any_bytes(nodes))),
        ("a dropped proposal or read affects no other, and is applied at most once", |nodes| {
            Box::pin(commands::dropped(nodes))
        }),
        ("a read after a barrier sees every command that was acknowledged before", |nodes| {
            Box::pin(reads::barriers(nodes))
        }),
        ("every node serves a stale read at once, from its applied state", |nodes| {
            Box::pin(reads::stale(nodes))
        }),
        ("a node that is not leader names the leader, or forwards the proposal", |nodes| {
            Box::pin(refusals::followers(nodes))
        }),
        ("a refused proposal is not applied", |nodes| Box::pin(refusals::not_applied(nodes))),
        ("the status describes its own node, and never goes backwards", |nodes| {
            Box::pin(watching::progress(nodes))
        }),
        ("all statuses name the same leader of a term", |nodes| Box::pin(watching::one_leader(nodes))),
        ("changes of members take effect in one step, or the engine does not support them", |nodes| {
            Box::pin(changes::members(nodes))
        }),
        ("a refused change of members changes nothing", |nodes| Box::pin(changes::refused_members(nodes))),
        ("compaction of the log loses nothing, or the engine has no log", |nodes| {
            Box::pin(changes::compaction(nodes))
        }),
        ("leadership is transferred, or the engine does not support it", |nodes| {
            Box::pin(changes::transfer(nodes))
        }),
        ("a transfer to a node that cannot lead, or from a node that is not leader, is refused", |nodes| {
            Box::pin(changes::refused_transfer(nodes))
        }),
        ("an engine that is shut down reports it", |nodes| Box::pin(stopping::is_reported(nodes))),
        ("every proposal during a shutdown gets a true result", |nodes| {
            Box::pin(stopping::results_are_true(nodes))
        }),
        ("a shutdown flushes the state machine", |nodes| Box::pin(stopping::flushes(nodes))),
        ("a leader that is shut down transfers leadership, if the engine supports it", |nodes| {
            Box::pin(stopping::transfers_leadership(nodes))
        }),
        ("a panic of the state machine stops its engine, which reports the reason", |nodes| {
            Box::pin(stopping::machine_panics(nodes))
        }),
    ]
}

/// Waits for a leader, and returns its node.
pub async fn leader(nodes: &[Node]) -> &Node {
    let is_leader = |node: &&Node| {
        let status = node.status();
        status.health == Health::Running && status.leader == Some(status.node_id)
    };
    eventually("a leader is elected", || nodes.iter().find(is_leader).ok_or("no node is leader")).await
}

/// Waits until all journals are equal and have `count` commands, and returns their content.
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

/// Returns the leader and the other nodes, once all of them know the leader.
async fn leader_and_followers(nodes: &[Node]) -> (&Node, Vec<&Node>) {
    let leading = leader(nodes).await;
    let own = leading.id();
    let followers: Vec<_> = nodes.iter().filter(|node| node.id() != own).collect();
    for follower in &followers {
        eventually("followers know the leader", || {
            let known = follower.status().leader;
            if known == Some(own) { Ok(()) } else { Err(known) }
        })
        .await;
    }
    (leading, followers)
}

/// Whether the engine supports transfers of leadership: asks the leader for a transfer to itself.
async fn can_transfer(leading: &Node) -> bool {
    leading.engine.transfer_leadership(Some(leading.id())).await != Err(TransferError::Unsupported)
}

async fn stop(nodes: &[Node]) {
    for node in nodes {
        node.engine.shutdown().await.unwrap();
    }
}

/// Pauses before a request that can only be repeated until it succeeds.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Time limit of one rule on any cluster.
const RULE_TIME_MAX: Duration = Duration::from_secs(120);
