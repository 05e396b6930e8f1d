//! The cluster, its clock and its events, which are processed one at a time.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use bytes::Bytes;
use consensus_core::{
    ClusterId, Entry, LeadershipId, LogId, LogIndex, Membership, NodeId, Payload, SnapshotMeta, StorageError,
    StorageId, Term,
};
use consensus_raft_protocol::{
    Append, Call, Config, ControlMessage, EntryInfo, Event, Output, Raft, Returned, Time,
};
use consensus_testkit::linearizability::Register;

use crate::{
    checks::Checks,
    clients::{Answer, Client},
    disk::SimDisk,
    host::GuestHosting,
    node::{Arrival, ClientRequest, Node, Started},
    operator::{Hold, Operator},
    other_cluster::CrossMessage,
    plan::Plan,
    random::{Random, mix},
    recorder::Recorder,
    stall::{STALL_STEP_MS, Stalling},
    trace::{Trace, What, role_name},
};

/// A cluster in simulated time. Times are in microseconds since its start.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    /// Random numbers of the network and the disks; clients and faults have their own.
    pub(crate) random: Random,
    pub(crate) nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    happened: u64,
    /// Blocked links, as (sender, receiver).
    pub(crate) blocked: BTreeSet<(u64, u64)>,
    pub(crate) first: Membership,
    pub(crate) faults_enabled: bool,
    /// Whether there are neither clients nor faults.
    pub(crate) quiet: bool,
    /// Numbers of faults that are left out, while a failure is shrunk.
    pub(crate) skip: BTreeSet<u64>,
    pub(crate) last_fault: u64,
    /// The command that is being proposed, and its request.
    proposal: Option<(Bytes, ClientRequest)>,
    /// Entries of the message that is being processed.
    pub(crate) incoming: Vec<Entry>,
    pub(crate) clients: Vec<Client>,
    pub(crate) attempts: u64,
    pub(crate) tokens: u64,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    pub(crate) delivered: u64,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) guest: Option<GuestHosting>,
    /// A node that has lost acknowledged entries; one at a time, because a quorum must remain.
    pub(crate) impaired: Option<(NodeId, LogId)>,
    /// Node whose disk was replaced; once in a run.
    pub(crate) wiped: Option<NodeId>,
    pub(crate) operator: Operator,
    /// Another cluster that may exchange messages with this one.
    pub(crate) other: Option<Box<World>>,
    /// Until when messages also go to the other cluster.
    pub(crate) connected_until: u64,
    /// Messages in transit to the other cluster.
    pub(crate) cross_messages: Vec<CrossMessage>,
    /// Storages of members that a leader added after their disk had been emptied, by leader, term and member.
    pub(crate) added: BTreeMap<(NodeId, Term, NodeId), StorageId>,
}

/// A scheduled event.
#[derive(Debug)]
pub(crate) enum Due {
    Deliver {
        from: NodeId,
        to: NodeId,
        packet: Packet,
        sent: u64,
        /// Incarnations of the two nodes.
        incarnations: (u64, u64),
        /// Identity of the sender's cluster at the time of sending.
        cluster: ClusterId,
    },
    SendFailed(NodeId, NodeId),
    /// The first node learns that its connection to the second one broke.
    Disconnected(NodeId, NodeId),
    Written(NodeId, u64),
    /// The write of entries that had no room is retried.
    RetryEntries(NodeId, u64),
    Applied(NodeId, u64),
    Installed(NodeId, u64),
    Wake(NodeId, u64),
    EndTurn(NodeId, u64),
    Restart(NodeId),
    /// A client starts or repeats a request.
    Ask(u64),
    /// A request is delivered to a node that was paused when it was sent.
    Request(NodeId, ClientRequest, Register),
    Compact(NodeId, u64),
    GiveUp {
        client: u64,
        attempt: u64,
    },
    Fault,
    /// A snapshot transfer times out.
    TransferOver {
        from: NodeId,
        to: NodeId,
        transfer: u64,
    },
    Room(NodeId),
    Speed(NodeId),
    /// An operator continues the procedure of this number.
    Operator(u64),
}

/// A message on the network.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    ControlMessage(ControlMessage),
    Append(Append, Vec<Entry>),
    /// Acknowledgement, with the number of the transfer.
    Snapshot(Term, SnapshotMeta, Bytes, u64),
    SnapshotAck(Option<LogIndex>, u64),
}

struct Scheduled {
    at: u64,
    number: u64,
    due: Due,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub(crate) const MS: u64 = 1000;
/// Ten times the events of the busiest run.
const EVENTS_MAX: u64 = 2_000_000;

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut random = Random::new(seed, 2);
        let size = plan.voters + plan.spares;
        let mut members = Membership::of_voters(0..plan.voters).members().clone();
        if plan.witness {
            members.entry(NodeId(0)).and_modify(|member| member.kind = consensus_core::MemberKind::Witness);
        }
        if plan.priorities {
            members.values_mut().for_each(|member| member.priority = random.below(2) as u32);
        }
        let mut world = Self {
            seed,
            now: 0,
            nodes: (0..size).map(|id| Node::new(NodeId(id), SimDisk::new(StorageId(id + 1)))).collect(),
            queue: BinaryHeap::new(),
            scheduled: 0,
            happened: 0,
            blocked: BTreeSet::new(),
            first: Membership::new(members),
            faults_enabled: true,
            quiet: false,
            skip: BTreeSet::new(),
            last_fault: 0,
            proposal: None,
            incoming: Vec::new(),
            clients: (0..plan.clients).map(|id| Client::new(seed, id, size)).collect(),
            attempts: 0,
            tokens: 0,
            checks: Checks::default(),
            trace: Trace::default(),
            delivered: 0,
            recorder: None,
            guest: None,
            impaired: None,
            wiped: None,
            operator: Operator::default(),
            other: None,
            connected_until: 0,
            cross_messages: Vec::new(),
            added: BTreeMap::new(),
            random,
            plan,
        };
        for id in 0..size {
            let drift = world.plan.drift * 10;
            let node = &mut world.nodes[id as usize];
            // Rates of up to half the drift below and above 1 keep any two clocks within the drift.
            node.rate = 1000 - drift / 2 + world.random.below(drift.max(1));
            node.skew_us = world.random.below(5_000_000);
            node.file = (id < world.plan.voters).then(|| world.first.clone());
        }
        world
    }

    /// Schedules the first events.
    pub(crate) fn begin(&mut self) {
        if let Some(other) = &mut self.other {
            other.begin();
        }
        for id in 0..self.nodes.len() as u64 {
            self.restart(NodeId(id));
        }
        for client in 0..self.clients.len() as u64 {
            self.schedule(client * MS, Due::Ask(client));
        }
        self.schedule(500 * MS, Due::Fault);
    }

    pub(crate) fn schedule(&mut self, after: u64, due: Due) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + after, number: self.scheduled, due }));
    }

    pub(crate) fn run_for(&mut self, duration: u64) {
        let end = self.now + duration;
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= end) {
            let Some(Reverse(Scheduled { at, due, .. })) = self.queue.pop() else { break };
            self.now = at;
            self.happened += 1;
            assert!(self.happened < EVENTS_MAX, "livelock: {EVENTS_MAX} events in {} ms", at / MS);
            self.process(due);
            self.advance_other_cluster();
        }
        self.now = end;
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    fn is_alive(&self, id: NodeId, incarnation: u64) -> bool {
        let node = self.node(id);
        node.incarnation == incarnation && node.up.is_some()
    }

    fn process(&mut self, due: Due) {
        // A paused process handles no events until it continues.
        let node = match &due {
            Due::Deliver { to: id, .. }
            | Due::SendFailed(id, _)
            | Due::Disconnected(id, _)
            | Due::Written(id, _)
            | Due::RetryEntries(id, _)
            | Due::Applied(id, _)
            | Due::Installed(id, _)
            | Due::Wake(id, _)
            | Due::EndTurn(id, _) => Some(*id),
            _ => None,
        };
        if let Some(until) = node.map(|id| self.node(id).paused_until).filter(|until| *until > self.now) {
            // Waiting events arrive in any order; a driver processes them before it reads its clock.
            let after = self.random.below(2 * MS);
            return self.schedule(until - self.now + after, due);
        }
        match due {
            // A connection ends when both of its nodes have restarted.
            Due::Deliver { from, to, incarnations, .. } if self.is_of_past(from, to, incarnations) => {}
            Due::Deliver { from, to, cluster, .. } if self.is_refused(from, to, cluster) => {}
            Due::Deliver { from, to, packet, sent, .. } => self.deliver(from, to, packet, sent),
            Due::SendFailed(id, to) => self.step(id, Event::SendFailed(to)),
            Due::Disconnected(id, node) => self.disconnected(id, node),
            Due::Written(id, incarnation) if self.is_alive(id, incarnation) => self.written(id),
            Due::RetryEntries(id, incarnation) if self.is_alive(id, incarnation) => self.try_entries(id),
            Due::Applied(id, incarnation)
                if self.is_alive(id, incarnation) && self.node(id).apply_stalls_until > self.now =>
            {
                self.checks.reach("an apply hung");
                self.note_stall(id, Stalling::Apply);
                self.schedule(STALL_STEP_MS * MS, Due::Applied(id, incarnation));
            }
            Due::Applied(id, incarnation) if self.is_alive(id, incarnation) => self.finish_apply(id),
            Due::Installed(id, incarnation) if self.is_alive(id, incarnation) => self.installed(id),
            Due::Wake(id, incarnation) if self.is_alive(id, incarnation) => {
                if let Some(up) = &mut self.node_mut(id).up {
                    up.wake = None;
                }
                self.step(id, Event::Tick);
            }
            Due::EndTurn(id, incarnation) if self.is_alive(id, incarnation) => self.end_turn(id),
            Due::Restart(id) if self.node(id).up.is_none() => self.restart(id),
            Due::Ask(client) => self.ask(client),
            Due::Request(id, asked, call) => self.request(id, asked, call),
            Due::Compact(id, incarnation) if self.is_alive(id, incarnation) => {
                self.compact(id, self.plan.log_entries_kept);
            }
            Due::GiveUp { client, attempt } => self.give_up(client, attempt),
            Due::Fault => self.fault(),
            Due::TransferOver { from, to, transfer } => self.transfer_over(from, to, transfer, None),
            Due::Room(id) => self.node(id).disk.fill(false),
            Due::Speed(id) => self.node_mut(id).slow_disk = false,
            Due::Operator(number) => self.proceed(number),
            _ => {}
        }
    }

    /// Whether the transport of a node refuses a message of another cluster, which it does if both nodes know their cluster.
    fn is_refused(&mut self, from: NodeId, to: NodeId, cluster: ClusterId) -> bool {
        let own = self.cluster_of(to);
        if own.is_compatible_with(cluster) {
            return false;
        }
        let now = self.now;
        self.checks.reach("message of another cluster refused");
        self.trace.note(now, Some(to), || What::Up {
            text: format!("refuses node {from}, which belongs to cluster {cluster}, not {own}"),
        });
        true
    }

    fn is_of_past(&self, from: NodeId, to: NodeId, incarnations: (u64, u64)) -> bool {
        self.plan.has_mistakes()
            && self.node(from).incarnation != incarnations.0
            && self.node(to).incarnation != incarnations.1
    }

    /// Steps the protocol with an event, and carries out its outputs.
    pub(crate) fn step(&mut self, id: NodeId, event: Event) {
        let local = self.node(id).local(self.now);
        self.call(id, Call::Step(local, event));
    }

    fn call(&mut self, id: NodeId, call: Call) {
        let ends_turn = !self.plan.turns || self.random.percent(60);
        let now = self.now;
        let (node, recorder) = (&mut self.nodes[id.0 as usize], &mut self.recorder);
        let (local, incarnation) = (node.local(now), node.incarnation);
        let Some(up) = &mut node.up else { return };
        let before = Before::of(&up.raft);
        let ticked = matches!(call, Call::Step(_, Event::Tick));
        let (mut outputs, proposed) = match up.call(recorder, call) {
            Returned::Proposed(first) => (Vec::new(), Some(first)),
            returned => (outputs_of(returned), None),
        };
        up.turn_open = !ends_turn;
        if ends_turn {
            outputs.extend(outputs_of(up.call(recorder, Call::FinishTurn(local))));
        }
        if !ends_turn {
            let wait = self.random.below(MS);
            self.schedule(wait, Due::EndTurn(id, incarnation));
        }
        match proposed {
            Some(Some(at)) => self.accepted(id, at),
            Some(None) => self.refused(),
            None => {}
        }
        self.after_step(id, &before, outputs, ticked);
    }

    fn end_turn(&mut self, id: NodeId) {
        let now = self.now;
        let (node, recorder) = (&mut self.nodes[id.0 as usize], &mut self.recorder);
        let local = node.local(now);
        let Some(up) = node.up.as_mut().filter(|up| up.turn_open) else { return };
        let before = Before::of(&up.raft);
        up.turn_open = false;
        let outputs = outputs_of(up.call(recorder, Call::FinishTurn(local)));
        self.after_step(id, &before, outputs, false);
    }

    fn after_step(&mut self, id: NodeId, before: &Before, outputs: Vec<Output>, ticked: bool) {
        self.note_state(id, before);
        self.check_step(id, before, ticked);
        let leads = |role| role == consensus_core::Role::Leader;
        let may_send = leads(before.role) || self.node(id).raft().is_some_and(|raft| leads(raft.role()));
        for output in outputs {
            let sends = matches!(output, Output::SendAppend(..));
            assert!(may_send || !sends, "node {id} sends entries without being elected");
            self.carry_out(id, output);
        }
        self.orphan_waiters(id, before);
        self.persist(id);
        self.schedule_wake(id);
    }

    fn note_state(&mut self, id: NodeId, before: &Before) {
        let now = self.now;
        let Some(raft) = self.node(id).raft() else { return };
        let (role, term, commit, last) = (raft.role(), raft.term(), raft.commit(), raft.last_log());
        let changed = (role, term, commit, last) != (before.role, before.term, before.commit, before.last);
        self.trace.hash(&[now, id.0, role as u64, term.0, commit.0, last.term.0, last.index.0]);
        if changed {
            let what = || What::State {
                role: role_name(role),
                term: term.0,
                commit: commit.0,
                last: last.to_string(),
            };
            self.trace.note(now, Some(id), what);
        }
    }

    fn schedule_wake(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.node_mut(id);
        let Some(deadline) = node.raft().and_then(Raft::next_deadline) else { return };
        let (wait, incarnation) = (node.until(now, deadline), node.incarnation);
        let Some(up) = &mut node.up else { return };
        if up.wake.is_none_or(|wake| deadline < wake) {
            up.wake = Some(deadline);
            self.schedule(wait, Due::Wake(id, incarnation));
        }
    }

    /// Proposes a client's command on a node.
    pub(crate) fn propose(&mut self, id: NodeId, command: Bytes, asked: ClientRequest) {
        let size_bytes = Entry::command(LogId::ZERO, command.clone()).size_bytes();
        self.proposal = Some((command, asked));
        let local = self.node(id).local(self.now);
        self.call(id, Call::Propose(local, vec![size_bytes]));
    }

    fn accepted(&mut self, id: NodeId, at: LogId) {
        let Some((command, asked)) = self.proposal.take() else { return };
        self.checks.entry(at, self.nodes[id.0 as usize].raft(), &Payload::Command(command.clone()));
        let Some(up) = &mut self.node_mut(id).up else { return };
        up.push(Entry::command(at, command));
        up.waiters.insert(at.index.0, (at, asked));
    }

    fn refused(&mut self) {
        if let Some((_, asked)) = self.proposal.take() {
            self.answer(asked, Answer::NotApplied);
        }
    }

    /// Starts a write unless one is in flight; the next one collects meanwhile.
    pub(crate) fn persist(&mut self, id: NodeId) {
        let slow = self.node(id).slow_disk;
        let delay = if slow { self.random.below(800 * MS) } else { 100 + self.random.below(3 * MS) };
        let (node, recorder) = (&mut self.nodes[id.0 as usize], &mut self.recorder);
        let incarnation = node.incarnation;
        let Some(up) = node.up.as_mut().filter(|up| !up.turn_open) else { return };
        let Returned::Persist(Some(persist)) = up.call(recorder, Call::TakePersist) else { return };
        let (after, last) = persist.append;
        let entries = up.entries(after, last);
        assert_eq!(entries.len() as u64, last.since(after), "entries to write are in the log");
        up.writing.push_back(consensus_core::LogBatch {
            hard_state: persist.hard_state,
            purge: persist.purge,
            truncate_after: persist.truncate_after,
            entries,
        });
        self.schedule(delay, Due::Written(id, incarnation));
    }

    fn written(&mut self, id: NodeId) {
        let disk = self.node(id).disk.clone();
        let incarnation = self.node(id).incarnation;
        if self.node(id).disk_stalls_until > self.now {
            self.checks.reach("a write hung");
            self.note_stall(id, Stalling::Write);
            return self.schedule(STALL_STEP_MS * MS, Due::Written(id, incarnation));
        }
        self.end_stall(id, Stalling::Write);
        let Some(up) = &mut self.node_mut(id).up else { return };
        let Some(batch) = up.writing.pop_front() else { return };
        let has_entries = !batch.entries.is_empty();
        match consensus_core::LogStorage::write(&disk, batch) {
            Ok(()) => {
                up.no_room &= !has_entries;
                if up.no_room && up.raft.lacks_room() {
                    self.checks.reach("a write preceded entries without room");
                }
                self.step(id, Event::Persisted);
            }
            Err(StorageError::NoRoom { .. }) => {
                up.no_room = true;
                self.schedule(200 * MS, Due::RetryEntries(id, incarnation));
                self.checks.reach("no room on a disk");
                self.step(id, Event::NoRoom);
                self.yield_leadership_without_room(id);
            }
            Err(_) => self.stop(id),
        }
    }

    fn try_entries(&mut self, id: NodeId) {
        self.step(id, Event::RetryEntries);
        let Some(up) = &mut self.node_mut(id).up else { return };
        // A snapshot may have replaced the entries meanwhile.
        up.no_room &= up.raft.durable() < up.raft.last_log().index;
    }

    /// Handles a failed write: the content of the disk is unknown, and the node stops (it is restarted later).
    fn stop(&mut self, id: NodeId) {
        self.checks.reach("a write failed");
        self.node(id).disk.fail(false);
        self.crash(id, true);
    }

    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        self.send_to_other_cluster(from, to, &packet);
        let blocked = self.blocked.contains(&(from.0, to.0));
        let lost = blocked || (self.faults_enabled && self.random.percent(self.plan.loss));
        if to.0 >= self.nodes.len() as u64 {
            return;
        }
        if lost {
            let now = self.now;
            self.trace.note(now, Some(from), || What::Lost { to: to.0, text: describe(&packet) });
            // Some transports report a message that cannot be sent.
            if matches!(packet, Packet::Append(..)) && self.random.percent(20) {
                self.schedule(MS, Due::SendFailed(from, to));
            }
            return;
        }
        let twice = !matches!(packet, Packet::Snapshot(..) | Packet::SnapshotAck(..));
        let (incarnations, cluster) =
            ((self.node(from).incarnation, self.node(to).incarnation), self.cluster_of(from));
        let copies =
            if twice && self.faults_enabled && self.random.percent(self.plan.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let delay_max = if self.faults_enabled { self.plan.delay_max_ms } else { 2 };
            let mut delay = 50 + self.random.below(delay_max * MS);
            if self.faults_enabled && self.random.below(1000) < self.plan.stragglers {
                delay += self.random.below(4_000 * MS);
            }
            if self.faults_enabled && matches!(packet, Packet::Snapshot(..)) {
                delay += self.random.below(600 * MS);
            }
            let (packet, sent) = (packet.clone(), self.now);
            self.schedule(delay, Due::Deliver { from, to, packet, sent, incarnations, cluster });
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, packet: Packet, sent: u64) {
        let now = self.now;
        if self.node(to).up.is_none() {
            return;
        }
        self.delivered += 1;
        let text = || What::Message { from: from.0, sent_ms: sent as f64 / 1000.0, text: describe(&packet) };
        self.trace.note(now, Some(to), text);
        let mut appends = None;
        let event = match packet {
            Packet::ControlMessage(reply) => reply.into_event(from),
            // The driver pauses before it retries.
            Packet::SnapshotAck(None, transfer) => {
                return self.schedule(500 * MS, Due::TransferOver { from: to, to: from, transfer });
            }
            Packet::SnapshotAck(last, transfer) => return self.transfer_over(to, from, transfer, last),
            Packet::Append(append, entries) => {
                appends = Some(append.term);
                let infos = entries.iter().map(info).collect();
                self.incoming = entries;
                Event::Append { from, append, entries: infos }
            }
            Packet::Snapshot(.., transfer) if self.node(to).no_room_until > now => {
                self.checks.reach("no room for a snapshot");
                return self.send(to, from, Packet::SnapshotAck(None, transfer));
            }
            Packet::Snapshot(term, meta, bytes, transfer) => {
                let Some(up) = &mut self.node_mut(to).up else { return };
                // One transfer at a time, as in the driver.
                if up.arrival.is_some() {
                    return self.send(to, from, Packet::SnapshotAck(None, transfer));
                }
                up.arrival = Some(Arrival { from, transfer, last: meta.last, bytes });
                Event::SnapshotArrived { from, term, meta }
            }
        };
        self.step(to, event);
        if let Some(term) = appends {
            let node = self.node_mut(to);
            let local = node.local(now);
            if let Some(up) =
                node.up.as_mut().filter(|up| up.raft.leader() == Some(from) && up.raft.term() == term)
            {
                up.heard = Some(local);
            }
        }
    }

    /// Reports a broken connection, which may still work; with leases the node must refuse votes nevertheless.
    pub(crate) fn disconnected(&mut self, id: NodeId, node: NodeId) {
        let has_leases = self.plan.lease_drift > 0;
        if let Some(up) =
            self.node_mut(id).up.as_mut().filter(|up| up.raft.leader() == Some(node) && !has_leases)
        {
            up.heard = None;
        }
        self.step(id, Event::Disconnected(node));
    }

    /// Crashes a node between any two effects. With `losing`, the write in flight is certainly lost.
    pub(crate) fn crash(&mut self, id: NodeId, losing: bool) {
        let (whole, restored) = (!losing && self.random.percent(50), self.random.percent(50));
        let now = self.now;
        let node = self.node_mut(id);
        let Some(mut up) = node.up.take() else { return };
        node.paused_until = 0;
        // A write in flight is on disk completely or not at all.
        if let Some(batch) = up.writing.pop_front().filter(|_| whole) {
            let _ = consensus_core::LogStorage::write(&node.disk, batch);
        }
        // A restore in flight was either completed or not.
        let installing = node.disk.hard_state().installing;
        if let (Some(meta), Some(arrival), true) = (installing, up.arrival.take(), restored)
            && arrival.last == meta.last
            && meta.last.index > up.machine_applied()
        {
            consensus_core::StateMachine::restore(&mut up.machine, &mut &arrival.bytes[..])
                .expect("a complete snapshot");
        }
        node.disk.fail(false);
        self.checks.reach("crash");
        if let Some(recorder) = &mut self.recorder {
            recorder.forget(id);
        }
        self.trace.note(now, Some(id), || What::Down);
        let others = (0..self.nodes.len() as u64).map(NodeId).filter(|other| *other != id);
        for other in others {
            // The system closes the connections; other nodes may or may not learn of it.
            let (noticed, delay) = (self.random.percent(70), self.random.below(20 * MS));
            if noticed && !self.blocked.contains(&(id.0, other.0)) {
                self.schedule(delay, Due::Disconnected(other, id));
            }
        }
        let down = 1 + self.random.below(1500 * MS);
        self.schedule(down, Due::Restart(id));
    }

    pub(crate) fn restart(&mut self, id: NodeId) {
        if self.node(id).ended.is_some() {
            return;
        }
        let now = self.now;
        let bootstrap = match self.first_configuration(id) {
            Ok(bootstrap) => bootstrap,
            Err(hold) => {
                self.checks.reach(match hold {
                    Hold::SilentPeer(_) => "node waits for its peers",
                    Hold::PeerWithLog(_) | Hold::OtherFounders(_) => "node refuses to bootstrap",
                });
                self.node_mut(id).waits = Some(hold);
                return self.schedule(300 * MS, Due::Restart(id));
            }
        };
        self.node_mut(id).waits = None;
        // A node is not started on a full disk.
        self.node(id).disk.fill(false);
        let config = self.config(id);
        // A witness has no state machine.
        let guest = self.guest.clone().filter(|_| !self.is_witness(id));
        let started = self.node_mut(id).start(config, bootstrap.as_ref(), guest.as_ref(), now);
        let text = match &started {
            Started::Up => "",
            Started::Repairing => {
                self.checks.reach("damaged log truncated");
                "with a damaged log, which was truncated"
            }
            Started::Interrupted => {
                self.checks.reach("install interrupted");
                "in the middle of an installation"
            }
            Started::Refused(why) => {
                self.trace
                    .note(now, Some(id), || What::Up { text: format!("failed: it refuses to start, {why}") });
                return self.replace_disk(id);
            }
        };
        self.trace.note(now, Some(id), || What::Up { text: text.to_owned() });
        self.step(id, Event::Tick);
    }

    /// Handles a damaged log that cannot be repaired in the configuration that the node knows, like an operator: replaces the disk
    /// by a copy from before the damage, to which nothing was written since.
    fn replace_disk(&mut self, id: NodeId) {
        self.checks.reach("damaged log refused");
        if let Some(disk) = self.checks.last_lost(id) {
            self.node_mut(id).disk = disk;
            self.impaired = None;
            self.restart(id);
        }
    }

    fn config(&mut self, id: NodeId) -> Config {
        let plan = &self.plan;
        let mut config = Config::new(id);
        config.election_timeout = Time::from_millis(plan.election_ms);
        config.heartbeat_interval = Time::from_millis(plan.election_ms / 5);
        config.append_entries_max = plan.append_entries_max;
        config.inflight_messages_max = plan.inflight_messages_max;
        config.inflight_bytes_max = plan.inflight_bytes_max;
        config.lease_drift_percent = plan.lease_drift;
        config.promote_lag_entries = 3;
        config.witness = self.first.get(id).is_some_and(|m| m.kind == consensus_core::MemberKind::Witness);
        config.new_cluster = ClusterId(mix(self.seed ^ mix(self.now + id.0)) | 1);
        config.leadership = LeadershipId(mix(config.new_cluster.0) | 1);
        config.seed = self.random.next();
        config
    }

    pub(crate) fn is_witness(&self, id: NodeId) -> bool {
        self.first.get(id).is_some_and(|member| member.kind == consensus_core::MemberKind::Witness)
    }

    /// The committed configuration with the greatest index.
    pub(crate) fn newest_membership(&self) -> Arc<Membership> {
        self.checks.newest_membership().unwrap_or_else(|| Arc::new(self.first.clone()))
    }
}

/// State of a node before a step.
pub(crate) struct Before {
    pub(crate) role: consensus_core::Role,
    pub(crate) term: Term,
    pub(crate) commit: LogIndex,
    pub(crate) last: LogId,
    pub(crate) membership: Arc<Membership>,
    pub(crate) deadline: Option<Time>,
}

impl Before {
    fn of(raft: &Raft) -> Self {
        Self {
            role: raft.role(),
            term: raft.term(),
            commit: raft.commit(),
            last: raft.last_log(),
            membership: raft.membership().clone(),
            deadline: raft.next_deadline(),
        }
    }
}

fn outputs_of(returned: Returned) -> Vec<Output> {
    match returned {
        Returned::Outputs(outputs) => outputs,
        Returned::Persist(_) | Returned::Proposed(_) => Vec::new(),
    }
}

fn info(entry: &Entry) -> EntryInfo {
    let membership = match &entry.payload {
        Payload::Membership(membership) => Some(Arc::new(membership.clone())),
        _ => None,
    };
    EntryInfo { term: entry.id.term, size_bytes: entry.size_bytes(), membership }
}

/// Describes a message briefly.
pub(crate) fn describe(packet: &Packet) -> String {
    match packet {
        Packet::Append(append, entries) => {
            let Append { term, prev, last, commit, round, .. } = append;
            let what = if entries.is_empty() { "heartbeat".to_owned() } else { format!("append ..{last}") };
            format!("{what} after {prev}, term {term}, commit {commit}, round {round}")
        }
        Packet::ControlMessage(reply) => {
            format!("{reply:?}").replace("ndex(", "(").replace("StorageId", "disk ")
        }
        Packet::Snapshot(term, meta, ..) => format!("snapshot {}, term {term}", meta.last),
        Packet::SnapshotAck(last, _) => format!("snapshot accepted: {last:?}"),
    }
}
