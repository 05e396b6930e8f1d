//! What must hold at every step (the properties of the paper's figure 3, and `docs/invariants.md`), and what a run came by.
//!
//! # What is promised when operators make mistakes
//! 1. An emptied disk is another disk. Its node neither votes nor counts before it has caught up, or was added again; so all
//!    that was acknowledged is kept, and every check holds in full. If a quorum was emptied nobody can lead, and that is all.
//! 2. Nothing tells an old copy that is put back from the disk that it replaces: that node has forgotten what it acknowledged
//!    and voted since. Every check holds in full as long as
//!    * each committed entry is on a quorum of disks even so,
//!    * no term is led twice in which that node may have forgotten a vote, and
//!    * the copy's configuration has the same voters as the one in force.
//! 3. Otherwise acknowledged writes can be lost; *one* old copy is enough for a write that a bare majority held. The promise is
//!    void, and what is left of it is that the loss is said where it can be seen: of two nodes that exchange messages and have
//!    different committed entries at one index, one has ended.
//! 4. A cluster makes progress when trouble is over if, in every configuration that a node goes by, a quorum of *sound* nodes is
//!    left: their disks are those that the others know, none is an old copy, and none has ended. With a witness one of them that
//!    keeps commands must have a log as long as a quorum of them: commands that only a witness has heard of are lost.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use consensus_core::{LogId, LogIndex, Membership, NodeId, Payload, Role, Term};
use consensus_raft_protocol::Raft;

use crate::{
    disk::SimDisk,
    losses::{LossKind, Lost, Promise},
    machine::{Command, Effect},
    random::chain,
    world::{Before, World},
};

/// What is known of the whole cluster, which no node knows.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// What was committed, by index.
    pub(crate) committed: BTreeMap<u64, LogId>,
    /// In which term, or an earlier one.
    committed_in: BTreeMap<u64, Term>,
    /// Configurations by their entry.
    configurations: BTreeMap<LogId, Arc<Membership>>,
    pub(crate) leaders: BTreeMap<Term, NodeId>,
    /// The entry before, and a checksum of the content, of every entry ever appended (Log Matching).
    entries: HashMap<LogId, (LogId, u64)>,
    /// Of the replicated state after each index.
    hashes: BTreeMap<u64, u64>,
    /// At which index each number of a session took effect.
    executed: HashMap<(u64, u64), LogIndex>,
    /// Attempts of which a client was told that they certainly came to nothing.
    pub(crate) not_applied: HashSet<u64>,
    /// Highest index that a client was told of.
    pub(crate) acknowledged: LogIndex,
    /// What nodes held that have lost some of it since.
    pub(crate) lost: Vec<Lost>,
    /// What operators left of what is promised.
    pub(crate) promise: Promise,
    /// Requests that clients were answered.
    pub(crate) answered: u64,
    /// How often what came about.
    pub(crate) reached: BTreeMap<&'static str, u64>,
    pub(crate) faults: u64,
}

/// What a set of runs must come by: a simulation that never gets there proves nothing about it.
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
    "lease over during a read",
    "joint",
    "leader change in a joint configuration",
    "leader removed",
    "voter added",
    "change done",
    "transfer",
    "damaged log cut",
    "damaged log whole again",
    "disk emptied",
    "no room on a disk",
    "a write failed",
    "attempt certainly not applied",
    "operation given up",
    "repeated command answered again",
];

/// The same for runs in which operators make mistakes.
pub const RARE_MISTAKES: &[&str] = &[
    "copy put back",
    "several copies put back",
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
    "stalled leader gives leadership away",
    "cluster went on without a stalled node",
    "node ended by a contradiction",
    "promise void",
    "no sound quorum was left",
];

impl Checks {
    pub(crate) fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_insert(0) += 1;
    }

    /// A disk is about to lose some of this.
    pub(crate) fn loses(&mut self, id: NodeId, disk: &SimDisk) {
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

    /// Log Matching: whoever has an entry of this term at this index has the same, after the same.
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
        let is_same = known == (before, content) || !self.is_promised();
        assert!(is_same, "Log Matching: two entries {at}, after {} and {before}", known.0);
    }

    /// State Machine Safety, sessions, and what clients were told.
    pub(crate) fn effect(&mut self, id: NodeId, effect: &Effect) {
        if !self.is_promised() {
            return;
        }
        let Effect { command, executed, at, hash } = effect;
        let known = *self.hashes.entry(at.index.0).or_insert(*hash);
        assert!(known == *hash, "State Machine Safety: node {id} differs from others after {at}");
        let attempt = command.attempt;
        assert!(
            !self.not_applied.contains(&attempt),
            "K1: attempt {attempt} was certainly not applied, and is at {at}"
        );
        if !executed {
            return self.reach("repeated command answered again");
        }
        let session = (command.session.client_id, command.session.sequence);
        let first = *self.executed.entry(session).or_insert(at.index);
        assert!(first == at.index, "exactly once: {session:?} took effect at {first} and at {}", at.index);
    }

    /// A snapshot says what was committed.
    pub(crate) fn snapshot(&mut self, last: LogId, membership: &Membership) {
        let committed = |id: &&LogId| id.index <= last.index && self.committed.get(&id.index.0) == Some(id);
        let in_force = self.configurations.keys().filter(committed).max_by_key(|id| id.index);
        if let Some(in_force) = in_force.filter(|_| self.is_promised()) {
            let known = &self.configurations[in_force];
            assert!(
                **known == *membership,
                "M8: the snapshot at {last} carries {membership} instead of {known}"
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
        assert!(commit >= before.commit, "I7: the commit index went back");
        assert!(term >= before.term, "I7: the term went back");
        let candidate = matches!(role, Role::Candidate | Role::PreCandidate);
        assert!(!candidate || leader.is_none(), "node {id} is {role} and names {leader:?} as leader");
        if candidate && before.role == Role::Follower && ticked && up.raft.transferring_to().is_none() {
            let patience = up.heard.is_none_or(|heard| local >= heard + election_timeout);
            assert!(
                patience,
                "node {id} stands for election {:?} after its leader's word",
                up.heard.map(|at| local - at)
            );
        }
        // A heartbeat was due, and sent.
        let beat = raft.next_deadline() > before.deadline;
        if ticked && beat && role == Role::Leader && before.role == Role::Leader {
            let peers = raft.peers();
            let active = |node| node == id || peers.get(&node).is_some_and(|peer| peer.active);
            let quorum = before.membership.quorum_value(active);
            assert!(
                quorum == Some(true) || quorum.is_none(),
                "P9: {id} leads, and no quorum answers it: {peers:?}, {}",
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
            self.checks.note_second_leader(term);
        }
        if !self.checks.is_promised() {
            return;
        }
        assert!(
            other.is_none_or(|other| other == id),
            "Election Safety: {id} and {other:?} lead term {term}"
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

    /// State Machine Safety; and what is committed is durable on a quorum (I2, I4).
    fn check_commit(&mut self, id: NodeId, before: &Before, to: LogIndex) {
        let mut earlier = false;
        for index in before.commit.0 + 1..=to.0 {
            let Some(raft) = self.node(id).raft() else { return };
            let (role, term) = (raft.role(), raft.term());
            let Some(entry) = raft.id_at(LogIndex(index)) else { continue };
            match self.checks.committed.get(&index) {
                Some(known) if self.checks.is_promised() => {
                    assert!(*known == entry, "State Machine Safety: {known} and {entry} are committed");
                }
                _ => {
                    // A step may commit by the configuration that it found, and by the one that it appended.
                    let now = raft.membership().clone();
                    let durable = [&before.membership, &now].iter().any(|by| self.is_on_quorum(entry, by));
                    let durable = durable || self.checks.note_unprotected(entry);
                    assert!(durable, "I4: {entry} is committed by {id} and on no quorum of {now}");
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

    /// What a node acknowledged before it lost it counts: whoever is elected without that has it from another.
    pub(crate) fn is_on_quorum(&self, id: LogId, membership: &Membership) -> bool {
        let was_on = |voter: NodeId| {
            let lost = self.checks.lost.iter().filter(|lost| lost.node == voter && lost.counts(membership));
            lost.into_iter().any(|lost| lost.disk.holds(id))
        };
        membership.quorum_value(|voter| self.holds(voter, id) || was_on(voter)) == Some(true)
    }

    /// In its log; or in the snapshot that its machine holds, and which a restart would finish to install (I11).
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

    /// Only what is committed and on this disk is applied (I8).
    pub(crate) fn check_apply(&mut self, id: NodeId, through: LogIndex) {
        let node = self.node(id);
        let Some(up) = &node.up else { return };
        for index in up.applied.0 + 1..=through.0 {
            let entry = up.raft.id_at(LogIndex(index)).expect("what is applied is in the log");
            assert!(
                self.checks.committed.get(&index) == Some(&entry) || !self.checks.is_promised(),
                "I8: {id} applies {entry}, which is not committed"
            );
            assert!(node.disk.holds(entry), "I8: {id} applies {entry}, which is not on its disk");
        }
    }

    /// Who is asked to stand has the leader's whole log (D §3.10).
    pub(crate) fn check_transfer(&mut self, id: NodeId, to: NodeId) {
        let Some(raft) = self.node(id).raft() else { return };
        let last = raft.last_log();
        // It may have moved on to a later term, in which this is ignored.
        if self.node(to).disk.hard_state().term > raft.term() {
            return;
        }
        let has = self.holds(to, last) || self.was_on(to, last) || !self.checks.is_promised();
        assert!(has, "T2: {to} is asked to stand and lacks {last}");
    }

    /// A damaged node that is as far again may be spared for others.
    fn check_recovery(&mut self, id: NodeId) {
        let Some((impaired, last)) = self.impaired else { return };
        if impaired != id || self.wiped == Some(id) {
            return;
        }
        let Some(raft) = self.node(id).raft() else { return };
        if raft.last_log() >= last && raft.hard_state().lost_through.is_none() {
            self.impaired = None;
            self.checks.reach("damaged log whole again");
        }
    }

    /// One leader in one term, and the same log and state, committed and applied to its end, on every node.
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
                && (self.checks.promise.split_term || hashes.iter().all(|hash| *hash == hashes[0])),
            "liveness: the nodes did not converge:\n{}",
            self.overview()
        );
    }

    /// Whether a node has to keep up with the others.
    pub(crate) fn counts_in(&self, id: NodeId, membership: &Membership) -> bool {
        let trusted = membership.trusts(id, self.node(id).disk.storage());
        trusted && (!self.plan.has_mistakes() || self.is_sound(id, membership))
    }

    /// Each node in a line.
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
