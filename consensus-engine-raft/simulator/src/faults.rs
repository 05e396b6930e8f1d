//! Injection of faults. A quorum that can recover always remains (`spares`).

use consensus_core::{LogId, LogIndex, Member, MemberChange, MemberKind, NodeId, Role, StorageId};
use consensus_raft_protocol::{Event, Raft};

use crate::{
    disk::{RecordDamage, SimDisk},
    machine::MachineDisk,
    plan::Fault,
    random::Random,
    trace::What,
    world::{Due, MS, World},
};

impl World {
    /// Injects the next fault, unless it is one of those left out.
    pub(crate) fn fault(&mut self) {
        if !self.faults_enabled {
            return;
        }
        self.last_fault += 1;
        let number = self.last_fault;
        // Each fault has its own random numbers, so that leaving one out changes no other.
        let mut random = Random::new(self.seed, 1_000 + number);
        let pause = 1 + random.below(self.plan.fault_pause_ms * MS);
        let fault = self.plan.fault(&mut random);
        self.schedule(pause, Due::Fault);
        let Some(fault) = fault.filter(|_| !self.skip.contains(&number)) else { return };
        let id = NodeId(random.below(self.nodes.len() as u64));
        if let Some(text) = self.inject(fault, id, &mut random) {
            self.checks.faults_injected += 1;
            let now = self.now;
            self.trace.hash(&[now, fault as u64, id.0]);
            self.trace.note(now, None, || What::Fault { number, text });
        }
    }

    /// Injects a fault. Returns its description, or `None` if it was not possible.
    fn inject(&mut self, fault: Fault, id: NodeId, random: &mut Random) -> Option<String> {
        let nodes = self.nodes.len() as u64;
        match fault {
            Fault::Crash => {
                self.node(id).up.as_ref()?;
                self.crash(id, false);
                Some(format!("node {id} crashes"))
            }
            Fault::CrashLeader => {
                let leader = self.leader()?;
                self.crash(leader, false);
                Some(format!("leader {leader} crashes"))
            }
            Fault::PauseLeader => {
                let leader = self.leader()?;
                let until = self.now + self.plan.election_ms * (700 + random.below(1600));
                self.node_mut(leader).paused_until = until;
                Some(format!("leader {leader} pauses until {} ms", until / MS))
            }
            Fault::CrashAll => {
                (0..nodes).for_each(|id| self.crash(NodeId(id), false));
                Some("all nodes crash".to_owned())
            }
            Fault::Partition => {
                let side = random.next();
                self.block(|from, to| (side >> from & 1) != (side >> to & 1));
                Some(format!(
                    "partition {:?}",
                    (0..nodes).filter(|id| side >> id & 1 == 1).collect::<Vec<_>>()
                ))
            }
            Fault::OneWay => {
                let some = random.next() & random.next();
                self.block(|from, to| some >> (8 * from + to) & 1 == 1);
                Some(format!("one-way cuts {:?}", self.blocked))
            }
            Fault::IsolateLeader => {
                let leader = self.leader()?;
                self.block(|from, to| (from == leader.0) != (to == leader.0));
                Some(format!("leader {leader} is isolated"))
            }
            Fault::HealNetwork => {
                self.blocked.clear();
                Some("the network is healed".to_owned())
            }
            Fault::Pause => {
                let until = self.now + random.below(2_500 * MS);
                self.node_mut(id).paused_until = until;
                Some(format!("node {id} pauses until {} ms", until / MS))
            }
            Fault::SlowDisk => {
                self.node_mut(id).slow_disk = true;
                self.schedule(random.below(4_000 * MS), Due::Speed(id));
                Some(format!("node {id} has a slow disk"))
            }
            Fault::FullDisk => {
                self.node(id).disk.fill(true);
                self.schedule(random.below(3_000 * MS), Due::Room(id));
                Some(format!("the disk of node {id} is full"))
            }
            Fault::FailedWrite => {
                self.node(id).up.as_ref()?;
                self.node(id).disk.fail(true);
                Some(format!("the disk of node {id} fails"))
            }
            Fault::Damage => self.damage(id, random),
            Fault::Wipe => self.wipe(id),
            Fault::Compact => {
                self.node(id).up.as_ref()?;
                self.compact(id, random.below(4));
                Some(format!("node {id} compacts its log"))
            }
            Fault::Members => self.change_members(id, random),
            Fault::Transfer => {
                self.tokens += 1;
                let to = Some(NodeId(random.below(nodes))).filter(|_| random.percent(50));
                let from = self.leader().filter(|_| random.percent(80)).unwrap_or(id);
                self.step(from, Event::Transfer { token: self.tokens, to });
                Some(format!("node {from} is asked to transfer leadership to {to:?}"))
            }
            Fault::StallDisk | Fault::StallApply | Fault::NoSnapshot | Fault::NoRoomForSnapshot => {
                self.stall(fault, id, random)
            }
            Fault::Meet => self.meet(random),
            Fault::CopyDisks
            | Fault::RestoreCopy
            | Fault::PutBackSeveral
            | Fault::WipeAndStart
            | Fault::WipeAndJoin
            | Fault::Replace
            | Fault::ReplaceInOneChange
            | Fault::OtherFirstConfiguration => self.operate(fault, id, random),
            Fault::Disconnect => {
                let leader = self.leader()?;
                let some: Vec<u64> = (0..nodes).filter(|id| *id != leader.0 && random.percent(60)).collect();
                some.iter().for_each(|id| self.disconnected(NodeId(*id), leader));
                Some(format!("nodes {some:?} lose their connection to leader {leader}"))
            }
        }
    }

    /// Makes calls hang or fail for seconds, or until the end of all faults.
    fn stall(&mut self, fault: Fault, id: NodeId, random: &mut Random) -> Option<String> {
        let until = self.now + random.of(&[1_000, 4_000, 60_000]) * MS;
        let id = self.leader().filter(|_| random.percent(50)).unwrap_or(id);
        let node = self.node_mut(id);
        let (field, what) = match fault {
            Fault::StallDisk => (&mut node.disk_stalls_until, "writes of node"),
            Fault::StallApply => (&mut node.apply_stalls_until, "applies of node"),
            Fault::NoSnapshot => (&mut node.no_snapshot_until, "snapshots cannot be taken by node"),
            _ => (&mut node.no_room_until, "there is no room for snapshots on node"),
        };
        *field = until;
        Some(format!("until {} ms: {what} {id} (calls hang)", until / MS))
    }

    fn block(&mut self, cuts: impl Fn(u64, u64) -> bool) {
        let nodes = self.nodes.len() as u64;
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        self.blocked = pairs.filter(|(from, to)| from != to && cuts(*from, *to)).collect();
        self.checks.reach("partition");
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leads = |node: &&crate::node::Node| node.raft().is_some_and(|raft| raft.role() == Role::Leader);
        self.nodes.iter().filter(leads).max_by_key(|node| node.raft().map(Raft::term)).map(|node| node.id)
    }

    /// Adds, alters and removes a few members at once; at least two nodes that can lead remain.
    fn change_members(&mut self, id: NodeId, random: &mut Random) -> Option<String> {
        // Votes of a node in repair may be needed, so no member is removed meanwhile.
        if self.impaired.is_some_and(|(impaired, _)| self.wiped != Some(impaired)) {
            return None;
        }
        let mut changes = Vec::new();
        for _ in 0..=random.below(3) {
            let id = NodeId(random.below(self.nodes.len() as u64));
            let kinds = [MemberKind::Voter, MemberKind::Voter, MemberKind::Joining, MemberKind::Learner];
            let kind = if self.is_witness(id) { MemberKind::Witness } else { random.of(&kinds) };
            let mut member = Member::new(kind);
            member.priority = if self.plan.priorities { random.below(2) as u32 } else { 0 };
            changes.push(match random.below(3) {
                0 => MemberChange::Remove(id),
                // A member with an emptied disk must be removed and added again; see `wipe`.
                _ if self.wiped == Some(id) => continue,
                _ => MemberChange::Set(id, member),
            });
        }
        let target = self.newest_membership().without_outgoing().with_changes(&changes).ok()?;
        let can = |id: &&NodeId| target.can_lead(**id) && self.wiped != Some(**id);
        if changes.is_empty() || target.members().keys().filter(can).count() < 2 {
            return None;
        }
        self.tokens += 1;
        let asked = self.leader().filter(|_| random.percent(80)).unwrap_or(id);
        let text = format!("node {asked} is asked to change to {target}");
        self.step(asked, Event::ChangeMembership { token: self.tokens, changes });
        Some(text)
    }

    /// Whether the data of this node can be lost: no other fault is active, and the other nodes are a quorum, one of which has
    /// all entries and can be elected.
    fn can_be_spared(&self, id: NodeId) -> bool {
        let membership = self.newest_membership();
        let rafts = || self.nodes.iter().filter_map(|node| node.raft());
        let all_up = self.nodes.iter().all(|node| node.up.is_some() && node.paused_until <= self.now);
        let settled = self.nodes.iter().all(|node| node.up.as_ref().is_some_and(|up| up.writing.is_empty()));
        let quorum = membership.quorum_value(|voter| voter != id) == Some(true);
        let leads = rafts().any(|raft| raft.role() == Role::Leader && raft.commit() == raft.last_log().index);
        let members: Vec<&Raft> = rafts().filter(|raft| membership.get(raft.id()).is_some()).collect();
        let unchanging = leads && members.iter().all(|raft| *raft.membership() == membership);
        let longest = rafts().map(Raft::last_log).max();
        let others = members.iter().filter(|raft| raft.id() != id && Some(raft.last_log()) == longest);
        let has_successor = others.into_iter().any(|raft| membership.can_lead(raft.id()));
        self.impaired.is_none() && all_up && settled && quorum && unchanging && has_successor
    }

    /// Whether the other nodes are a quorum in every configuration that a node has, with all commands. Then the node must
    /// tolerate damage (I16) at any time.
    fn can_be_damaged(&self, id: NodeId) -> bool {
        let rafts = self.nodes.iter().filter_map(|node| node.raft());
        let memberships = rafts.map(Raft::membership).filter(|membership| membership.voters().count() > 0);
        let others = |membership: &std::sync::Arc<consensus_core::Membership>| {
            membership.quorum_value(|voter| voter != id && !self.is_witness(voter)) == Some(true)
        };
        self.impaired.is_none()
            && self.nodes.iter().all(|node| node.up.is_some())
            && memberships.into_iter().all(others)
    }

    fn damage(&mut self, id: NodeId, random: &mut Random) -> Option<String> {
        let mut indices = self.node(id).disk.indices();
        // The first configuration must be readable, or the node refuses to start.
        indices.retain(|index| *index > 1);
        if indices.is_empty() || !self.can_be_damaged(id) {
            return None;
        }
        let last = self.node(id).raft()?.last_log();
        let disk = self.node(id).disk.clone();
        self.checks.record_loss(id, &disk);
        self.crash(id, true);
        let mut done = Vec::new();
        for _ in 0..=random.below(3) {
            let index = random.of(&indices);
            let damage = random.of(&[RecordDamage::Flip, RecordDamage::Lost, RecordDamage::Misdirected]);
            // A last record that was never written cannot be detected.
            let damage = if indices.last() == Some(&index) { RecordDamage::Flip } else { damage };
            disk.damage(index, damage, random.next());
            done.push(format!("{damage:?} {index}"));
        }
        self.impaired = Some((id, last));
        Some(format!("records on the disk of node {id} are damaged: {}", done.join(", ")))
    }

    /// Replaces a node's disk by an empty one, once in a run, if all possible leaders know that the disk is another one.
    fn wipe(&mut self, id: NodeId) -> Option<String> {
        let storage = StorageId(1000 + id.0);
        let known = self.nodes.iter().filter_map(|node| node.raft());
        let mut known = known.filter(|raft| raft.membership().can_lead(raft.id()));
        let untrusted =
            known.all(|raft| raft.membership().is_voter(id) && !raft.membership().trusts(id, storage));
        if self.wiped.is_some() || !untrusted || !self.can_be_spared(id) || self.is_witness(id) {
            return None;
        }
        let disk = self.node(id).disk.clone();
        self.checks.record_loss(id, &disk);
        self.crash(id, true);
        let alone = self.plan.voters == 1;
        let node = self.node_mut(id);
        node.disk = SimDisk::new(storage);
        node.machine_disk = MachineDisk::default();
        // A single node would bootstrap a new cluster; a node that lost its disk must join instead.
        node.joins = alone;
        self.wiped = Some(id);
        self.impaired = Some((id, LogId { term: consensus_core::Term(u64::MAX), index: LogIndex(0) }));
        self.checks.reach("disk emptied");
        Some(format!("the disk of node {id} is replaced by an empty one"))
    }
}
