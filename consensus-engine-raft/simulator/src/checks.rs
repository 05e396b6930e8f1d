//! Properties that must hold at every step (figure 3 of the paper, and `docs/invariants.md`), and the events of a run.
//!
//! # Guarantees when operators make mistakes
//! 1. An emptied disk counts as another disk. Its node neither votes nor counts before it has caught up or was added again, so
//!    all acknowledged data is kept, and every check holds. If a quorum was emptied, no leader can be elected.
//! 2. An old copy that is restored cannot be distinguished from the disk that it replaces: the node has lost its later
//!    acknowledgements and votes. Every check holds as long as
//!    * each committed entry is still on a quorum of disks,
//!    * no term in which the node may have lost a vote has two leaders, and
//!    * the copy's configuration has the same voters as the one in force.
//! 3. Otherwise acknowledged writes can be lost; *one* old copy is enough for a write that only a bare majority has. The only
//!    remaining guarantee is that an observable loss is reported: if two nodes that exchange messages have
//!    different committed entries at one index, one of them has stopped.
//! 4. After the end of all faults a cluster makes progress if, in every configuration that a node has, a quorum of *sound* nodes is
//!    left: their disks are those that the others know, none is an old copy, and none has stopped. With a witness, one of them that
//!    keeps commands must have a log as long as a quorum of them: commands of which only a witness knows are lost.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use consensus_core::{LogId, LogIndex, Membership, NodeId, Payload, Role, Term};
use consensus_raft_protocol::Raft;

use crate::{
    data_loss::{Guarantee, LossKind, Lost},
    disk::SimDisk,
    machine::{Command, Effect},
    random::chain,
    world::{Before, World},
};

/// Knowledge of the whole cluster, which no single node has.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Committed entries by index.
    pub(crate) committed: BTreeMap<u64, LogId>,
    /// Term by which each entry was committed at the latest.
    committed_in: BTreeMap<u64, Term>,
    /// Configurations by their entry.
    configurations: BTreeMap<LogId, Arc<Membership>>,
    pub(crate) leaders: BTreeMap<Term, NodeId>,
    /// Preceding entry and checksum of the content of every entry ever appended (Log Matching).
    entries: HashMap<LogId, (LogId, u64)>,
    /// Hash of the replicated state after each index.
    hashes: BTreeMap<u64, u64>,
    /// Index at which each number of a session took effect.
    executed: HashMap<(u64, u64), LogIndex>,
    /// Attempts that were reported to a client as certainly not applied.
    pub(crate) not_applied: HashSet<u64>,
    /// Highest index that was acknowledged to a client.
    pub(crate) acknowledged: LogIndex,
    /// Former content of disks that have lost some of it.
    pub(crate) lost: Vec<Lost>,
    /// Guarantees that remain after operators' mistakes.
    pub(crate) guarantee: Guarantee,
    /// Number of requests with a result.
    pub(crate) answered: u64,
    /// Number of occurrences of each event.
    pub(crate) reached: BTreeMap<&'static str, u64>,
    pub(crate) faults_injected: u64,
}

/// Events that must occur in a set of runs: a simulation without them would prove nothing about them.
pub const RARE: &[&str] = &[
    "leader",
    "step-down",
    "crash",
    "conflict",
    "earlier term committed with the leader's own",
    "snapshot installed",
    "install over a conflict",
    "install interrupted",
    "read",
    "read on a follower",
    "read refused",
    "lease read",
    "lease ended during a read",
    "joint",
    "leader change in a joint configuration",
    "leader removed",
    "voter added",
    "change done",
    "transfer",
    "damaged log truncated",
    "damaged log has caught up",
    "disk emptied",
    "no room on a disk",
    "a write failed",
    "attempt certainly not applied",
    "operation abandoned",
    "repeated command had the same response",
];

/// Events that must occur in a set of runs with operators' mistakes.
pub const RARE_MISTAKES: &[&str] = &[
    "old copy restored",
    "several old copies restored",
    "disk wiped, node joins",
    "disk wiped, node starts as usual",
    "member replaced under its id",
    "member replaced in one change",
    "member added again with an empty disk",
    "node started with another first configuration",
    "a write hung",
    "an apply hung",
    "snapshot could not be taken",
    "no room for a snapshot",
    "two clusters meet",
    "message of another cluster refused",
    "node refuses to bootstrap",
    "node waits for its peers",
    "stalled leader transfers leadership",
    "cluster worked without a stalled node",
    "node stopped by a contradiction",
    "guarantee void",
    "no sound quorum was left",
];

impl Checks {
    pub(crate) fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_insert(0) += 1;
    }

    /// Must be called before a disk loses data.
    pub(crate) fn record_loss(&mut self, id: NodeId, disk: &SimDisk) {
        self.lost.push(Lost { node: id, disk: disk.image(), kind: LossKind::Known });
    }

    pub(crate) fn last_lost(&self, id: NodeId) -> Option<SimDisk> {
        self.lost.iter().rev().find(|lost| lost.node == id).map(|lost| lost.disk.image())
    }

    /// The committed configuration with the greatest index.
    pub(crate) fn newest_membership(&self) -> Option<Arc<Membership>> {
        let committed = |id: &LogId| self.committed.get(&id.index.0) == Some(id);
        let newest =
            self.configurations.iter().filter(|(id, _)| committed(id)).max_by_key(|(id, _)| id.index);
        newest.map(|(_, membership)| membership.clone())
    }

    /// Log Matching: entries with equal index and term are equal, and so are the entries before them.
    pub(crate) fn entry(&mut self, at: LogId, raft: Option<&Raft>, payload: &Payload) {
        if let Payload::Membership(membership) = payload {
            self.configurations.entry(at).or_insert_with(|| Arc::new(membership.clone()));
        }
        let content = match payload {
            Payload::Withheld => return,
            Payload::Command(command) => {
                Command::decode(command).map_or(1, |command| chain(2, command.attempt))
            }
            Payload::Blank => 3,
            Payload::Membership(membership) => chain(4, membership.voters().count() as u64),
        };
        let Some(before) = raft.and_then(|raft| raft.id_at(at.index.prev())) else { return };
        let known = *self.entries.entry(at).or_insert((before, content));
        let is_same = known == (before, content) || !self.holds();
        assert!(is_same, "Log Matching: two entries {at}, after {} and {before}", known.0);
    }

    /// State Machine Safety, sessions, and results of clients.
    pub(crate) fn effect(&mut self, id: NodeId, effect: &Effect) {
        if !self.holds() {
            return;
        }
        let Effect { command, executed, at, hash } = effect;
        let known = *self.hashes.entry(at.index.0).or_insert(*hash);
        assert!(known == *hash, "State Machine Safety: node {id} differs from others after {at}");
        let attempt = command.attempt;
        assert!(
            !self.not_applied.contains(&attempt),
            "K1: attempt {attempt} was reported as not applied, but is at {at}"
        );
        if !executed {
            return self.reach("repeated command had the same response");
        }
        let session = (command.session.client_id, command.session.sequence);
        let first = *self.executed.entry(session).or_insert(at.index);
        assert!(first == at.index, "exactly once: {session:?} took effect at {first} and at {}", at.index);
    }

    /// Checks that a snapshot has the committed position and configuration.
    pub(crate) fn snapshot(&mut self, last: LogId, membership: &Membership) {
        let committed = |id: &&LogId| id.index <= last.index && self.committed.get(&id.index.0) == Some(id);
        let in_force = self.configurations.keys().filter(committed).max_by_key(|id| id.index);
        if let Some(in_force) = in_force.filter(|_| self.holds()) {
            let known = &self.configurations[in_force];
            assert!(
                **known == *membership,
                "M8: the snapshot at {last} has configuration {membership} instead of {known}"
            );
        }
    }
}

impl World {
    pub(crate) fn check_step(&mut self, id: NodeId, before: &Before, ticked: bool) {
        let now = self.now;
        let node = self.node(id);
        let local = node.local(now);
        let Some(up) = &node.up else { return };
        let raft = &up.raft;
        let (role, commit, term, leader) = (raft.role(), raft.commit(), raft.term(), raft.leader());
        let election_timeout = std::time::Duration::from_millis(self.plan.election_ms);
        assert!(commit >= before.commit, "I7: the commit index decreased");
        assert!(term >= before.term, "I7: the term decreased");
        let candidate = matches!(role, Role::Candidate | Role::PreCandidate);
        assert!(!candidate || leader.is_none(), "node {id} is {role} and names {leader:?} as leader");
        if candidate && before.role == Role::Follower && ticked && up.raft.transferring_to().is_none() {
            let patience = up.heard.is_none_or(|heard| local >= heard + election_timeout);
            assert!(
                patience,
                "node {id} campaigns {:?} after it heard its leader",
                up.heard.map(|at| local - at)
            );
        }
        // A heartbeat was due and sent.
        let beat = raft.next_deadline() > before.deadline;
        if ticked && beat && role == Role::Leader && before.role == Role::Leader {
            let peers = raft.peers();
            let active = |node| node == id || peers.get(&node).is_some_and(|peer| peer.active);
            let quorum = before.membership.quorum_value(active);
            assert!(
                quorum == Some(true) || quorum.is_none(),
                "P9: {id} is leader without responses of a quorum: {peers:?}, {}",
                before.membership
            );
        }
        let joint = before.membership.is_joint();
        let (led, could) = (before.role == Role::Leader, before.membership.can_lead(id));
        if role == Role::Leader && !led {
            self.elected(id, term);
        }
        if led && role != Role::Leader {
            self.checks.reach("step-down");
            match (could, joint) {
                (true, true) => self.checks.reach("leader change in a joint configuration"),
                (false, _) => self.checks.reach("leader removed"),
                _ => {}
            }
        }
        self.check_commit(id, before, commit);
        self.check_recovery(id);
        self.check_added(id);
    }

    /// Election Safety and Leader Completeness.
    fn elected(&mut self, id: NodeId, term: Term) {
        self.checks.reach("leader");
        let other = self.checks.leaders.insert(term, id);
        if other.is_some() {
            self.checks.record_second_leader(term);
        }
        if !self.checks.holds() {
            return;
        }
        assert!(
            other.is_none_or(|other| other == id),
            "Election Safety: {id} and {other:?} are leaders of term {term}"
        );
        let Some(raft) = self.node(id).raft() else { return };
        for (index, committed) in self.checks.committed.range(raft.purged().index.0 + 1..) {
            // Votes of an earlier term may arrive late.
            if self.checks.committed_in.get(index).is_some_and(|commit_term| *commit_term >= term) {
                continue;
            }
            let held = raft.id_at(committed.index);
            assert!(
                held == Some(*committed),
                "Leader Completeness: the leader of term {term} lacks {committed}"
            );
        }
    }

    /// State Machine Safety, and that committed entries are durable on a quorum (I2, I4).
    fn check_commit(&mut self, id: NodeId, before: &Before, to: LogIndex) {
        let mut earlier = false;
        for index in before.commit.0 + 1..=to.0 {
            let Some(raft) = self.node(id).raft() else { return };
            let (role, term) = (raft.role(), raft.term());
            let Some(entry) = raft.id_at(LogIndex(index)) else { continue };
            match self.checks.committed.get(&index) {
                Some(known) if self.checks.holds() => {
                    assert!(*known == entry, "State Machine Safety: {known} and {entry} are both committed");
                }
                _ => {
                    // A step may commit by the configuration before it, and by the one that it appended.
                    let now = raft.membership().clone();
                    let durable = [&before.membership, &now].iter().any(|by| self.is_on_quorum(entry, by));
                    let durable = durable || self.checks.record_unprotected(entry);
                    assert!(durable, "I4: {entry} is committed by {id}, but on no quorum of {now}");
                    earlier |= role == Role::Leader && entry.term < term;
                    self.checks.committed.insert(index, entry);
                    self.checks.committed_in.insert(index, term);
                }
            }
        }
        if earlier {
            self.checks.reach("earlier term committed with the leader's own");
        }
    }

    /// Whether an entry is on a quorum. Entries that a node lost after it acknowledged them count: a new leader has them from another node.
    pub(crate) fn is_on_quorum(&self, id: LogId, membership: &Membership) -> bool {
        let was_on = |voter: NodeId| {
            let lost = self.checks.lost.iter().filter(|lost| lost.node == voter && lost.counts(membership));
            lost.into_iter().any(|lost| lost.disk.holds(id))
        };
        membership.quorum_value(|voter| self.holds(voter, id) || was_on(voter)) == Some(true)
    }

    /// Whether a node has an entry in its log, or in a restored snapshot whose installation a restart would complete (I11).
    pub(crate) fn holds(&self, node: NodeId, id: LogId) -> bool {
        let node = self.node(node);
        let installed = || {
            let installing =
                node.disk.hard_state().installing.filter(|meta| meta.last <= node.machine_disk.applied());
            installing.is_some_and(|meta| id.index <= meta.last.index)
        };
        node.disk.holds(id) || installed()
    }

    fn was_on(&self, node: NodeId, id: LogId) -> bool {
        self.checks.lost.iter().any(|lost| lost.node == node && lost.disk.holds(id))
    }

    /// Checks that only entries that are committed and on this disk are applied (I8).
    pub(crate) fn check_apply(&mut self, id: NodeId, through: LogIndex) {
        let node = self.node(id);
        let Some(up) = &node.up else { return };
        for index in up.applied.0 + 1..=through.0 {
            let entry = up.raft.id_at(LogIndex(index)).expect("applied entries are in the log");
            assert!(
                self.checks.committed.get(&index) == Some(&entry) || !self.checks.holds(),
                "I8: {id} applies {entry}, which is not committed"
            );
            assert!(node.disk.holds(entry), "I8: {id} applies {entry}, which is not on its disk");
        }
    }

    /// Checks that the target of a transfer has the leader's whole log (D §3.10).
    pub(crate) fn check_transfer(&mut self, id: NodeId, to: NodeId) {
        let Some(raft) = self.node(id).raft() else { return };
        let last = raft.last_log();
        // The target may be in a later term, in which it ignores the request.
        if self.node(to).disk.hard_state().term > raft.term() {
            return;
        }
        let has = self.holds(to, last) || self.was_on(to, last) || !self.checks.holds();
        assert!(has, "T2: {to} is asked to campaign, but lacks {last}");
    }

    /// After a damaged node has caught up, another node may be damaged.
    fn check_recovery(&mut self, id: NodeId) {
        let Some((impaired, last)) = self.impaired else { return };
        if impaired != id || self.wiped == Some(id) {
            return;
        }
        let Some(raft) = self.node(id).raft() else { return };
        if raft.last_log() >= last && raft.hard_state().lost_through.is_none() {
            self.impaired = None;
            self.checks.reach("damaged log has caught up");
        }
    }

    /// Checks that there is one leader in one term, and that every node has the same log and state, committed and applied completely.
    pub(crate) fn check_converged(&self) {
        let membership = self.newest_membership();
        let state = |id: NodeId| {
            let up = self.node(id).up.as_ref()?;
            let raft = &up.raft;
            Some((raft.term(), raft.leader(), raft.last_log(), raft.commit(), up.machine.applied_index()))
        };
        let members = membership.members().keys().filter(|id| self.counts_in(**id, &membership));
        let states: Vec<_> = members.clone().map(|id| state(*id)).collect();
        let hashes: Vec<_> = members
            .filter(|id| !self.is_witness(**id))
            .map(|id| self.node(*id).up.as_ref().map(|up| up.machine.hash()))
            .collect();
        let agreed = states.first().copied().flatten();
        let done = agreed.is_some_and(|(_, leader, last, commit, applied)| {
            let leads = leader.is_some_and(|leader| membership.can_lead(leader));
            !membership.is_joint() && leads && last.index == commit && commit == applied
        });
        assert!(
            done && states.iter().all(|state| *state == agreed)
                && hashes.iter().all(|hash| *hash == hashes[0]),
            "liveness: the nodes did not converge:\n{}",
            self.overview()
        );
    }

    /// Whether a node must keep up with the others.
    pub(crate) fn counts_in(&self, id: NodeId, membership: &Membership) -> bool {
        let trusted = membership.trusts(id, self.node(id).disk.storage());
        trusted && (!self.plan.has_mistakes() || self.is_sound(id, membership))
    }

    /// Describes the cluster, one line per node.
    pub(crate) fn overview(&self) -> String {
        let line = |node: &crate::node::Node| {
            let Some(up) = &node.up else {
                let why = node.ended.clone().or(node.waits.map(|hold| hold.to_string()));
                let why = why.map(|why| format!(", {why}"));
                return format!("  {}: down{}\n", node.id, why.unwrap_or_default());
            };
            let raft = &up.raft;
            let (role, term, last, commit) = (raft.role(), raft.term(), raft.last_log(), raft.commit());
            let (leader, applied, members) =
                (raft.leader().map(|id| id.0), up.machine.applied_index(), raft.membership());
            let lost =
                raft.hard_state().lost_through.map(|id| format!(", lost through {id}")).unwrap_or_default();
            format!(
                "  {}: {role}, term {term} of {leader:?}, last {last}, commit {commit}, applied {applied}, members {members}{lost}\n",
                node.id
            )
        };
        self.nodes.iter().map(line).collect()
    }
}
