//! Effects of actions.

use std::sync::Arc;

use consensus_core::{LogId, LogIndex, Membership, NodeId, Role, SnapshotMeta};
use consensus_raft_protocol::{ArrivalOutcome, ControlMessage, EntryInfo, Event, Output, Raft, Time};

use super::{
    checks::{Known, fresh},
    message::Packet,
    node::{Entry, Node},
    scenario::Clocks,
    state::{Action, BASE, QUANTUM, State, World},
};

impl World {
    /// Returns the state after an action, or the violated property.
    pub(crate) fn act(&self, before: &State, action: Action) -> Result<State, String> {
        let after = self.process(before, action)?;
        if !self.reduces {
            return Ok(after);
        }
        let is_last = after.budget.ticks == 0 && before.budget.ticks > 0;
        Ok(self.remove_stale(if is_last { self.settle(after) } else { after }))
    }

    /// Normalizes the times of nodes once more, at the start and when no deadline will pass any more.
    pub(super) fn settle(&self, state: State) -> State {
        if !self.reduces || self.scenario.clocks != Clocks::Own {
            return state;
        }
        let nodes = state.nodes.clone();
        nodes.iter().fold(state, |state, node| self.put(state, Node::clone(node)))
    }

    fn process(&self, before: &State, action: Action) -> Result<State, String> {
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
            Action::Propose(id) => {
                state.budget.proposals -= 1;
                return self.call(state, id as usize, |raft, now| {
                    raft.propose(now, &[1]);
                    Vec::new()
                });
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
            Action::Disconnect(id) => {
                state.budget.disconnects -= 1;
                Event::Disconnected(state.nodes[id as usize].raft.leader().ok_or("the node has no leader")?)
            }
        };
        let (Action::Tick(id)
        | Action::Written(id)
        | Action::Installed(id)
        | Action::Compact(id)
        | Action::Read(id)
        | Action::Change(id)
        | Action::Disconnect(id)
        | Action::Transfer(id, _)) = action
        else {
            unreachable!("handled above")
        };
        self.step(state, id as usize, event)
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
        let node = self.start(
            node.id,
            node.disk,
            node.flushed,
            node.incarnations + u8::from(self.scenario.budget.reads > 0),
            now,
        );
        Ok(self.put(state, node))
    }

    /// Steps the node with an event, and carries out its outputs.
    pub(super) fn step(&self, state: State, id: usize, event: Event) -> Result<State, String> {
        let due = match (self.scenario.clocks, &event) {
            (Clocks::Own, Event::Tick) => state.nodes[id].raft.next_deadline(),
            _ => None,
        };
        self.call(state, id, |raft, now| raft.step(due.unwrap_or(now), event))
    }

    fn call(
        &self,
        mut state: State,
        id: usize,
        call: impl FnOnce(&mut Raft, Time) -> Vec<Output>,
    ) -> Result<State, String> {
        let mut node = Node::clone(&state.nodes[id]);
        let now = self.local(&state, id);
        let (role, commit, membership) =
            (node.raft.role(), node.raft.commit(), node.raft.membership().clone());
        let mut outputs = call(&mut node.raft, now);
        outputs.extend(node.raft.finish_turn(now));
        let mut known = None;
        if node.raft.role() == Role::Leader && role != Role::Leader {
            let known = known.get_or_insert_with(|| Known::clone(&state.known));
            known.elected(&node.raft)?;
        }
        known.as_ref().unwrap_or(&*state.known).follows(&node.raft)?;
        for output in outputs {
            self.carry_out(&mut state, &mut node, &mut known, output)?;
        }
        if node.writing.is_none()
            && let Some(persist) = node.raft.take_persist()
        {
            let (after, last) = persist.append;
            let entry = |index: u64| {
                let id = node.raft.id_at(LogIndex(index)).ok_or("an entry to write is not in the log")?;
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

    pub(super) fn put(&self, mut state: State, mut node: Node) -> State {
        if self.scenario.clocks == Clocks::Own {
            let drawn = u64::from(node.incarnations) * 16 + node.reads.len() as u64;
            node.raft.normalize(BASE, drawn);
            if self.reduces {
                node.raft.normalize_durations(state.budget.ticks == 0 && !state.is_whole);
            }
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
                if let ControlMessage::VoteResponse(response) = reply
                    && response.granted
                    && response.kind != consensus_core::VoteKind::PreVote
                {
                    fresh(known, state).voted(node.id, response.term, to)?;
                }
                self.send(state, node.id, to, Packet::ControlMessage(reply));
            }
            Output::SendAppend(to, append) => {
                let entry = |index: u64| {
                    let id = node.raft.id_at(LogIndex(index)).ok_or("an entry to send is not in the log")?;
                    let membership = node.raft.membership_entry(LogIndex(index));
                    Ok(EntryInfo { term: id.term, size_bytes: 1, membership })
                };
                let entries: Result<Vec<EntryInfo>, &str> =
                    (append.prev.index.0 + 1..=append.last.0).map(entry).collect();
                self.send(state, node.id, to, Packet::Append(append, entries?));
            }
            Output::SendSnapshot(to) => {
                let last = node.raft.id_at(node.applied).ok_or("an applied entry is not in the log")?;
                let membership = (*node.raft.membership_at(last.index)).clone();
                let packet = Packet::Snapshot(node.raft.term(), SnapshotMeta { last, membership });
                self.send(state, node.id, to, packet);
            }
            Output::Apply(through) => {
                for index in node.applied.0 + 1..=through.0 {
                    let entry =
                        node.raft.id_at(LogIndex(index)).ok_or("an applied entry is not in the log")?;
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
                let at =
                    node.reads.iter().position(|(known, _)| *known == token).ok_or("the read is unknown")?;
                let (_, acknowledged) = node.reads.remove(at);
                if index < acknowledged {
                    return Err(format!(
                        "I9: a read at {index} by {} misses entries acknowledged at {acknowledged}",
                        node.id
                    ));
                }
            }
            Output::ReadRefused(token) => node.reads.retain(|(known, _)| *known != token),
            Output::SnapshotSettled(outcome) => {
                if let Some(from) = node.installing_from.take() {
                    let held = (outcome == ArrivalOutcome::Accepted).then_some(node.applied);
                    self.send(state, node.id, from, Packet::SnapshotAck(held));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a delivery only removed the message, or a read only got a result at once. Then every successor is also a successor of
    /// the state before, in which the action never happened.
    pub(crate) fn is_idle(&self, before: &State, after: &State, action: Action) -> bool {
        let (to, gone) = match action {
            Action::Deliver(at, false) => (before.network[at as usize].to.0 as usize, 1),
            Action::Read(id) => (id as usize, 0),
            _ => return false,
        };
        self.reduces
            && after.network.len() + gone == before.network.len()
            && after.nodes[to].fingerprints == before.nodes[to].fingerprints
    }
}
