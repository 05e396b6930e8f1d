//! One state of the cluster, and what can happen in it.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use consensus_core::{
    HardState, LogId, LogIndex, LogState, Membership, NodeId, Role, SnapshotMeta, StorageId, Term,
};
use consensus_raft_protocol::{
    Append, Config, EntryInfo, Event, InterruptedInstall, Output, Persist, Raft, Reply, Restored,
    SnapshotVerdict, Time,
    model::{Fingerprint, hash_hard_state, hash_membership, hash_meta},
};

use super::scenario::{Budget, Clocks, Scenario};

/// A state. Nodes and messages are shared between states that have them in common.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) nodes: Vec<Arc<Node>>,
    /// In flight; a set, in order of their fingerprints.
    pub(crate) network: Vec<Arc<Message>>,
    pub(crate) budget: Budget,
    pub(crate) known: Arc<Known>,
    /// Of all nodes, in a scenario with a common time.
    pub(crate) time: Time,
    /// Nothing is cut: the first leader is yet to be elected.
    is_whole: bool,
}

/// What nobody in the cluster knows, and the checks do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// By index from 1: the entry, and the term in which it was committed.
    committed: Vec<(LogId, Term)>,
    leaders: Vec<(Term, NodeId)>,
    votes: Vec<(NodeId, Term, NodeId)>,
    /// Highest index that a client could have been told of.
    acknowledged: LogIndex,
    fingerprints: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    id: NodeId,
    raft: Raft,
    disk: Disk,
    writing: Option<(Persist, Vec<Entry>)>,
    /// What is applied, and what of it would survive a crash.
    applied: LogIndex,
    flushed: LogIndex,
    installing_from: Option<NodeId>,
    /// Reads: their token, and what had been acknowledged when they began.
    reads: Vec<(u64, LogIndex)>,
    lives: u8,
    /// Under each set of names.
    fingerprints: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    hard: HardState,
    purged: SnapshotMeta,
    entries: Vec<Entry>,
}

type Entry = (LogId, Option<Arc<Membership>>);

#[derive(Clone, Debug)]
pub(crate) struct Message {
    from: NodeId,
    to: NodeId,
    packet: Packet,
    fingerprints: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Packet {
    Reply(Reply),
    Append(Append, Vec<EntryInfo>),
    Snapshot(Term, SnapshotMeta),
    SnapshotAck(Option<LogIndex>),
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The message at this place of the network is delivered; `true`: and stays there.
    Deliver(u16, bool),
    /// The node's next deadline passes.
    Tick(u8),
    /// So much time passes at the node that it does not protect its leader any more.
    LosePatience(u8),
    /// The common time goes on.
    Advance,
    /// A command comes to a leader.
    Propose(u8),
    /// The node's write is durable.
    Written(u8),
    /// The node crashes and comes up again; what was in flight to its disk and machine is there, or not.
    Crash(u8, bool),
    /// The machine has restored the snapshot.
    Installed(u8),
    /// The machine flushes, and the log up to there goes.
    Compact(u8),
    /// A client reads.
    Read(u8),
    /// The next change of members is asked of the node.
    Change(u8),
    /// The leader is asked to hand over.
    Transfer(u8, u8),
}

/// Permutations of names that keep a scenario what it is.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) names: Vec<Vec<u8>>,
}

const BASE: Time = Duration::from_secs(1000);
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A step of the common time.
const QUANTUM: Duration = Duration::from_millis(250);
const BOOTSTRAP: LogId = LogId { term: Term(0), index: LogIndex(1) };

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut names = vec![(0..scenario.nodes as u8).collect::<Vec<u8>>()];
        for group in scenario.symmetric {
            names = names.iter().flat_map(|names| permuted(names, group)).collect();
        }
        Self { scenario, names }
    }

    /// The first state.
    pub(crate) fn begin(&self) -> Result<State, String> {
        let membership = Arc::new(Membership::of_voters(0..self.scenario.voters));
        let nodes = (0..self.scenario.nodes).map(|id| {
            let mut disk = Disk::default();
            if id < self.scenario.voters {
                disk.entries.push((BOOTSTRAP, Some(membership.clone())));
            }
            if let Some((terms, term)) = self.scenario.logs.get(id as usize) {
                disk.entries
                    .extend(terms.iter().zip(2..).map(|(term, index)| (LogId::new(*term, index), None)));
                disk.hard.term = Term(*term);
            }
            Arc::new(self.start(NodeId(id), disk, LogIndex::ZERO, 0, BASE))
        });
        let (nodes, budget) = (nodes.collect(), self.scenario.budget);
        let mut known = Known::default();
        known.print(&self.names);
        let mut state =
            State { nodes, network: Vec::new(), budget, known: Arc::new(known), time: BASE, is_whole: true };
        if let Some(leader) = self.scenario.leader {
            self.elect(&mut state, leader)?;
        }
        state.budget = budget;
        state.is_whole = false;
        Ok(state)
    }

    /// Goes on until the node leads, all is quiet, and everybody has heard of it.
    fn elect(&self, state: &mut State, leader: NodeId) -> Result<(), String> {
        let id = leader.0 as u8;
        if let Clocks::Common(_) = self.scenario.clocks {
            state.time += 4 * ELECTION_TIMEOUT;
        }
        let mut beats = 0;
        for _ in 0..400 {
            let mut writes = (0..state.nodes.len() as u8).map(Action::Written);
            let next = writes.find(|action| self.is_enabled(state, *action));
            let next = next.or((!state.network.is_empty()).then_some(Action::Deliver(0, false)));
            let action = match next {
                Some(action) => action,
                None if state.nodes[id as usize].raft.role() == Role::Leader && beats == 2 => return Ok(()),
                None => {
                    beats += u8::from(state.nodes[id as usize].raft.role() == Role::Leader);
                    state.budget.ticks = 1;
                    if let Clocks::Common(_) = self.scenario.clocks {
                        state.time += HEARTBEAT;
                    }
                    Action::Tick(id)
                }
            };
            *state = self.act(state, action)?;
        }
        Err("nobody is elected".to_owned())
    }

    fn start(&self, id: NodeId, mut disk: Disk, flushed: LogIndex, lives: u8, now: Time) -> Node {
        match Raft::interrupted_install(&disk.hard, flushed) {
            Some(InterruptedInstall::Finish(meta)) => {
                disk.entries.clear();
                disk.purged = meta;
                disk.hard.installing = None;
            }
            Some(InterruptedInstall::Forget) => disk.hard.installing = None,
            None => {}
        }
        let mut config = Config::new(id);
        (config.election_timeout, config.heartbeat_interval) = (ELECTION_TIMEOUT, HEARTBEAT);
        (config.append_entries_max, config.inflight_messages_max) = (self.scenario.append_entries_max, 2);
        if let Clocks::Common(_) = self.scenario.clocks {
            config.lease_drift_percent = 10;
        }
        config.seed = u64::from(lives);
        let memberships = disk
            .entries
            .iter()
            .filter_map(|(id, membership)| Some((id.index, (**membership.as_ref()?).clone())));
        let log = LogState {
            storage: StorageId::default(),
            hard_state: disk.hard.clone(),
            purged: disk.purged.clone(),
            entries: disk.entries.iter().map(|(id, _)| (*id, 1)).collect(),
            memberships: memberships.collect(),
            ..LogState::default()
        };
        let raft = Raft::new(config, Restored { log, applied: flushed }, now).expect("sound settings");
        let mut node = Node {
            id,
            raft,
            disk,
            writing: None,
            applied: flushed,
            flushed,
            installing_from: None,
            reads: Vec::new(),
            lives,
            fingerprints: Vec::new(),
        };
        if self.scenario.clocks == Clocks::Own {
            node.raft.normalize(BASE, u64::from(lives));
        }
        node.print(&self.names);
        node
    }

    /// The clock of a node.
    fn local(&self, state: &State, id: usize) -> Time {
        match self.scenario.clocks {
            Clocks::Own => BASE,
            Clocks::Common(rates) => BASE + (state.time - BASE) * rates[id] / 100,
        }
    }

    /// All that can happen next.
    pub(crate) fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.clear();
        for at in 0..state.network.len() as u16 {
            actions.push(Action::Deliver(at, false));
            if state.budget.repeats > 0 {
                actions.push(Action::Deliver(at, true));
            }
        }
        let nodes = state.nodes.len() as u8;
        let each = |id: u8| {
            let whole = [true, false].map(|whole| Action::Crash(id, whole));
            let single =
                [Action::Tick, Action::LosePatience, Action::Propose, Action::Written, Action::Installed];
            let more = [Action::Compact, Action::Read, Action::Change];
            let to = (0..nodes).map(move |to| Action::Transfer(id, to));
            single.into_iter().chain(more).map(move |action| action(id)).chain(whole).chain(to)
        };
        let all = (0..nodes).flat_map(each).chain([Action::Advance]);
        actions.extend(all.filter(|action| self.is_enabled(state, *action)));
    }

    fn is_enabled(&self, state: &State, action: Action) -> bool {
        let node = |id: u8| &state.nodes[id as usize];
        let leads = |id: u8| node(id).raft.role() == Role::Leader;
        let budget = &state.budget;
        match action {
            Action::Deliver(at, _) => (at as usize) < state.network.len(),
            Action::Tick(id) => {
                let raft = &node(id).raft;
                let is_due = |at| self.scenario.clocks == Clocks::Own || at <= self.local(state, id as usize);
                let term_left = leads(id) || raft.term().0 < u64::from(budget.terms);
                budget.ticks > 0 && term_left && raft.next_deadline().is_some_and(is_due)
            }
            Action::LosePatience(id) => {
                self.scenario.clocks == Clocks::Own && node(id).raft.undisturbed_until().is_some()
            }
            Action::Advance => budget.advances > 0 && self.scenario.clocks != Clocks::Own,
            Action::Propose(id) => budget.proposals > 0 && leads(id),
            Action::Written(id) => node(id).writing.is_some(),
            Action::Crash(id, whole) => {
                let differs = node(id).writing.is_some() || node(id).disk.hard.installing.is_some();
                budget.crashes > 0 && (!whole || differs)
            }
            Action::Installed(id) => {
                node(id).installing_from.is_some()
                    && node(id).disk.hard.installing.is_some()
                    && node(id).raft.hard_state().installing.is_some()
            }
            Action::Compact(id) => budget.compactions > 0 && node(id).applied > node(id).raft.purged().index,
            Action::Read(_) => budget.reads > 0,
            Action::Change(id) => budget.changes > 0 && leads(id),
            Action::Transfer(id, to) => budget.transfers > 0 && id != to && leads(id),
        }
    }

    /// What comes of it, or what was wrong.
    pub(crate) fn act(&self, before: &State, action: Action) -> Result<State, String> {
        let mut state = before.clone();
        let event = match action {
            Action::Deliver(at, stays) => {
                let message = state.network[at as usize].clone();
                if stays {
                    state.budget.repeats -= 1;
                } else {
                    state.network.remove(at as usize);
                }
                return self.deliver(state, &message);
            }
            Action::Tick(_) => {
                state.budget.ticks -= 1;
                Event::Tick
            }
            Action::LosePatience(id) => {
                let mut node = Node::clone(&state.nodes[id as usize]);
                let until = node.raft.undisturbed_until().unwrap_or(BASE);
                node.raft.wait(until);
                return Ok(self.put(state, node));
            }
            Action::Advance => {
                state.budget.advances -= 1;
                state.time += QUANTUM;
                return Ok(state);
            }
            Action::Propose(_) => {
                state.budget.proposals -= 1;
                Event::Propose { token: 0, size_bytes: 1 }
            }
            Action::Written(id) => {
                let mut node = Node::clone(&state.nodes[id as usize]);
                node.write()?;
                state.nodes[id as usize] = Arc::new(node);
                Event::Persisted
            }
            Action::Crash(id, whole) => return self.crash(state, id as usize, whole),
            Action::Installed(id) => {
                let mut node = Node::clone(&state.nodes[id as usize]);
                let meta = node.raft.hard_state().installing.clone().ok_or("nothing is being installed")?;
                (node.applied, node.flushed) = (meta.last.index, meta.last.index);
                state.nodes[id as usize] = Arc::new(node);
                Event::SnapshotInstalled
            }
            Action::Compact(id) => {
                state.budget.compactions -= 1;
                let mut node = Node::clone(&state.nodes[id as usize]);
                node.flushed = node.applied;
                let through = node.applied;
                state.nodes[id as usize] = Arc::new(node);
                Event::Compact(through)
            }
            Action::Read(id) => {
                let mut node = Node::clone(&state.nodes[id as usize]);
                let token = u64::from(state.budget.reads);
                state.budget.reads -= 1;
                node.reads.push((token, state.known.acknowledged));
                state.nodes[id as usize] = Arc::new(node);
                Event::Read { token, lease: self.scenario.clocks != Clocks::Own }
            }
            Action::Change(_) => {
                let number = self.scenario.changes.len() - state.budget.changes as usize;
                state.budget.changes -= 1;
                Event::ChangeMembership {
                    token: number as u64,
                    changes: self.scenario.changes[number].clone(),
                }
            }
            Action::Transfer(_, to) => {
                state.budget.transfers -= 1;
                Event::Transfer { token: 0, to: Some(NodeId(to.into())) }
            }
        };
        let (Action::Tick(id)
        | Action::Propose(id)
        | Action::Written(id)
        | Action::Installed(id)
        | Action::Compact(id)
        | Action::Read(id)
        | Action::Change(id)
        | Action::Transfer(id, _)) = action
        else {
            unreachable!("done above")
        };
        self.step(state, id as usize, event)
    }

    fn deliver(&self, mut state: State, message: &Message) -> Result<State, String> {
        let (from, to) = (message.from, message.to.0 as usize);
        let event = match message.packet.clone() {
            Packet::Reply(reply) => reply.into_event(from),
            Packet::Append(append, entries) => Event::Append { from, append, entries },
            Packet::SnapshotAck(last) => Event::SnapshotSent(from, last),
            Packet::Snapshot(term, meta) => {
                let mut node = Node::clone(&state.nodes[to]);
                if node.installing_from.is_some() {
                    return Ok(state);
                }
                node.installing_from = Some(from);
                state.nodes[to] = Arc::new(node);
                Event::SnapshotArrived { from, term, meta }
            }
        };
        self.step(state, to, event)
    }

    fn crash(&self, mut state: State, id: usize, whole: bool) -> Result<State, String> {
        state.budget.crashes -= 1;
        let mut node = Node::clone(&state.nodes[id]);
        if whole {
            if node.writing.is_some() {
                node.write()?;
            } else if let Some(meta) = &node.disk.hard.installing {
                node.flushed = node.flushed.max(meta.last.index);
            }
        }
        let now = match self.scenario.clocks {
            Clocks::Own => BASE,
            Clocks::Common(_) => self.local(&state, id),
        };
        let node = self.start(node.id, node.disk, node.flushed, node.lives + 1, now);
        Ok(self.put(state, node))
    }

    /// The node takes an event, and what it says is carried out.
    fn step(&self, mut state: State, id: usize, event: Event) -> Result<State, String> {
        let mut node = Node::clone(&state.nodes[id]);
        let now = match (self.scenario.clocks, &event) {
            (Clocks::Common(_), _) => self.local(&state, id),
            (Clocks::Own, Event::Tick) => node.raft.next_deadline().unwrap_or(BASE),
            (Clocks::Own, _) => BASE,
        };
        let (role, commit, membership) =
            (node.raft.role(), node.raft.commit(), node.raft.membership().clone());
        let mut outputs = node.raft.step(now, event);
        outputs.extend(node.raft.finish_turn(now));
        let mut known = None;
        if node.raft.role() == Role::Leader && role != Role::Leader {
            let known = known.get_or_insert_with(|| Known::clone(&state.known));
            known.elected(&node.raft)?;
        }
        for output in outputs {
            self.carry_out(&mut state, &mut node, &mut known, output)?;
        }
        if node.writing.is_none()
            && let Some(persist) = node.raft.take_persist()
        {
            let (after, last) = persist.append;
            let entry = |index: u64| {
                let id = node.raft.id_at(LogIndex(index)).ok_or("what is written is not in the log")?;
                let membership = node.raft.membership_entry(LogIndex(index));
                Ok((id, membership))
            };
            let entries: Result<Vec<Entry>, &str> = (after.0 + 1..=last.0).map(entry).collect();
            node.writing = Some((persist, entries?));
        }
        if node.raft.commit() > commit {
            let known = known.get_or_insert_with(|| Known::clone(&state.known));
            let now = node.raft.membership().clone();
            let holds = |voter: NodeId, entry: LogId| {
                let other = if voter == node.id { &node } else { &*state.nodes[voter.0 as usize] };
                other.holds(entry)
            };
            for index in commit.0 + 1..=node.raft.commit().0 {
                let Some(entry) = node.raft.id_at(LogIndex(index)) else { continue };
                let by = |m: &Membership| m.quorum_value(|voter| holds(voter, entry)) == Some(true);
                known.committed(entry, node.raft.term(), by(&membership) || by(&now))?;
            }
        }
        if let Some(mut known) = known {
            known.print(&self.names);
            state.known = Arc::new(known);
        }
        Ok(self.put(state, node))
    }

    fn put(&self, mut state: State, mut node: Node) -> State {
        if self.scenario.clocks == Clocks::Own {
            let drawn = u64::from(node.lives) * 16 + node.reads.len() as u64;
            node.raft.normalize(BASE, drawn);
        } else {
            let now = self.local(&state, node.id.0 as usize);
            node.raft.normalize(now, 0);
        }
        node.print(&self.names);
        let id = node.id.0 as usize;
        state.nodes[id] = Arc::new(node);
        state
    }

    fn carry_out(
        &self,
        state: &mut State,
        node: &mut Node,
        known: &mut Option<Known>,
        output: Output,
    ) -> Result<(), String> {
        match output {
            Output::Send(to, reply) => {
                if let Reply::VoteResponse(response) = reply
                    && response.granted
                    && response.kind != consensus_core::VoteKind::PreVote
                {
                    fresh(known, state).voted(node.id, response.term, to)?;
                }
                self.send(state, node.id, to, Packet::Reply(reply));
            }
            Output::SendAppend(to, append) => {
                let entry = |index: u64| {
                    let id = node.raft.id_at(LogIndex(index)).ok_or("what is sent is not in the log")?;
                    let membership = node.raft.membership_entry(LogIndex(index));
                    Ok(EntryInfo { term: id.term, size_bytes: 1, membership })
                };
                let entries: Result<Vec<EntryInfo>, &str> =
                    (append.prev.index.0 + 1..=append.last.0).map(entry).collect();
                self.send(state, node.id, to, Packet::Append(append, entries?));
            }
            Output::SendSnapshot(to) => {
                let last = node.raft.id_at(node.applied).ok_or("what is applied is not in the log")?;
                let membership = (*node.raft.membership_at(last.index)).clone();
                let packet = Packet::Snapshot(node.raft.term(), SnapshotMeta { last, membership });
                self.send(state, node.id, to, packet);
            }
            Output::Apply(through) => {
                for index in node.applied.0 + 1..=through.0 {
                    let entry =
                        node.raft.id_at(LogIndex(index)).ok_or("what is applied is not in the log")?;
                    if !node.holds(entry) {
                        return Err(format!("I8: {} applies {entry}, which is not on its disk", node.id));
                    }
                }
                node.applied = node.applied.max(through);
                if node.raft.role() == Role::Leader {
                    let known = fresh(known, state);
                    known.acknowledged = known.acknowledged.max(through);
                }
            }
            Output::ReadReady(token, index) => {
                let at = node.reads.iter().position(|(known, _)| *known == token).ok_or("nobody asked")?;
                let (_, acknowledged) = node.reads.remove(at);
                if index < acknowledged {
                    return Err(format!(
                        "I9: a read at {index} by {} does not see what was acknowledged at {acknowledged}",
                        node.id
                    ));
                }
            }
            Output::ReadRefused(token) => node.reads.retain(|(known, _)| *known != token),
            Output::SnapshotSettled(verdict) => {
                if let Some(from) = node.installing_from.take() {
                    let held = (verdict == SnapshotVerdict::Held).then_some(node.applied);
                    self.send(state, node.id, from, Packet::SnapshotAck(held));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn send(&self, state: &mut State, from: NodeId, to: NodeId, packet: Packet) {
        let is_cut = self.scenario.cut.contains(&(from.0, to.0));
        let is_lost = self.scenario.loses_entries && matches!(packet, Packet::Append(..));
        if to.0 >= self.scenario.nodes || is_lost || (is_cut && !state.is_whole) {
            return;
        }
        let fingerprints = self.names.iter().map(|names| packet.print(from, to, names)).collect();
        let message = Message { from, to, packet, fingerprints };
        let place =
            state.network.binary_search_by_key(&message.fingerprints[0], |other| other.fingerprints[0]);
        if let Err(at) = place {
            state.network.insert(at, Arc::new(message));
        }
    }

    /// Whether nothing came of a delivery but that the message is gone: all that can follow can follow from the state
    /// before, too, where it is never delivered.
    pub(crate) fn is_idle(&self, before: &State, after: &State, action: Action) -> bool {
        let Action::Deliver(at, false) = action else { return false };
        let to = before.network[at as usize].to.0 as usize;
        after.network.len() + 1 == before.network.len()
            && after.nodes[to].fingerprints == before.nodes[to].fingerprints
    }

    /// The same for states that differ in names only.
    pub(crate) fn fingerprint(&self, state: &State) -> u64 {
        let under = |(at, names): (usize, &Vec<u8>)| {
            let mut hasher = Fingerprint::default();
            let mut nodes = 0u64;
            for (node, name) in state.nodes.iter().zip(names) {
                let mut one = Fingerprint::default();
                (name, node.fingerprints[at]).hash(&mut one);
                nodes = nodes.wrapping_add(one.finish());
            }
            let network =
                state.network.iter().fold(0u64, |sum, message| sum.wrapping_add(message.fingerprints[at]));
            (nodes, network, state.budget, state.known.fingerprints[at], state.time).hash(&mut hasher);
            hasher.finish()
        };
        self.names.iter().enumerate().map(under).min().unwrap_or_default()
    }

    /// Any two logs agree up to the last entry that they have in common (Log Matching).
    pub(crate) fn check(&self, state: &State) -> Result<(), String> {
        for (at, one) in state.nodes.iter().enumerate() {
            for other in &state.nodes[at + 1..] {
                let from = one.raft.purged().index.max(other.raft.purged().index).0;
                let to = one.raft.last_log().index.min(other.raft.last_log().index).0;
                let same =
                    |index: &u64| one.raft.id_at(LogIndex(*index)) == other.raft.id_at(LogIndex(*index));
                let Some(last) = (from..=to).rev().find(same) else { continue };
                if let Some(index) = (from.max(1)..=last).find(|index| !same(index)) {
                    return Err(format!(
                        "Log Matching: {} and {} differ at {index} and agree at {last}",
                        one.id, other.id
                    ));
                }
            }
        }
        Ok(())
    }

    /// The state in a few lines.
    pub(crate) fn describe(&self, state: &State) -> String {
        let line = |node: &Arc<Node>| {
            let raft = &node.raft;
            let (role, term, last, commit) = (raft.role(), raft.term(), raft.last_log(), raft.commit());
            format!(
                "    {}: {role}, term {term}, last {last}, commit {commit}, durable {}, {}\n",
                node.id,
                raft.durable(),
                raft.membership()
            )
        };
        state.nodes.iter().map(line).collect()
    }

    /// An action in words.
    pub(crate) fn tell(&self, state: &State, action: Action) -> String {
        match action {
            Action::Deliver(at, stays) => {
                let Message { from, to, packet, .. } = &*state.network[at as usize];
                let again = if stays { ", and once more later" } else { "" };
                format!("{from} -> {to}{again}: {packet:?}")
            }
            other => format!("{other:?}"),
        }
    }
}

/// What is known, to be added to.
fn fresh<'a>(known: &'a mut Option<Known>, state: &State) -> &'a mut Known {
    known.get_or_insert_with(|| Known::clone(&state.known))
}

impl Node {
    fn holds(&self, id: LogId) -> bool {
        let disk = &self.disk;
        let installed = disk.hard.installing.as_ref().filter(|meta| meta.last.index <= self.flushed);
        id.index <= disk.purged.last.index
            || installed.is_some_and(|meta| id.index <= meta.last.index)
            || disk.entries.iter().any(|(held, _)| *held == id)
    }

    /// What was in flight is on the disk.
    fn write(&mut self) -> Result<(), String> {
        let Some((persist, entries)) = self.writing.take() else { return Ok(()) };
        let disk = &mut self.disk;
        if let Some(meta) = persist.purge {
            disk.entries.retain(|(id, _)| id.index > meta.last.index);
            disk.purged = meta;
        }
        if let Some(after) = persist.truncate_after {
            disk.entries.retain(|(id, _)| id.index <= after);
        }
        disk.entries.extend(entries);
        if let Some(hard) = persist.hard_state {
            let another = disk.hard.voted_for.is_some() && hard.voted_for != disk.hard.voted_for;
            if hard.term < disk.hard.term || (hard.term == disk.hard.term && another) {
                return Err(format!("I1: {} goes from {:?} to {hard:?}", self.id, disk.hard));
            }
            disk.hard = hard;
        }
        Ok(())
    }

    fn print(&mut self, names: &[Vec<u8>]) {
        let under = |names: &Vec<u8>| {
            let mut hasher = Fingerprint::default();
            self.raft.digest(names, &mut hasher);
            let Disk { hard, purged, entries } = &self.disk;
            hash_hard_state(hard, names, &mut hasher);
            hash_meta(purged, names, &mut hasher);
            for (id, membership) in entries {
                id.hash(&mut hasher);
                if let Some(membership) = membership {
                    hash_membership(membership, names, &mut hasher);
                }
            }
            let writing = self
                .writing
                .as_ref()
                .map(|(persist, _)| (persist.hard_state.is_some(), persist.append, persist.truncate_after));
            let from = self.installing_from.map(|id| names[id.0 as usize]);
            (writing, self.applied, self.flushed, from, &self.reads, self.lives).hash(&mut hasher);
            if let Some(hard) = self.writing.as_ref().and_then(|(persist, _)| persist.hard_state.as_ref()) {
                hash_hard_state(hard, names, &mut hasher);
            }
            hasher.finish()
        };
        self.fingerprints = names.iter().map(under).collect();
    }
}

impl Packet {
    fn print(&self, from: NodeId, to: NodeId, names: &[u8]) -> u64 {
        let mut hasher = Fingerprint::default();
        (names[from.0 as usize], names[to.0 as usize]).hash(&mut hasher);
        match self {
            Self::Reply(reply) => reply.hash(&mut hasher),
            Self::Append(append, entries) => {
                append.hash(&mut hasher);
                for entry in entries {
                    entry.term.hash(&mut hasher);
                    if let Some(membership) = &entry.membership {
                        hash_membership(membership, names, &mut hasher);
                    }
                }
            }
            Self::Snapshot(term, meta) => {
                term.hash(&mut hasher);
                hash_meta(meta, names, &mut hasher);
            }
            Self::SnapshotAck(last) => (7, last).hash(&mut hasher),
        }
        hasher.finish()
    }
}

impl Known {
    /// Election Safety and Leader Completeness.
    fn elected(&mut self, raft: &Raft) -> Result<(), String> {
        let (term, id) = (raft.term(), raft.id());
        if let Some((_, other)) = self.leaders.iter().find(|(known, other)| *known == term && *other != id) {
            return Err(format!("Election Safety: {other} and {id} lead term {term}"));
        }
        if !self.leaders.contains(&(term, id)) {
            self.leaders.push((term, id));
            self.leaders.sort_unstable();
        }
        for (entry, _) in
            self.committed.iter().filter(|(entry, by)| *by < term && entry.index > raft.purged().index)
        {
            if raft.id_at(entry.index) != Some(*entry) {
                return Err(format!("Leader Completeness: {id}, the leader of term {term}, lacks {entry}"));
            }
        }
        Ok(())
    }

    /// At most one vote in a term (I1).
    fn voted(&mut self, voter: NodeId, term: Term, candidate: NodeId) -> Result<(), String> {
        match self.votes.iter().find(|(known, at, _)| *known == voter && *at == term) {
            Some((_, _, other)) if *other != candidate => {
                Err(format!("I1: {voter} votes for {other} and {candidate} in term {term}"))
            }
            Some(_) => Ok(()),
            None => {
                self.votes.push((voter, term, candidate));
                Ok(())
            }
        }
    }

    /// State Machine Safety; and what is committed is on a quorum of disks (I4).
    fn committed(&mut self, entry: LogId, term: Term, is_on_quorum: bool) -> Result<(), String> {
        let at = entry.index.0 as usize - 1;
        match self.committed.get(at) {
            Some((known, _)) if *known != entry => {
                Err(format!("State Machine Safety: {known} and {entry} are committed"))
            }
            Some(_) => Ok(()),
            None if !is_on_quorum => Err(format!("I4: {entry} is committed and on no quorum of disks")),
            None => {
                self.committed.push((entry, term));
                Ok(())
            }
        }
    }

    fn print(&mut self, names: &[Vec<u8>]) {
        let under = |names: &Vec<u8>| {
            let mut hasher = Fingerprint::default();
            (&self.committed, self.acknowledged).hash(&mut hasher);
            let mut leaders = 0u64;
            for (term, id) in &self.leaders {
                let mut one = Fingerprint::default();
                (term, names[id.0 as usize]).hash(&mut one);
                leaders = leaders.wrapping_add(one.finish());
            }
            // Votes follow from the disks and the messages; they are there to be checked.
            leaders.hash(&mut hasher);
            hasher.finish()
        };
        self.fingerprints = names.iter().map(under).collect();
    }
}

/// `names` with those of a group exchanged in every way.
fn permuted(names: &[u8], group: &[u8]) -> Vec<Vec<u8>> {
    let Some((first, rest)) = group.split_first() else { return vec![names.to_vec()] };
    let mut all = Vec::new();
    for other in group {
        let mut swapped = names.to_vec();
        swapped.swap(*first as usize, *other as usize);
        all.extend(permuted(&swapped, rest));
    }
    all
}
