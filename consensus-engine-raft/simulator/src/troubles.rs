//! What is done to the cluster. A quorum that can recover is always left (`spares`).

use consensus_core::{LogId, LogIndex, Member, MemberChange, MemberKind, NodeId, Role, StorageId};
use consensus_raft_protocol::{Event, Raft};

use crate::{
    disk::{Harm, SimDisk},
    machine::MachineDisk,
    plan::Trouble,
    random::Random,
    trace::What,
    world::{Due, MS, World},
};

impl World {
    /// The next trouble, unless it is one of those left out.
    pub(crate) fn trouble(&mut self) {
        if !self.faults {
            return;
        }
        self.troubles += 1;
        let number = self.troubles;
        // Each has numbers of its own, so that leaving one out changes no other.
        let mut random = Random::new(self.seed, 1_000 + number);
        let pause = 1 + random.below(self.plan.trouble_pause_ms * MS);
        let trouble = self.plan.trouble(&mut random);
        self.schedule(pause, Due::Trouble);
        let Some(trouble) = trouble.filter(|_| !self.skip.contains(&number)) else { return };
        let id = NodeId(random.below(self.nodes.len() as u64));
        if let Some(text) = self.bring(trouble, id, &mut random) {
            self.checks.faults += 1;
            let now = self.now;
            self.trace.hash(&[now, trouble as u64, id.0]);
            self.trace.note(now, None, || What::Trouble { number, text });
        }
    }

    /// Does it; says what it did, if anything.
    fn bring(&mut self, trouble: Trouble, id: NodeId, random: &mut Random) -> Option<String> {
        let nodes = self.nodes.len() as u64;
        match trouble {
            Trouble::Crash => {
                self.node(id).up.as_ref()?;
                self.crash(id, false);
                Some(format!("node {id} crashes"))
            }
            Trouble::CrashLeader => {
                let leader = self.leader()?;
                self.crash(leader, false);
                Some(format!("leader {leader} crashes"))
            }
            Trouble::PauseLeader => {
                let leader = self.leader()?;
                let until = self.now + self.plan.election_ms * (700 + random.below(1600));
                self.node_mut(leader).paused_until = until;
                Some(format!("leader {leader} stands still until {} ms", until / MS))
            }
            Trouble::CrashAll => {
                (0..nodes).for_each(|id| self.crash(NodeId(id), false));
                Some("all nodes crash".to_owned())
            }
            Trouble::Partition => {
                let side = random.next();
                self.block(|from, to| (side >> from & 1) != (side >> to & 1));
                Some(format!(
                    "partition {:?}",
                    (0..nodes).filter(|id| side >> id & 1 == 1).collect::<Vec<_>>()
                ))
            }
            Trouble::OneWay => {
                let some = random.next() & random.next();
                self.block(|from, to| some >> (8 * from + to) & 1 == 1);
                Some(format!("one-way cuts {:?}", self.blocked))
            }
            Trouble::IsolateLeader => {
                let leader = self.leader()?;
                self.block(|from, to| (from == leader.0) != (to == leader.0));
                Some(format!("leader {leader} is cut off"))
            }
            Trouble::Mend => {
                self.blocked.clear();
                Some("the network is whole".to_owned())
            }
            Trouble::Pause => {
                let until = self.now + random.below(2_500 * MS);
                self.node_mut(id).paused_until = until;
                Some(format!("node {id} stands still until {} ms", until / MS))
            }
            Trouble::SlowDisk => {
                self.node_mut(id).slow_disk = true;
                self.schedule(random.below(4_000 * MS), Due::Speed(id));
                Some(format!("node {id} has a slow disk"))
            }
            Trouble::FullDisk => {
                self.node(id).disk.fill(true);
                self.schedule(random.below(3_000 * MS), Due::Room(id));
                Some(format!("the disk of node {id} is full"))
            }
            Trouble::FailedWrite => {
                self.node(id).up.as_ref()?;
                self.node(id).disk.fail(true);
                Some(format!("the disk of node {id} fails"))
            }
            Trouble::Damage => self.damage(id, random),
            Trouble::Wipe => self.wipe(id),
            Trouble::Compact => {
                self.node(id).up.as_ref()?;
                self.compact(id, random.below(4));
                Some(format!("node {id} compacts its log"))
            }
            Trouble::Members => self.change_members(id, random),
            Trouble::Transfer => {
                self.tokens += 1;
                let to = Some(NodeId(random.below(nodes))).filter(|_| random.percent(50));
                let from = self.leader().filter(|_| random.percent(80)).unwrap_or(id);
                self.step(from, Event::Transfer { token: self.tokens, to });
                Some(format!("node {from} is asked to hand over to {to:?}"))
            }
            Trouble::StallDisk | Trouble::StallApply | Trouble::NoSnapshot | Trouble::NoRoomForSnapshot => {
                self.stall(trouble, id, random)
            }
            Trouble::Meet => self.meet(random),
            Trouble::CopyDisks
            | Trouble::PutBack
            | Trouble::PutBackSeveral
            | Trouble::WipeAndStart
            | Trouble::WipeAndJoin
            | Trouble::Replace
            | Trouble::ReplaceInOneChange
            | Trouble::OtherFirstConfiguration => self.operate(trouble, id, random),
            Trouble::Disconnect => {
                let leader = self.leader()?;
                let some: Vec<u64> = (0..nodes).filter(|id| *id != leader.0 && random.percent(60)).collect();
                some.iter().for_each(|id| self.disconnected(NodeId(*id), leader));
                Some(format!("nodes {some:?} lose their connection to leader {leader}"))
            }
        }
    }

    /// Something hangs, or cannot be done, for a while: seconds, or until all trouble is over.
    fn stall(&mut self, trouble: Trouble, id: NodeId, random: &mut Random) -> Option<String> {
        let until = self.now + random.of(&[1_000, 4_000, 60_000]) * MS;
        let id = self.leader().filter(|_| random.percent(50)).unwrap_or(id);
        let node = self.node_mut(id);
        let (field, what) = match trouble {
            Trouble::StallDisk => (&mut node.disk_stalls_until, "writes of node"),
            Trouble::StallApply => (&mut node.apply_stalls_until, "applies of node"),
            Trouble::NoSnapshot => (&mut node.no_snapshot_until, "snapshots cannot be taken by node"),
            _ => (&mut node.no_room_until, "there is no room for snapshots on node"),
        };
        *field = until;
        Some(format!("until {} ms: {what} {id} (hanging, where it is a call)", until / MS))
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

    /// Adds, alters and removes a few members at once; at least two nodes that can lead stay.
    fn change_members(&mut self, id: NodeId, random: &mut Random) -> Option<String> {
        // What a node in repair voted for may be needed: nobody is removed meanwhile.
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
                // What was emptied comes back only by being removed and added; see `wipe`.
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
        let text = format!("node {asked} is asked for {target}");
        self.step(asked, Event::ChangeMembership { token: self.tokens, changes });
        Some(text)
    }

    /// Whether what this node holds can be lost: all is calm, without it there is a quorum, and one of it has
    /// everything and can be elected.
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
        let heir = others.into_iter().any(|raft| membership.can_lead(raft.id()));
        self.impaired.is_none() && all_up && settled && quorum && unchanging && heir
    }

    /// Whether the others are a quorum in every configuration that anybody goes by, with all commands that there are: what
    /// a node must be able to take (I16), at any time.
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
        // The configuration that it began with must be readable, or it refuses to start.
        indices.retain(|index| *index > 1);
        if indices.is_empty() || !self.can_be_damaged(id) {
            return None;
        }
        let last = self.node(id).raft()?.last_log();
        let disk = self.node(id).disk.clone();
        self.checks.loses(id, &disk);
        self.crash(id, true);
        let mut done = Vec::new();
        for _ in 0..=random.below(3) {
            let index = random.of(&indices);
            let harm = random.of(&[Harm::Flip, Harm::Lost, Harm::Misdirected]);
            // That the last record was never written nobody can know.
            let harm = if indices.last() == Some(&index) { Harm::Flip } else { harm };
            disk.harm(index, harm, random.next());
            done.push(format!("{harm:?} {index}"));
        }
        self.impaired = Some((id, last));
        Some(format!("records on the disk of node {id} are damaged: {}", done.join(", ")))
    }

    /// A node loses its disk. Once in a run, of a node that nobody who may lead would take for what it was.
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
        self.checks.loses(id, &disk);
        self.crash(id, true);
        let alone = self.plan.voters == 1;
        let node = self.node_mut(id);
        node.disk = SimDisk::new(storage);
        node.machine_disk = MachineDisk::default();
        // Alone it would take itself for the whole cluster; a node that lost its disk must join instead.
        node.joins = alone;
        self.wiped = Some(id);
        self.impaired = Some((id, LogId { term: consensus_core::Term(u64::MAX), index: LogIndex(0) }));
        self.checks.reach("disk emptied");
        Some(format!("the disk of node {id} is replaced by an empty one"))
    }
}
