//! A state of the cluster, and the actions that are possible in it.

use std::{sync::Arc, time::Duration};

use consensus_core::{LogId, LogIndex, Membership, NodeId, Role, Term};
use consensus_raft_protocol::Time;

use super::{
    checks::Known,
    fingerprint::permuted,
    message::Message,
    node::{Disk, Node},
    scenario::{Budget, Clocks, Scenario},
};

/// A state. States share equal nodes and messages.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) nodes: Vec<Arc<Node>>,
    /// Messages in transit; a set, ordered by fingerprint.
    pub(crate) network: Vec<Arc<Message>>,
    pub(crate) budget: Budget,
    pub(crate) known: Arc<Known>,
    /// Common time of all nodes, in scenarios that have one.
    pub(crate) time: Time,
    /// Whether no link is cut yet, because the first leader is not elected.
    pub(super) is_whole: bool,
}

/// An action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The message at this position is delivered; with `true` it also stays in transit.
    Deliver(u16, bool),
    /// The node's next deadline passes.
    Tick(u8),
    /// Enough time passes on the node that it does not protect its leader any more.
    LosePatience(u8),
    /// The common time advances.
    Advance,
    /// A command is proposed on a leader.
    Propose(u8),
    /// The node's write is durable.
    Written(u8),
    /// The node crashes and restarts; its write and restore in flight are completed or lost.
    Crash(u8, bool),
    /// The machine has restored the snapshot.
    Installed(u8),
    /// The state machine flushes, and the log up to its position is purged.
    Compact(u8),
    /// A client reads.
    Read(u8),
    /// The next change of members is requested from the node.
    Change(u8),
    /// The leader is asked to transfer leadership.
    Transfer(u8, u8),
    /// The node is told that the connection to its leader broke, which may be untrue.
    Disconnect(u8),
}

/// Permutations of names that do not change the scenario.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) names: Vec<Vec<u8>>,
    /// Whether all reductions except those by names are used; a test compares searches with and without them.
    pub(crate) reduces: bool,
}

pub(super) const BASE: Time = Duration::from_secs(1000);
pub(super) const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);
/// A step of the common time.
pub(super) const QUANTUM: Duration = Duration::from_millis(250);
const BOOTSTRAP: LogId = LogId { term: Term(0), index: LogIndex(1) };

impl World {
    pub(crate) fn new(scenario: Scenario, reduces: bool) -> Self {
        let mut names = vec![(0..scenario.nodes as u8).collect::<Vec<u8>>()];
        for group in scenario.symmetric {
            names = names.iter().flat_map(|names| permuted(names, group)).collect();
        }
        Self { scenario, names, reduces }
    }

    /// Returns the first state.
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
        Ok(self.settle(state))
    }

    /// Runs until the node is leader, no messages are in transit, and all nodes know the leader.
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
        Err("no leader is elected".to_owned())
    }

    /// Time of a node's clock.
    pub(super) fn local(&self, state: &State, id: usize) -> Time {
        match self.scenario.clocks {
            Clocks::Own => BASE,
            Clocks::Common(rates) => BASE + (state.time - BASE) * rates[id] / 100,
        }
    }

    /// Collects all actions that are possible next.
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
            let more = [Action::Compact, Action::Read, Action::Change, Action::Disconnect];
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
                self.scenario.clocks == Clocks::Own
                    && node(id).raft.undisturbed_until().is_some()
                    && (!self.reduces
                        || state.budget.reads > 0
                        || state.network.iter().any(|message| message.depends_on_leader_protection(id)))
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
            Action::Disconnect(id) => {
                budget.disconnects > 0 && node(id).raft.leader().is_some() && !leads(id)
            }
            Action::Transfer(id, to) => budget.transfers > 0 && id != to && leads(id),
        }
    }

    /// Describes the state in a few lines.
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

    /// Describes an action.
    pub(crate) fn describe_action(&self, state: &State, action: Action) -> String {
        match action {
            Action::Deliver(at, stays) => {
                let Message { from, to, packet, .. } = &*state.network[at as usize];
                let again = if stays { ", and again later" } else { "" };
                format!("{from} -> {to}{again}: {packet:?}")
            }
            other => format!("{other:?}"),
        }
    }
}
