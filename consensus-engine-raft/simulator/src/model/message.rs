//! Messages in transit.

use std::sync::Arc;

use consensus_core::{LogIndex, NodeId, Role, SnapshotMeta, Term, VoteKind, VoteRequest};
use consensus_raft_protocol::{Append, ControlMessage, EntryInfo, Event};

use super::{
    node::Node,
    state::{State, World},
};

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) packet: Packet,
    pub(super) fingerprints: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Packet {
    ControlMessage(ControlMessage),
    Append(Append, Vec<EntryInfo>),
    Snapshot(Term, SnapshotMeta),
    SnapshotAck(Option<LogIndex>),
}

impl Message {
    /// Whether the response to the message depends on whether the node protects a leader.
    pub(super) fn depends_on_leader_protection(&self, to: u8) -> bool {
        let asks = |request: &VoteRequest| request.kind != VoteKind::Transfer;
        self.to.0 == u64::from(to)
            && matches!(&self.packet, Packet::ControlMessage(ControlMessage::VoteRequest(request)) if asks(request))
    }

    /// Whether the message can have no effect any more on the node, whose term never decreases below `term`.
    fn is_stale(&self, term: Term, role: Role, ticks: u8) -> bool {
        let Packet::ControlMessage(reply) = &self.packet else { return false };
        match reply {
            // A grant matters in the term of its request or the one before; a refusal reports a later term.
            ControlMessage::VoteResponse(response) if response.granted && response.kind == VoteKind::Vote => {
                response.term < term
            }
            ControlMessage::VoteResponse(response) if response.term <= term => true,
            // A node that is no pre-candidate now will not become one if no deadline is left to pass.
            ControlMessage::VoteResponse(response) => {
                response.granted && ticks == 0 && role != Role::PreCandidate
            }
            // A follower in a term will not become its leader.
            ControlMessage::AppendResponse(response) if response.term == term => {
                matches!(role, Role::Follower | Role::Learner)
            }
            ControlMessage::AppendResponse(response) => response.term < term,
            ControlMessage::TimeoutNow(request) => request.term < term,
            _ => false,
        }
    }
}

impl World {
    pub(super) fn send(&self, state: &mut State, from: NodeId, to: NodeId, packet: Packet) {
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

    pub(super) fn deliver(&self, mut state: State, message: &Message) -> Result<State, String> {
        let (from, to) = (message.from, message.to.0 as usize);
        let event = match message.packet.clone() {
            Packet::ControlMessage(reply) => reply.into_event(from),
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

    /// Removes messages that can never have an effect any more, because they would distinguish states that are equal otherwise.
    /// That they have no effect now is tested, not assumed: an error in the code may give them one.
    pub(super) fn remove_stale(&self, mut state: State) -> State {
        let stale = |message: &Arc<Message>| {
            let node = &state.nodes[message.to.0 as usize];
            // After a crash the term may be the one on the disk.
            message.is_stale(node.raft.term().min(node.disk.hard.term), node.raft.role(), state.budget.ticks)
                && self.deliver(state.clone(), message).is_ok_and(|after| {
                    after.network.len() == state.network.len()
                        && after.nodes[message.to.0 as usize].fingerprints == node.fingerprints
                })
        };
        let stale: Vec<bool> = state.network.iter().map(stale).collect();
        let mut stale = stale.into_iter();
        state.network.retain(|_| !stale.next().unwrap_or_default());
        state
    }
}
