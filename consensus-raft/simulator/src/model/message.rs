//! What is under way.

use std::sync::Arc;

use consensus_core::{LogIndex, NodeId, SnapshotMeta, Term};
use consensus_raft_protocol::{Append, EntryInfo, Event, Reply};

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
    Reply(Reply),
    Append(Append, Vec<EntryInfo>),
    Snapshot(Term, SnapshotMeta),
    SnapshotAck(Option<LogIndex>),
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
}
