//! Whole clusters of the protocol in simulated time, from a seed: loss, delay, duplication, reordering, partitions, crashes
//! between any two effects, snapshots and compaction, changes of the configuration, transfers, an emptied disk, clocks that
//! drift within the bound of the leases, with the properties of the paper's figure 3 checked at every step;
//! then all faults stop and nobody asks for anything, and the cluster must converge completely; then it must serve.
//!
//! `SIM_SEED=n` runs one seed, `SIM_SEEDS=n` that many.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use consensus_core::{
    HardState, LogId, LogIndex, LogState, Member, MemberChange, MemberKind, Membership, NodeId, Role,
    SnapshotMeta, StorageId, Term, codec,
};
use consensus_raft_protocol::{
    Append, Call, Config, EntryInfo, Event, InterruptedInstall, Output, Persist, Raft, Reply, Restored,
    Returned, SnapshotVerdict, Time,
};

#[test]
fn random_faults_break_no_property() {
    let seed = std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok());
    let count = std::env::var("SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let seeds = seed.map_or(0..count, |seed| seed..seed + 1);
    let mut reached = BTreeMap::new();
    let mut simulated = Duration::ZERO;
    for seed in seeds {
        println!("replay: SIM_SEED={seed} cargo test -p consensus-raft-protocol --test simulation");
        let mut simulation = Simulation::new(seed);
        simulation.run();
        simulated += simulation.now;
        for (event, count) in simulation.reached {
            *reached.entry(event).or_insert(0u64) += count;
        }
    }
    println!("{simulated:?} simulated; reached: {reached:#?}");
    if seed.is_none() && count >= 400 {
        for rare in [
            "leader",
            "crash",
            "conflict",
            "snapshot installed",
            "install interrupted",
            "read",
            "step-down",
            "partition",
            "joint",
            "leader change in a joint configuration",
            "leader removed",
            "promoted",
            "change done",
            "transfer",
            "lease read",
            "read on a follower",
            "disk emptied",
        ] {
            assert!(
                reached.get(rare).is_some_and(|count| *count > 10),
                "{rare} was hardly reached: {reached:?}"
            );
        }
    }
}

/// What lies on a node's disk: the log, and the state machine's applied position.
/// What the flight recorder rests on: the state as bytes is all of the state, and nothing else has a say.
#[test]
fn a_replay_returns_the_same_bytes() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(seed);
        simulation.recorded = Some(Recorder::default());
        simulation.run();
        assert!(simulation.recorded.unwrap().replayed > 1000, "seed {seed}");
    }
}

/// Notes what is asked of the nodes, and replays it in pieces.
#[derive(Default)]
struct Recorder {
    nodes: BTreeMap<NodeId, Recording>,
    replayed: u64,
}

/// Calls of one node, from a state on.
struct Recording {
    from: Vec<u8>,
    calls: Vec<(Call, Vec<u8>)>,
}

impl Recorder {
    fn begin(&mut self, id: NodeId, raft: &Raft) {
        self.nodes.entry(id).or_insert_with(|| Recording { from: raft.checkpoint(), calls: Vec::new() });
    }

    fn note(&mut self, id: NodeId, raft: &Raft, call: Call, returned: &Returned) {
        let Some(recording) = self.nodes.get_mut(&id) else { return };
        recording.calls.push((call, codec::encode(1, returned)));
        if recording.calls.len() == 100 {
            let Recording { from, calls } = self.nodes.remove(&id).unwrap();
            let mut replayed = Raft::from_checkpoint(&from).unwrap();
            for (call, returned) in calls {
                assert_eq!(codec::encode(1, &replayed.call(call)), returned);
            }
            assert_eq!(replayed.checkpoint(), raft.checkpoint());
            self.replayed += 100;
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Disk {
    storage: StorageId,
    hard: HardState,
    purged: SnapshotMeta,
    entries: BTreeMap<u64, LogId>,
    machine: LogIndex,
}

impl Disk {
    fn holds(&self, id: LogId) -> bool {
        id.index <= self.purged.last.index || self.entries.get(&id.index.0) == Some(&id)
    }

    fn write(&mut self, persist: &Persist, ids: &[LogId]) {
        if let Some(meta) = &persist.purge {
            self.entries.retain(|index, _| *index > meta.last.index.0);
            self.purged = meta.clone();
        }
        if let Some(after) = persist.truncate_after {
            self.entries.retain(|index, _| *index <= after.0);
        }
        for id in ids {
            self.entries.insert(id.index.0, *id);
        }
        if let Some(hard) = &persist.hard_state {
            assert!(hard.term >= self.hard.term, "I7: the durable term went back");
            let changed_vote = self.hard.voted_for.is_some() && hard.voted_for != self.hard.voted_for;
            assert!(hard.term > self.hard.term || !changed_vote, "I1: a second vote in term {}", hard.term);
            self.hard = hard.clone();
        }
    }

    fn load(&self, configurations: &BTreeMap<LogId, Arc<Membership>>) -> LogState {
        let configuration = |id: &LogId| Some((id.index, Membership::clone(configurations.get(id)?)));
        LogState {
            storage: self.storage,
            hard_state: self.hard.clone(),
            purged: self.purged.clone(),
            entries: self.entries.values().map(|id| (*id, 100)).collect(),
            memberships: self.entries.values().filter_map(configuration).collect(),
            ..LogState::default()
        }
    }
}

struct Node {
    disk: Disk,
    /// `None` while it is down.
    raft: Option<Raft>,
    writing: Option<(Persist, Vec<LogId>)>,
    applied: LogIndex,
    /// Reads by token: what had been acknowledged when they began, and whether the lease was enough.
    reads: BTreeMap<u64, (LogIndex, bool)>,
    /// Who sent the snapshot being installed.
    installing_from: Option<NodeId>,
    /// Counts restarts, so that what was scheduled for an earlier life is dropped.
    life: u64,
    /// For which deadline it will be woken.
    wake: Option<Time>,
    /// Percent of real time that its clock shows.
    clock: u32,
}

/// Something scheduled.
#[derive(Debug)]
enum Due {
    Deliver(NodeId, NodeId, Packet),
    Written(NodeId, u64),
    Installed(NodeId, u64),
    Wake(NodeId, u64),
    Restart(NodeId),
    Disturb,
}

#[derive(Clone, Debug)]
enum Packet {
    Reply(Reply),
    Append(Append, Vec<EntryInfo>),
    Snapshot(Term, SnapshotMeta),
    SnapshotAck(Option<LogIndex>),
}

struct Simulation {
    /// Nodes, those who are no members included.
    size: u64,
    /// What is said by the entries that say who takes part.
    configurations: BTreeMap<LogId, Arc<Membership>>,
    /// Whose disk was emptied; one in a run, as a quorum must remain.
    emptied: Option<NodeId>,
    /// What that disk was.
    lost: Option<Disk>,
    random: u64,
    now: Time,
    nodes: BTreeMap<NodeId, Node>,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    scheduled: BTreeMap<u64, Due>,
    count: u64,
    /// Some of what was asked of each node and what it said, to be replayed.
    recorded: Option<Recorder>,
    faults: bool,
    /// No clients either.
    quiet: bool,
    delivered: u64,
    loss: u64,
    cut: Vec<NodeId>,
    /// What was committed, by index.
    committed: BTreeMap<u64, LogId>,
    /// Highest index that a client was told of.
    acknowledged: LogIndex,
    leaders: BTreeMap<Term, NodeId>,
    tokens: u64,
    reached: BTreeMap<&'static str, u64>,
}

/// What every log begins with.
const BOOTSTRAP: LogId = LogId { term: Term(0), index: LogIndex(1) };

/// Percent by which one clock may run faster than another; the clocks here keep to it.
const DRIFT_PERCENT: u32 = 10;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let voters = 3 + seed % 3;
        let size = voters + 2;
        let mut simulation = Self {
            size,
            configurations: BTreeMap::from([(BOOTSTRAP, Arc::new(Membership::of_voters(0..voters)))]),
            emptied: None,
            lost: None,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xABCD,
            now: Time::ZERO,
            nodes: BTreeMap::new(),
            queue: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            count: 0,
            recorded: None,
            faults: true,
            quiet: false,
            delivered: 0,
            loss: 0,
            cut: Vec::new(),
            committed: BTreeMap::new(),
            acknowledged: LogIndex::ZERO,
            leaders: BTreeMap::new(),
            tokens: 0,
            reached: BTreeMap::new(),
        };
        // Swarm: each seed has some kinds of fault and not others.
        simulation.loss = [0, 5, 25][simulation.pick(3) as usize];
        for id in (0..size).map(NodeId) {
            let mut disk = Disk { storage: StorageId(id.0 + 1), ..Disk::default() };
            if id.0 < voters {
                disk.entries.insert(1, BOOTSTRAP);
            }
            let clock = 96 + simulation.pick(10) as u32;
            let node = Node {
                disk,
                raft: None,
                writing: None,
                applied: LogIndex::ZERO,
                reads: BTreeMap::new(),
                installing_from: None,
                life: 0,
                wake: None,
                clock,
            };
            simulation.nodes.insert(id, node);
            simulation.restart(id);
        }
        simulation.schedule(ms(1), Due::Disturb);
        simulation
    }

    fn pick(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn reach(&mut self, event: &'static str) {
        *self.reached.entry(event).or_insert(0) += 1;
    }

    fn schedule(&mut self, after: Duration, due: Due) {
        self.count += 1;
        self.queue.push(Reverse((self.now + after, self.count)));
        self.scheduled.insert(self.count, due);
    }

    fn run(&mut self) {
        self.run_until(ms(20_000));
        self.faults = false;
        self.loss = 0;
        self.cut.clear();
        for id in (0..self.size).map(NodeId) {
            if self.nodes[&id].raft.is_none() {
                self.restart(id);
            }
        }
        // Nothing new comes that could carry along what is stuck.
        (self.quiet, self.delivered) = (true, 0);
        self.run_until(self.now + ms(10_000));
        self.check_converged();
        let heartbeats = 2 * 10_000 / 100 * (self.size - 1);
        assert!(self.delivered < 4 * heartbeats, "{} messages while nothing happened", self.delivered);
        self.quiet = false;
        let before = self.acknowledged;
        self.run_until(self.now + ms(10_000));
        assert!(self.acknowledged > before, "liveness: nothing was committed after all faults stopped");
        let membership = self.newest_membership();
        for id in self.committed.values() {
            assert!(self.is_on_quorum(*id, &membership), "committed {id} is lost at the end");
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// What was acknowledged before its disk was lost counts: whoever is elected without that disk's vote has it from
    /// another of the quorum.
    fn is_on_quorum(&self, id: LogId, membership: &Membership) -> bool {
        let was_on = |lost: &Disk, voter| {
            self.emptied == Some(voter) && membership.trusts(voter, lost.storage) && lost.holds(id)
        };
        let holds = |voter| {
            self.node(voter).disk.holds(id) || self.lost.as_ref().is_some_and(|lost| was_on(lost, voter))
        };
        membership.quorum_value(holds) == Some(true)
    }

    /// In force on each node, in short.
    fn memberships(&self) -> Vec<String> {
        let short = |member: &Member| format!("{:?} {:?}", member.kind, member.storage.map(|id| id.0));
        let of = |(id, node): (&NodeId, &Node)| {
            let raft = node.raft.as_ref()?;
            let membership = raft.membership();
            let members: Vec<_> = membership.members().iter().map(|(id, m)| (id.0, short(m))).collect();
            let outgoing: Vec<_> = membership.outgoing().keys().map(|id| id.0).collect();
            let (role, term, leader) = (raft.role(), raft.term(), raft.leader().map(|id| id.0));
            let (last, commit) = (raft.last_log(), raft.commit());
            Some(format!("{id}: {role} {term} of {leader:?}, {last} {commit} {members:?} out {outgoing:?}"))
        };
        self.nodes.iter().filter_map(of).collect()
    }

    /// The committed configuration with the greatest index.
    fn newest_membership(&self) -> Arc<Membership> {
        let committed = |id: &LogId| self.committed.get(&id.index.0) == Some(id);
        let newest =
            self.configurations.iter().filter(|(id, _)| committed(id)).max_by_key(|(id, _)| id.index);
        newest.map_or_else(|| self.configurations[&BOOTSTRAP].clone(), |(_, membership)| membership.clone())
    }

    /// One leader in one term, and the same log, committed and applied to its end, on every node.
    fn check_converged(&self) {
        let membership = self.newest_membership();
        let state = |node: &Node| {
            let raft = node.raft.as_ref().unwrap();
            (raft.term(), raft.leader(), raft.last_log(), raft.commit(), node.applied)
        };
        let members = membership.members().keys().map(|id| (*id, self.node(*id)));
        let trusted = members.filter(|(id, node)| membership.trusts(*id, node.disk.storage));
        let states: Vec<_> = trusted.map(|(_, node)| state(node)).collect();
        let (_, leader, last, commit, applied) = states[0];
        let done = !membership.is_joint() && leader.is_some() && last.index == commit && commit == applied;
        assert!(
            done && states.iter().all(|other| *other == states[0]),
            "liveness: emptied {:?}, {:#?}",
            self.emptied,
            self.memberships()
        );
    }

    fn run_until(&mut self, end: Time) {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > end {
                self.queue.push(Reverse((at, number)));
                self.now = end;
                return;
            }
            self.now = at;
            if let Some(due) = self.scheduled.remove(&number) {
                self.happen(due);
            }
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Deliver(from, to, packet) => self.deliver(from, to, packet),
            Due::Written(id, life) => self.written(id, life),
            Due::Installed(id, life) if self.nodes[&id].life == life => {
                let node = self.nodes.get_mut(&id).unwrap();
                let meta = node.raft.as_ref().and_then(|raft| raft.hard_state().installing.clone()).unwrap();
                (node.applied, node.disk.machine) = (meta.last.index, meta.last.index);
                self.reach("snapshot installed");
                self.step(id, Event::SnapshotInstalled);
            }
            Due::Wake(id, life) if self.nodes[&id].life == life => self.step(id, Event::Tick),
            Due::Restart(id) if self.nodes[&id].raft.is_none() => self.restart(id),
            Due::Disturb => self.disturb(),
            _ => {}
        }
    }

    /// Clients and faults.
    fn disturb(&mut self) {
        let id = NodeId(self.pick(self.size));
        match self.pick(100) {
            _ if self.quiet => {}
            0..60 => {
                self.tokens += 1;
                self.step(id, Event::Propose { token: self.tokens, size_bytes: 100 });
            }
            60..75 => {
                self.tokens += 1;
                let acknowledged = self.acknowledged;
                let lease = self.pick(2) == 0;
                self.nodes.get_mut(&id).unwrap().reads.insert(self.tokens, (acknowledged, lease));
                self.step(id, Event::Read { token: self.tokens, lease });
            }
            75..82 => {
                // The machine flushes, and the log up to somewhere there goes.
                let node = self.nodes.get_mut(&id).unwrap();
                node.disk.machine = node.applied;
                let through = LogIndex(node.applied.0 - node.applied.0.min(self.random % 4));
                self.step(id, Event::Compact(through));
            }
            82..85 if self.faults => self.crash(id),
            85..88 if self.faults => {
                self.cut = vec![id];
                self.reach("partition");
            }
            88..93 => self.cut.clear(),
            93..96 => {
                self.tokens += 1;
                let changes = self.some_changes();
                self.step(id, Event::ChangeMembership { token: self.tokens, changes });
            }
            96..98 => {
                self.tokens += 1;
                let to = Some(NodeId(self.pick(self.size))).filter(|_| self.tokens.is_multiple_of(2));
                self.step(id, Event::Transfer { token: self.tokens, to });
            }
            98 if self.faults => self.empty_disk(id),
            _ => {}
        }
        let pause = self.pick(40);
        self.schedule(ms(pause), Due::Disturb);
    }

    /// Adds, alters and removes a few members at once; at least two nodes that can lead stay.
    fn some_changes(&mut self) -> Vec<MemberChange> {
        let mut changes = Vec::new();
        for _ in 0..=self.pick(3) {
            let id = NodeId(self.pick(self.size));
            let kinds = [MemberKind::Voter, MemberKind::Joining, MemberKind::Learner, MemberKind::Witness];
            let mut member = Member::new(kinds[self.pick(4) as usize]);
            member.priority = self.pick(2) as u32;
            let emptied = self.emptied == Some(id);
            changes.push(match self.pick(3) {
                0 => MemberChange::Remove(id),
                // What was emptied comes back only by being removed and added; see `empty_disk`.
                _ if emptied => continue,
                _ => MemberChange::Set(id, member),
            });
        }
        let Ok(target) = self.newest_membership().left().changed(&changes) else { return changes };
        let leaders =
            target.members().keys().filter(|id| target.can_lead(**id) && self.emptied != Some(**id));
        if leaders.count() < 2 { Vec::new() } else { changes }
    }

    /// A node loses its disk. Once in a run, of a node that nobody who may lead would take for what it was, and only if
    /// without it there is a quorum still.
    fn empty_disk(&mut self, id: NodeId) {
        let (storage, membership) = (StorageId(1000 + id.0), self.newest_membership());
        let known = self.nodes.values().filter_map(|node| node.raft.as_ref());
        let known = known.filter(|raft| raft.membership().can_lead(raft.id()));
        let mut untrusted =
            known.map(|raft| raft.membership().is_voter(id) && !raft.membership().trusts(id, storage));
        let all_up = self.nodes.values().all(|node| node.raft.is_some());
        let quorum = membership.quorum_value(|voter| voter != id) == Some(true);
        // A crash could bring back a log without what was not yet written.
        let settled = self.nodes.values().all(|node| node.writing.is_none());
        // Nor may a change be under way, which could need it.
        let rafts = || self.nodes.values().filter_map(|node| node.raft.as_ref());
        let leads = rafts().any(|raft| raft.role() == Role::Leader && raft.commit() == raft.last_log().index);
        let members = rafts().filter(|raft| membership.get(raft.id()).is_some());
        let unchanging = leads && members.into_iter().all(|raft| *raft.membership() == membership);
        // Where a witness is part of the quorum, one who can lead must have all that it has.
        let longest = rafts().map(Raft::last_log).max();
        let heir = rafts().any(|raft| {
            raft.id() != id && membership.can_lead(raft.id()) && Some(raft.last_log()) == longest
        });
        let calm = all_up && settled && unchanging && heir;
        if self.emptied.is_some() || !calm || !quorum || !untrusted.all(|untrusted| untrusted) {
            return;
        }
        self.crash(id);
        let node = self.nodes.get_mut(&id).unwrap();
        self.lost = Some(std::mem::replace(&mut node.disk, Disk { storage, ..Disk::default() }));
        node.disk.entries.insert(1, BOOTSTRAP);
        self.emptied = Some(id);
        self.reach("disk emptied");
    }

    fn crash(&mut self, id: NodeId) {
        let whole = self.pick(2) == 0;
        let restored = self.pick(2) == 0;
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(_) = node.raft.take() else { return };
        // A write in flight is on disk as a whole or not at all.
        if let Some((persist, ids)) = node.writing.take().filter(|_| whole) {
            node.disk.write(&persist, &ids);
        }
        // A restore in flight was finished or not, whichever.
        if let Some(meta) = node.disk.hard.installing.clone().filter(|_| restored) {
            node.disk.machine = node.disk.machine.max(meta.last.index);
        }
        node.life += 1;
        node.wake = None;
        node.reads.clear();
        self.reach("crash");
        let down = self.pick(1500);
        self.schedule(ms(down), Due::Restart(id));
    }

    fn restart(&mut self, id: NodeId) {
        let seed = self.pick(u64::MAX);
        let now = self.local_time(id);
        let node = self.nodes.get_mut(&id).unwrap();
        let interrupted = Raft::interrupted_install(&node.disk.hard, node.disk.machine);
        if let Some(todo) = &interrupted {
            if let InterruptedInstall::Finish(meta) = todo {
                node.disk.entries.clear();
                node.disk.purged = meta.clone();
            }
            node.disk.hard.installing = None;
        }
        // What the machine had not flushed is applied again.
        node.applied = node.disk.machine;
        let mut config = Config::new(id);
        (config.seed, config.append_entries_max, config.inflight_messages_max) = (seed, 5, 4);
        (config.lease_drift_percent, config.promote_lag_entries) = (DRIFT_PERCENT, 3);
        let restored = Restored { log: node.disk.load(&self.configurations), applied: node.applied };
        node.raft = Some(Raft::new(config, restored, now).unwrap());
        if let Some(recorded) = &mut self.recorded {
            recorded.nodes.remove(&id);
        }
        if interrupted.is_some() {
            self.reach("install interrupted");
        }
        self.step(id, Event::Tick);
    }

    fn written(&mut self, id: NodeId, life: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.life != life {
            return;
        }
        let Some((persist, ids)) = node.writing.take() else { return };
        node.disk.write(&persist, &ids);
        self.step(id, Event::Persisted);
    }

    /// What the node's clock shows.
    fn local_time(&self, id: NodeId) -> Time {
        self.now * self.node(id).clock / 100
    }

    fn step(&mut self, id: NodeId, event: Event) {
        let (now, clock) = (self.local_time(id), self.node(id).clock);
        let Some(raft) = self.nodes.get_mut(&id).unwrap().raft.as_mut() else { return };
        let (role, commit, membership) = (raft.role(), raft.commit(), raft.membership().clone());
        let calls = [Call::Step(now, event), Call::FinishTurn(now)];
        let mut outputs = Vec::new();
        for call in calls {
            if let Some(recorder) = &mut self.recorded {
                recorder.begin(id, raft);
            }
            let returned = raft.call(call.clone());
            if let Some(recorder) = &mut self.recorded {
                recorder.note(id, raft, call, &returned);
            }
            let Returned::Outputs(more) = returned else { unreachable!("a step returns outputs") };
            outputs.extend(more);
        }
        let (new_role, new_commit, term) = (raft.role(), raft.commit(), raft.term());
        assert!(new_commit >= commit, "I7: the commit index went back");
        if new_role == Role::Leader && role != Role::Leader {
            self.elected(id, term);
        }
        if role == Role::Leader && new_role != Role::Leader {
            self.reach("step-down");
            let can_lead = membership.can_lead(id);
            match (can_lead, membership.is_joint()) {
                (true, true) => self.reach("leader change in a joint configuration"),
                (false, _) => self.reach("leader removed"),
                _ => {}
            }
        }
        self.check_commit(id, commit, new_commit, &membership);
        for output in outputs {
            self.carry_out(id, output);
        }
        self.persist(id);
        let node = &self.nodes[&id];
        if let Some(at) = node.raft.as_ref().and_then(Raft::next_deadline).filter(|at| node.wake != Some(*at))
        {
            let (after, life) = (at.saturating_sub(now) * 100 / clock + ms(1), node.life);
            self.nodes.get_mut(&id).unwrap().wake = Some(at);
            self.schedule(after, Due::Wake(id, life));
        }
    }

    /// Election Safety and Leader Completeness.
    fn elected(&mut self, id: NodeId, term: Term) {
        self.reach("leader");
        let other = self.leaders.insert(term, id);
        assert!(other.is_none_or(|other| other == id), "two leaders in term {term}: {id} and {other:?}");
        let raft = self.nodes[&id].raft.as_ref().unwrap();
        for committed in self.committed.values().filter(|c| c.index > raft.purged().index) {
            let held = raft.id_at(committed.index);
            assert_eq!(held, Some(*committed), "the leader of term {term} lacks a committed entry");
        }
    }

    /// State Machine Safety; and what is committed is durable on a quorum (I2, I4).
    fn check_commit(&mut self, id: NodeId, from: LogIndex, to: LogIndex, membership: &Membership) {
        for index in from.0 + 1..=to.0 {
            let Some(entry) = self.nodes[&id].raft.as_ref().and_then(|raft| raft.id_at(LogIndex(index)))
            else {
                continue;
            };
            match self.committed.get(&index) {
                Some(known) => assert_eq!(*known, entry, "two entries committed at {index}"),
                None => {
                    // A step may commit by the configuration that it found, and by the one that it appended.
                    let now = self.node(id).raft.as_ref().unwrap().membership().clone();
                    let durable = [membership, &now].iter().any(|by| self.is_on_quorum(entry, by));
                    assert!(durable, "{entry} is committed and on no quorum of {:?}", self.memberships());
                    self.committed.insert(index, entry);
                }
            }
        }
    }

    fn carry_out(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Send(to, reply) => self.send(id, to, Packet::Reply(reply)),
            Output::SendAppend(to, append) => {
                let raft = self.nodes[&id].raft.as_ref().unwrap();
                let entry = |index| {
                    let id = raft.id_at(LogIndex(index)).expect("what is sent is in the log");
                    let membership = self.configurations.get(&id).cloned();
                    EntryInfo { term: id.term, size_bytes: 100, membership }
                };
                let entries = (append.prev.index.0 + 1..=append.last.0).map(entry).collect();
                self.send(id, to, Packet::Append(append, entries));
            }
            Output::SendSnapshot(to) => {
                let node = &self.nodes[&id];
                let raft = node.raft.as_ref().unwrap();
                let last = raft.id_at(node.applied).expect("what is applied is in the log or purged last");
                let meta = SnapshotMeta { last, membership: (*raft.membership_at(last.index)).clone() };
                let packet = Packet::Snapshot(raft.term(), meta);
                self.send(id, to, packet);
                // If nothing is heard of it.
                self.schedule(ms(3000), Due::Deliver(to, id, Packet::SnapshotAck(None)));
            }
            Output::Apply(through) => {
                let node = self.nodes.get_mut(&id).unwrap();
                assert!(through > node.applied || through <= node.disk.machine, "I8: applied went back");
                let raft = node.raft.as_ref().unwrap();
                for index in node.applied.0 + 1..=through.0 {
                    let entry = raft.id_at(LogIndex(index)).expect("what is applied is in the log");
                    assert_eq!(self.committed.get(&index), Some(&entry), "applied what is not committed");
                    assert!(node.disk.holds(entry), "I8: applied what is not on this disk");
                }
                node.applied = node.applied.max(through);
                if raft.role() == Role::Leader {
                    self.acknowledged = self.acknowledged.max(through);
                }
            }
            Output::ReadReady(token, index) => {
                let role = self.node(id).raft.as_ref().unwrap().role();
                let (began, lease) = self.nodes.get_mut(&id).unwrap().reads.remove(&token).unwrap();
                match role {
                    Role::Leader if lease => self.reach("lease read"),
                    Role::Leader => {}
                    _ => self.reach("read on a follower"),
                }
                assert!(
                    index >= began,
                    "I9: a read at {index} by {id} ({role}, lease {lease}) does not see what was acknowledged at {began}"
                );
                self.reach("read");
            }
            Output::ReadRefused(token) => {
                self.nodes.get_mut(&id).unwrap().reads.remove(&token);
            }
            Output::Install(_) => {
                let (after, life) = (self.pick(600), self.nodes[&id].life);
                self.schedule(ms(after), Due::Installed(id, life));
            }
            Output::SnapshotSettled(SnapshotVerdict::Held) => {
                let node = self.nodes.get_mut(&id).unwrap();
                let last = node.applied;
                if let Some(from) = node.installing_from.take() {
                    self.send(id, from, Packet::SnapshotAck(Some(last)));
                }
            }
            Output::Replaced(after) => {
                if self.nodes[&id].disk.entries.keys().next_back().is_some_and(|last| *last > after.0) {
                    self.reach("conflict");
                }
            }
            Output::AppendedMembership(at, membership) => {
                let promoted = |(id, member): (&NodeId, &Member)| {
                    member.kind == MemberKind::Voter
                        && membership.outgoing().get(id).is_none()
                        && membership.is_joint()
                };
                if membership.is_joint() {
                    self.reach("joint");
                }
                if membership.members().iter().any(promoted) {
                    self.reach("promoted");
                }
                self.configurations.insert(at, membership);
            }
            Output::Changed(..) => self.reach("change done"),
            Output::TransferEnded(_, Ok(())) => self.reach("transfer"),
            Output::SnapshotSettled(SnapshotVerdict::Refused)
            | Output::ChangeRefused(..)
            | Output::TransferEnded(..)
            | Output::AppendedBlank(_)
            | Output::Accepted(..)
            | Output::Refused(_) => {}
        }
    }

    fn persist(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(raft) = node.raft.as_mut() else { return };
        let persist = raft.take_persist();
        if let Some(recorder) = &mut self.recorded {
            recorder.note(id, raft, Call::TakePersist, &Returned::Persist(persist.clone()));
        }
        let Some(persist) = persist else { return };
        assert!(node.writing.is_none(), "one write at a time");
        let (after, last) = persist.append;
        let ids =
            (after.0 + 1..=last.0).map(|i| raft.id_at(LogIndex(i)).expect("what is written is in the log"));
        node.writing = Some((persist.clone(), ids.collect()));
        let (delay, life) = (self.pick(20), self.nodes[&id].life);
        self.schedule(ms(delay), Due::Written(id, life));
    }

    fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let lost = self.pick(100) < self.loss || self.cut.contains(&from) != self.cut.contains(&to);
        let copies = if lost { 0 } else { 1 + u64::from(self.loss > 0 && self.pick(10) == 0) };
        for _ in 0..copies {
            let delay = if self.loss > 0 { self.pick(60) } else { 1 + self.pick(5) };
            self.schedule(ms(delay), Due::Deliver(from, to, packet.clone()));
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        self.delivered += 1;
        let event = match packet {
            Packet::Reply(Reply::VoteRequest(request)) => Event::VoteRequest(from, request),
            Packet::Reply(Reply::VoteResponse(response)) => Event::VoteResponse(from, response),
            Packet::Reply(Reply::AppendResponse(response)) => Event::AppendResponse(from, response),
            Packet::Reply(Reply::TimeoutNow(request)) => Event::TimeoutNow(from, request),
            Packet::Reply(Reply::ReadIndexRequest(request)) => Event::ReadIndexRequest(from, request),
            Packet::Reply(Reply::ReadIndexResponse(response)) => Event::ReadIndexResponse(from, response),
            Packet::Append(append, entries) => Event::Append { from, append, entries },
            Packet::SnapshotAck(last) => Event::SnapshotSent(from, last),
            Packet::Snapshot(term, meta) => {
                let node = self.nodes.get_mut(&to).unwrap();
                if node.installing_from.is_some()
                    && node.raft.as_ref().is_some_and(|r| r.hard_state().installing.is_some())
                {
                    return; // One at a time, as the driver has it.
                }
                node.installing_from = Some(from);
                Event::SnapshotArrived { from, term, meta }
            }
        };
        self.step(to, event);
    }
}
