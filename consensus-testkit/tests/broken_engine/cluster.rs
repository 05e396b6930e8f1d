//! A cluster within one process that implements the whole engine trait, with one defect at a time.
//!
//! The nodes share one log behind a mutex. The leader applies an entry a millisecond after its proposal, the others some
//! milliseconds later, so that requests can be in progress and followers can lag.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{
    EngineStatus, Entry, Health, LogId, LogIndex, Membership, NodeId, Payload, Role, StateMachine, Term,
};
use consensus_testkit::{Journal, engine::Node};
use tokio::sync::watch;

use crate::engine::Engine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    None,
    FollowersMissACommand,
    FollowersSwapCommands,
    AppliesTwice,
    ReturnsWrongResponse,
    ReturnsWrongPosition,
    RefusesEmptyCommands,
    ProposesDroppedCommandAgain,
    StopsAtDroppedProposal,
    FollowersReadWithoutWaiting,
    BarriersAtZero,
    StaleReadsAtCommit,
    FollowersRefuseStaleReads,
    NamesNoLeader,
    AcknowledgesWithoutForwarding,
    RefusesAndProposes,
    StatusNeverChanges,
    StatusGoesBack,
    StatusAppliesUncommitted,
    TransfersWithinTheTerm,
    ChangesOneOfTwo,
    LearnersVote,
    ChangesPartially,
    FollowersChangeMembers,
    CompactsLess,
    HidesFirstIndex,
    LosesCompactedState,
    TransfersToItself,
    NamesSuccessorThatIsNotLeader,
    TransfersToAnyNode,
    FollowersTransfer,
    AcceptsProposalsAfterShutdown,
    ServesStaleReadsAfterShutdown,
    ReportsRunningAfterShutdown,
    RefusesAppliedCommands,
    LeavesProposalsPending,
    ShutsDownWithoutFlush,
    KeepsLeadershipAfterShutdown,
    ContinuesAfterPanic,
    HidesPanic,
}

/// State shared by the nodes.
pub(crate) struct Cluster {
    pub(crate) defect: Defect,
    pub(crate) log: Vec<Entry>,
    pub(crate) term: Term,
    pub(crate) leader: Option<usize>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) nodes: Vec<NodeState>,
    /// Responses by index.
    pub(crate) responses: BTreeMap<u64, Bytes>,
}

/// State of one node.
pub(crate) struct NodeState {
    pub(crate) machine: Journal,
    pub(crate) applied: u64,
    pub(crate) first: u64,
    pub(crate) health: Health,
    pub(crate) status: watch::Sender<Arc<EngineStatus>>,
}

pub(crate) fn lock(cluster: &Mutex<Cluster>) -> MutexGuard<'_, Cluster> {
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts `size` nodes with node 0 as leader.
pub(crate) fn start(defect: Defect, size: u64) -> Vec<Node> {
    let membership = Arc::new(Membership::of_voters(0..size));
    let mut cluster = Cluster {
        defect,
        log: Vec::new(),
        term: Term(1),
        leader: Some(0),
        membership,
        nodes: Vec::new(),
        responses: BTreeMap::new(),
    };
    for id in 0..size {
        let status = watch::channel(Arc::new(cluster.status_of(id as usize, &Health::Running, 0, 1))).0;
        let (machine, health) = (Journal::new(), Health::Running);
        cluster.nodes.push(NodeState { machine, applied: 0, first: 1, health, status });
    }
    let journals: Vec<_> = cluster.nodes.iter().map(|part| part.machine.reader()).collect();
    let cluster = Arc::new(Mutex::new(cluster));
    let node =
        |(node, journal)| Node { engine: Arc::new(Engine { node, cluster: cluster.clone() }), journal };
    journals.into_iter().enumerate().map(node).collect()
}

impl Cluster {
    pub(crate) fn last(&self) -> u64 {
        self.log.len() as u64
    }

    pub(crate) fn is_leader(&self, node: usize) -> bool {
        self.leader == Some(node)
    }

    pub(crate) fn leader_id(&self) -> Option<NodeId> {
        self.leader.map(|node| NodeId(node as u64))
    }

    pub(crate) fn append(&mut self, command: Bytes) -> LogId {
        let id = LogId { term: self.term, index: LogIndex(self.last() + 1) };
        self.log.push(Entry::command(id, command));
        id
    }

    /// Applies the log on `node` up to `last`.
    pub(crate) fn apply(&mut self, node: usize, last: u64) {
        let entries = self.entries(node, self.nodes[node].applied, last);
        let part = &mut self.nodes[node];
        if part.health != Health::Running || entries.is_empty() {
            return;
        }
        let machine = &mut part.machine;
        match catch_unwind(AssertUnwindSafe(|| machine.apply(&entries))) {
            Ok(responses) => {
                let indexes = part.applied + 1..;
                self.responses.extend(indexes.zip(responses.expect("a journal applies every entry")));
                part.applied = last;
            }
            Err(_) if self.defect == Defect::ContinuesAfterPanic => part.applied = last,
            Err(_) => part.health = Health::Fatal("the state machine panicked".to_owned()),
        }
        self.publish(node);
    }

    /// Entries `(after, last]` as `node` sees them, with its defect.
    fn entries(&self, node: usize, after: u64, last: u64) -> Vec<Entry> {
        let follows = !self.is_leader(node);
        let entry = |index: u64| {
            let entry = self.log[index as usize - 1].clone();
            let payload = match self.defect {
                Defect::FollowersMissACommand if follows && index % 5 == 3 => Payload::Blank,
                Defect::FollowersSwapCommands if follows => {
                    let neighbour = self.log.get(((index - 1) ^ 1) as usize);
                    neighbour.unwrap_or(&entry).payload.clone()
                }
                _ => entry.payload,
            };
            Entry { payload, ..entry }
        };
        (after + 1..=last).map(entry).collect()
    }

    pub(crate) fn lead(&mut self, node: usize) {
        if self.defect != Defect::TransfersWithinTheTerm {
            self.term = self.term.next();
        }
        self.leader = Some(node);
        self.apply(node, self.last());
        (0..self.nodes.len()).for_each(|node| self.publish(node));
    }

    /// Another node that could be leader.
    pub(crate) fn successor(&self, node: usize) -> Option<usize> {
        (0..self.nodes.len())
            .find(|successor| *successor != node && self.nodes[*successor].health == Health::Running)
    }

    fn status_of(&self, node: usize, health: &Health, applied: u64, first: u64) -> EngineStatus {
        let last = if self.is_leader(node) { self.last() } else { applied };
        let term = last.checked_sub(1).map_or(Term(0), |last| self.log[last as usize].id.term);
        EngineStatus {
            node_id: NodeId(node as u64),
            health: health.clone(),
            storage: consensus_core::StorageId::default(),
            no_room: None,
            storage_stalled_since: None,
            apply_stalled_since: None,
            snapshot_blocked: None,
            snapshot_errors: BTreeMap::new(),
            role: if self.is_leader(node) { Role::Leader } else { Role::Follower },
            term: self.term,
            leader: self.leader_id(),
            last_log: LogId { term, index: LogIndex(last) },
            first_index: LogIndex(first),
            commit: LogIndex(applied),
            applied: LogIndex(applied),
            membership: self.membership.clone(),
            peers: BTreeMap::new(),
        }
    }

    pub(crate) fn publish(&self, node: usize) {
        let part = &self.nodes[node];
        let mut status = self.status_of(node, &part.health, part.applied, part.first);
        match self.defect {
            Defect::StatusNeverChanges if part.health == Health::Running => return,
            Defect::StatusGoesBack if part.applied % 7 == 6 => status.term = Term(0),
            Defect::StatusAppliesUncommitted => status.commit = status.commit.prev(),
            Defect::ReportsRunningAfterShutdown if part.health == Health::ShutDown => {
                status.health = Health::Running;
            }
            Defect::HidesFirstIndex => status.first_index = LogIndex(1),
            _ => {}
        }
        part.status.send_replace(Arc::new(status));
    }
}

/// Time from a proposal until the leader applies it.
pub(crate) const COMMIT_TIME: Duration = Duration::from_millis(1);
/// Further time until a follower applies it.
pub(crate) const FOLLOW_TIME: Duration = Duration::from_millis(10);
