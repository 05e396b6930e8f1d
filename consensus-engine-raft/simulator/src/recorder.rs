//! What the flight recorder rests on: a node's state as bytes is all of its state, and nothing else has a say.

use std::collections::BTreeMap;

use consensus_core::{NodeId, codec};
use consensus_raft_protocol::{Call, Raft, Returned};

/// Notes what is asked of the nodes and what they say, and replays it in pieces.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    nodes: BTreeMap<NodeId, Recording>,
    pub(crate) replayed: u64,
}

/// Calls of one node, from a state on.
#[derive(Debug)]
struct Recording {
    from: Vec<u8>,
    calls: Vec<(Call, Vec<u8>)>,
}

impl Recorder {
    /// Makes a call and notes it.
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

    /// A node went down: what comes is another life.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    fn replay(&mut self, id: NodeId, raft: &Raft) {
        let Some(Recording { from, calls }) = self.nodes.remove(&id) else { return };
        let mut again = Raft::from_checkpoint(&from).expect("a checkpoint is one");
        for (call, returned) in calls {
            let said = codec::encode(1, &again.call(call));
            assert!(said == returned, "a replay of node {id} says something else");
        }
        assert!(again.checkpoint() == raft.checkpoint(), "a replay of node {id} ends elsewhere");
        self.replayed += PIECE as u64;
    }
}

/// Calls that are replayed at a time.
const PIECE: usize = 100;
