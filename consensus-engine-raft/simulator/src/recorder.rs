//! Tests the assumptions of the flight recorder: the encoded state of a node is complete, and calls depend on nothing else.

use std::collections::BTreeMap;

use consensus_core::{NodeId, codec};
use consensus_raft_protocol::{Call, Raft, Returned};

/// Records the calls of the nodes with their results, and replays them in pieces.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    nodes: BTreeMap<NodeId, Recording>,
    pub(crate) replayed: u64,
}

/// Calls of one node after a recorded state.
#[derive(Debug)]
struct Recording {
    from: Vec<u8>,
    calls: Vec<(Call, Vec<u8>)>,
}

impl Recorder {
    /// Makes a call and records it.
    pub(crate) fn call(&mut self, raft: &mut Raft, call: Call) -> Returned {
        let id = raft.id();
        let recording = self.nodes.entry(id);
        let recording = recording.or_insert_with(|| Recording { from: raft.checkpoint(), calls: Vec::new() });
        let returned = raft.call(call.clone());
        recording.calls.push((call, codec::encode(1, &returned)));
        if recording.calls.len() == PIECE {
            self.replay(id, raft);
        }
        returned
    }

    /// Must be called when a node stopped.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    fn replay(&mut self, id: NodeId, raft: &Raft) {
        let Some(Recording { from, calls }) = self.nodes.remove(&id) else { return };
        let mut again = Raft::from_checkpoint(&from).expect("a checkpoint can be decoded");
        for (call, returned) in calls {
            let said = codec::encode(1, &again.call(call));
            assert!(said == returned, "a replay of node {id} returns another result");
        }
        assert!(again.checkpoint() == raft.checkpoint(), "a replay of node {id} ends in another state");
        self.replayed += PIECE as u64;
    }
}

/// Number of calls in one replay.
const PIECE: usize = 100;
