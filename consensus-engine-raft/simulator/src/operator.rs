//! Operators and their mistakes: disks that are emptied or replaced by old copies, members that are added again under their old
//! id, nodes that are started with another first configuration. `checks.rs` lists what is guaranteed then.

use std::{collections::VecDeque, fmt};

use consensus_core::{LogStorage, Member, MemberChange, MemberKind, Membership, NodeId, StorageId};
use consensus_raft_protocol::Event;

use crate::{
    disk::SimDisk,
    machine::MachineDisk,
    plan::Fault,
    random::Random,
    world::{Due, MS, World},
};

/// Copies of disks, and the procedure in progress.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    copies: Vec<DiskCopy>,
    procedure: Option<Procedure>,
    /// Number of the procedure in progress.
    procedures: u64,
    /// Number of new disks.
    disks: u64,
    /// Number of mistakes.
    mistakes: u64,
}

/// A copy of a node's data directory.
#[derive(Debug)]
struct DiskCopy {
    node: NodeId,
    disk: SimDisk,
    machine: MachineDisk,
}

/// A sequence of steps.
#[derive(Debug)]
struct Procedure {
    steps: VecDeque<Step>,
    /// Number of attempts at the current step.
    tries: u64,
}

#[derive(Clone, Debug)]
enum Step {
    /// Requests the changes from the leader until they are in force.
    Change(Vec<MemberChange>),
    /// Requests the changes from the leader once.
    ChangeOnce(Vec<MemberChange>),
    /// Empties the disk of a node and starts the node.
    Wipe { node: NodeId, joins: bool },
    /// Waits for this number of milliseconds.
    Pause(u64),
}

/// Why a node does not bootstrap.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hold {
    /// This peer has not reported yet whether its log is empty.
    SilentPeer(NodeId),
    /// This peer has a log.
    PeerWithLog(NodeId),
    /// This peer has another first configuration.
    OtherFounders(NodeId),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SilentPeer(peer) => write!(f, "it waits for node {peer} to say whether it has a log"),
            Self::PeerWithLog(peer) => {
                write!(f, "it does not bootstrap: node {peer} has a log; start it with --join")
            }
            Self::OtherFounders(peer) => {
                write!(
                    f,
                    "it does not bootstrap: node {peer} has another first configuration; start it with --join"
                )
            }
        }
    }
}

impl World {
    /// Carries out an action of an operator. Returns its description if it is possible now.
    pub(crate) fn operate(&mut self, fault: Fault, id: NodeId, random: &mut Random) -> Option<String> {
        if fault == Fault::CopyDisks {
            return self.copy_disks();
        }
        if self.operator.mistakes >= self.plan.mistakes_max || self.operator.procedure.is_some() {
            return None;
        }
        let done = match fault {
            Fault::RestoreCopy => self.restored_copy(&[id], random),
            Fault::PutBackSeveral => {
                let several: Vec<NodeId> = self.ids().filter(|_| random.percent(60)).collect();
                if several.len() < 2 { None } else { self.restored_copy(&several, random) }
            }
            Fault::WipeAndStart => self.wipe_disk(id, false),
            Fault::WipeAndJoin => self.wipe_disk(id, true),
            Fault::Replace => self.replace(id, random),
            Fault::ReplaceInOneChange => self.replace_in_one_change(id, random),
            _ => self.start_with_other_configuration(),
        }?;
        self.operator.mistakes += 1;
        Some(done)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u64).map(NodeId)
    }

    fn copy_disks(&mut self) -> Option<String> {
        for id in self.ids() {
            let node = self.node(id);
            let (disk, machine) = (node.disk.image(), node.machine_disk.image());
            self.operator.copies.push(DiskCopy { node: id, disk, machine });
        }
        Some("all data directories are copied".to_owned())
    }

    /// Restores a copy of random age on each of the nodes that has one.
    fn restored_copy(&mut self, ids: &[NodeId], random: &mut Random) -> Option<String> {
        let mut done = Vec::new();
        for id in ids {
            let copies = self.operator.copies.iter().filter(|copy| copy.node == *id && !copy.disk.is_new());
            let images: Vec<_> = copies.map(|copy| (copy.disk.image(), copy.machine.image())).collect();
            if images.is_empty() {
                continue;
            }
            let (disk, machine) = images[random.below(images.len() as u64) as usize].clone();
            let old = self.node(*id).disk.clone();
            self.take_down(*id);
            done.push(format!("{id} (its log ends at {} instead of {})", disk.last(), old.last()));
            let node = self.node_mut(*id);
            (node.disk, node.machine_disk, node.restored_copy) = (disk, machine, true);
            self.checks.record_lost_disk(*id, &old, true);
        }
        if done.is_empty() {
            return None;
        }
        self.checks.reach(if done.len() > 1 { "several old copies restored" } else { "old copy restored" });
        ids.iter().for_each(|id| self.record_restored_copy(*id));
        Some(format!("old copies of data directories are restored on nodes {}", done.join(", ")))
    }

    /// Empties a disk, unless no other founder has more than the first configuration: that would be a new cluster.
    fn wipe_disk(&mut self, id: NodeId, joins: bool) -> Option<String> {
        let is_founder = |other: &NodeId| self.plan.voters == 1 || self.first.get(*other).is_some();
        let mut founders = self.ids().filter(|other| *other != id && is_founder(other));
        if !founders.any(|other| self.node(other).disk.has_history()) || self.is_witness(id) {
            return None;
        }
        self.operator.disks += 1;
        let old = self.node(id).disk.clone();
        self.take_down(id);
        self.checks.record_lost_disk(id, &old, false);
        let storage = StorageId(10_000 + self.operator.disks);
        // The file of a cluster that started with one node names no other node to ask, so such a node must join.
        let joins = joins || self.plan.voters == 1;
        let node = self.node_mut(id);
        (node.disk, node.machine_disk, node.joins) = (SimDisk::new(storage), MachineDisk::default(), joins);
        (node.wiped, node.restored_copy) = (true, false);
        let how = if joins { "with --join" } else { "with its usual command" };
        self.checks.reach(if joins { "disk wiped, node joins" } else { "disk wiped, node starts as usual" });
        Some(format!("the disk of node {id} is emptied, and it is started {how}"))
    }

    /// Stops a node, which is restarted later.
    fn take_down(&mut self, id: NodeId) {
        if self.node(id).up.is_some() {
            self.crash(id, true);
        } else {
            self.schedule(300 * MS, Due::Restart(id));
        }
        self.node_mut(id).ended = None;
    }

    /// Removes a member, empties its disk before or after that, and adds it again.
    fn replace(&mut self, id: NodeId, random: &mut Random) -> Option<String> {
        let membership = self.newest_membership();
        if membership.get(id).is_none() || self.is_witness(id) {
            return None;
        }
        let mut steps = VecDeque::new();
        // The only member can be replaced once there are others.
        let others: Vec<NodeId> = self.ids().filter(|other| *other != id).collect();
        if membership.members().len() == 1 {
            let add = |other: &NodeId| MemberChange::Add(*other, Member::new(MemberKind::Joining));
            steps.push_back(Step::Change(others.iter().map(add).collect()));
            steps.push_back(Step::Pause(300 + random.below(1500)));
        }
        let wipe = Step::Wipe { node: id, joins: random.percent(80) };
        let kind = random.of(&[MemberKind::Joining, MemberKind::Voter]);
        let remove = Step::Change(vec![MemberChange::Remove(id)]);
        let add = Step::Change(vec![MemberChange::Add(id, Member::new(kind))]);
        let pause = Step::Pause(random.of(&[0, 0, 300]));
        steps.extend(match random.below(3) {
            0 => [wipe, remove, pause, add],
            1 => [remove, wipe, pause, add],
            _ => [remove, add, pause, wipe],
        });
        self.begin_procedure(steps);
        self.checks.reach("member replaced under its id");
        Some(format!("member {id} will be replaced under its id"))
    }

    fn replace_in_one_change(&mut self, id: NodeId, random: &mut Random) -> Option<String> {
        if self.newest_membership().get(id).is_none() || self.is_witness(id) {
            return None;
        }
        let mut changes =
            vec![MemberChange::Remove(id), MemberChange::Add(id, Member::new(MemberKind::Voter))];
        let other = NodeId(random.below(self.nodes.len() as u64));
        if other != id && random.percent(40) && !self.is_witness(other) {
            let member = Member::new(MemberKind::Voter);
            changes.push(match self.newest_membership().get(other) {
                Some(_) => MemberChange::Remove(other),
                None => MemberChange::Add(other, member),
            });
        }
        let wipe = Step::Wipe { node: id, joins: random.percent(80) };
        let (change, pause) = (Step::ChangeOnce(changes), Step::Pause(random.of(&[0, 20, 100])));
        let steps = if random.percent(50) { [wipe, pause, change] } else { [change, pause, wipe] };
        self.begin_procedure(steps.into());
        self.checks.reach("member replaced in one change");
        Some(format!("member {id} will be removed and added in one change"))
    }

    /// Nodes without a log are started with a file that lists all nodes.
    fn start_with_other_configuration(&mut self) -> Option<String> {
        let new: Vec<NodeId> = self.ids().filter(|id| self.node(*id).disk.is_new()).collect();
        let all = Membership::of_voters(0..self.nodes.len() as u64);
        if new.is_empty() || all == self.first {
            return None;
        }
        for id in &new {
            self.take_down(*id);
            let node = self.node_mut(*id);
            (node.joins, node.file) = (false, Some(all.clone()));
        }
        self.checks.reach("node started with another first configuration");
        Some(format!("nodes {new:?}, which have no log, are started with the first configuration {all}"))
    }

    fn begin_procedure(&mut self, steps: VecDeque<Step>) {
        self.operator.procedures += 1;
        self.operator.procedure = Some(Procedure { steps, tries: 0 });
        self.schedule(0, Due::Operator(self.operator.procedures));
    }

    /// Takes the next step of a procedure, or retries it.
    pub(crate) fn proceed(&mut self, number: u64) {
        if number != self.operator.procedures || !self.faults_enabled {
            return;
        }
        let Some(Procedure { mut steps, tries }) = self.operator.procedure.take() else { return };
        let Some(step) = steps.pop_front() else { return };
        let (is_done, pause) = match &step {
            Step::Change(changes) => {
                let is_done = self.is_changed(changes);
                if !is_done && tries % 5 == 0 {
                    // `kvctl` refuses changes that are in force already.
                    let is_left = |change: &&MemberChange| !self.is_changed(std::slice::from_ref(*change));
                    self.ask_for(changes.iter().filter(is_left).cloned().collect());
                }
                (is_done, if is_done { 0 } else { 40 * MS })
            }
            Step::ChangeOnce(changes) => {
                self.ask_for(changes.clone());
                (true, 0)
            }
            Step::Wipe { node, joins } => {
                self.wipe_disk(*node, *joins);
                (true, 0)
            }
            Step::Pause(ms) => (true, ms * MS),
        };
        if !is_done {
            steps.push_front(step);
        }
        let tries = if is_done { 0 } else { tries + 1 };
        // The procedure is abandoned if there is no leader for a long time.
        if tries < 60 {
            self.operator.procedure = Some(Procedure { steps, tries });
            self.schedule(pause, Due::Operator(number));
        }
    }

    fn is_changed(&self, changes: &[MemberChange]) -> bool {
        let membership = self.newest_membership();
        !membership.is_joint()
            && changes.iter().all(|change| match change {
                MemberChange::Remove(id) => membership.get(*id).is_none(),
                MemberChange::Set(id, _) | MemberChange::Add(id, _) => membership.get(*id).is_some(),
            })
    }

    fn ask_for(&mut self, changes: Vec<MemberChange>) {
        let Some(leader) = self.leader() else { return };
        self.tokens += 1;
        self.step(leader, Event::ChangeMembership { token: self.tokens, changes });
    }

    /// Returns the first configuration with which a node bootstraps, if any. Like the server, it bootstraps only when each peer in
    /// its file has reported that it is empty, too, or has the same first configuration. `Err` says why it does not start.
    pub(crate) fn first_configuration(&self, id: NodeId) -> Result<Option<Membership>, Hold> {
        let node = self.node(id);
        let Some(file) = node.file.clone().filter(|_| !node.joins && node.disk.is_new()) else {
            return Ok(None);
        };
        // At first all nodes start at once with empty logs.
        if self.now == 0 || !self.plan.has_mistakes() {
            return Ok(Some(file));
        }
        for peer in file.members().keys().filter(|peer| **peer != id) {
            let other = self.node(*peer);
            let is_cut_off = self.blocked.contains(&(id.0, peer.0)) || self.blocked.contains(&(peer.0, id.0));
            if is_cut_off || (other.up.is_none() && other.waits.is_none()) {
                return Err(Hold::SilentPeer(*peer));
            }
            if other.disk.has_history() {
                return Err(Hold::PeerWithLog(*peer));
            }
            let founders = membership_of(&other.disk);
            if founders.voters().count() > 0 && founders.voters().ne(file.voters()) {
                return Err(Hold::OtherFounders(*peer));
            }
        }
        Ok(Some(file))
    }

    /// Stops a node whose committed entries were contradicted by its leader (I17).
    pub(crate) fn end_node(&mut self, id: NodeId, why: String) {
        assert!(!self.checks.holds(), "node {id} stops although nothing was lost: {why}");
        self.checks.reach("node stopped by a contradiction");
        self.crash(id, true);
        self.node_mut(id).ended = Some(why);
    }

    /// At the end of all faults: abandons procedures, and starts nodes that did not bootstrap in the way that they demand.
    pub(crate) fn end_operations(&mut self) {
        self.operator.procedure = None;
        self.connected_until = 0;
        for node in self.nodes.iter_mut().filter(|node| node.waits.is_some()) {
            (node.joins, node.waits) = (true, None);
        }
    }
}

/// The configuration that a log ends with.
pub(crate) fn membership_of(disk: &SimDisk) -> Membership {
    let state = disk.load().unwrap_or_default();
    state.memberships.last().map_or(state.purged.membership, |(_, membership)| membership.clone())
}
