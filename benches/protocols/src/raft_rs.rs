//! raft-rs (crate `raft`, of TiKV): a `RawNode` and the crate's own `MemStorage` per node, driven as its examples drive
//! them: take the `Ready`, store, `advance`, take the `LightReady`, `advance_apply`. Set up for throughput: Protobuf with
//! `Bytes`, and followers hear of commits with the next entries (`skip_bcast_commit`), both as in TiKV; entries for a
//! follower join one message (`batch_append`), no limit is ever reached, nothing is logged. All proposals that fit go in
//! with one step, which is half as fast again as one call of `propose` for each.

use bytes::Bytes;
use raft::{
    Config, RawNode,
    eraftpb::{Entry, Message, MessageType},
    storage::MemStorage,
};

use crate::compare::PAYLOAD_BYTES;

/// Applied entries that a log may hold before it is compacted.
const KEPT: u64 = 8192;

pub(super) struct Cluster {
    /// Node `id` is at `id - 1`; the first one leads.
    nodes: Vec<Node>,
    payload: Bytes,
}

struct Node {
    raft: RawNode<MemStorage>,
    storage: MemStorage,
    inbox: Vec<Message>,
    /// Entries with a payload.
    applied: u64,
    applied_index: u64,
    compacted_index: u64,
}

impl crate::compare::Cluster for Cluster {
    fn elect(nodes: usize, _window: usize) -> Self {
        let nodes = nodes as u64;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let start = |id| {
            let config = Config {
                id,
                max_size_per_msg: 1 << 20,
                max_inflight_msgs: 4096,
                batch_append: true,
                skip_bcast_commit: true,
                check_quorum: false,
                pre_vote: false,
                ..Config::default()
            };
            let storage = MemStorage::new_with_conf_state((1..=nodes, [0; 0]));
            let raft = RawNode::new(&config, storage.clone(), &logger).expect("a valid configuration");
            Node { raft, storage, inbox: Vec::new(), applied: 0, applied_index: 0, compacted_index: 0 }
        };
        let nodes = (1..=nodes).map(start).collect();
        let mut cluster = Self { nodes, payload: vec![7; PAYLOAD_BYTES].into() };
        cluster.nodes[0].raft.campaign().expect("nobody else does");
        cluster.settle();
        assert_eq!(cluster.nodes[0].raft.raft.leader_id, 1, "the first node leads");
        cluster
    }

    fn done(&self) -> usize {
        self.nodes[0].applied as usize
    }

    fn propose(&mut self, count: usize) {
        let entry = Entry { data: self.payload.clone(), ..Entry::default() };
        let mut message = Message { from: 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry; count].into());
        self.nodes[0].raft.step(message).expect("it leads");
    }

    /// Until no node has anything to do; then everything proposed is applied.
    fn settle(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for index in 0..self.nodes.len() {
                let node = &mut self.nodes[index];
                for message in node.inbox.drain(..) {
                    node.raft.step(message).expect("a message of a peer");
                }
                while self.nodes[index].raft.has_ready() {
                    quiet = false;
                    self.handle_ready(index);
                }
            }
        }
        self.nodes.iter_mut().for_each(Node::compact);
    }
}

impl Cluster {
    fn handle_ready(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let mut ready = node.raft.ready();
        let messages = ready.take_messages();
        node.apply(ready.take_committed_entries());
        {
            let mut storage = node.storage.wl();
            storage.append(ready.entries()).expect("a log without gaps");
            if let Some(state) = ready.hs() {
                storage.set_hardstate(state.clone());
            }
        }
        let persisted = ready.take_persisted_messages();
        let mut light = node.raft.advance(ready);
        if let Some(commit) = light.commit_index() {
            node.storage.wl().mut_hard_state().commit = commit;
        }
        node.apply(light.take_committed_entries());
        node.raft.advance_apply();
        for message in messages.into_iter().chain(persisted).chain(light.take_messages()) {
            self.nodes[message.to as usize - 1].inbox.push(message);
        }
    }
}

impl Node {
    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            // A leader's first entry has none.
            self.applied += u64::from(!entry.data.is_empty());
            self.applied_index = entry.index;
        }
    }

    /// Called when no messages are on the way, so that nobody needs what is applied; the last entry stays, for its term.
    fn compact(&mut self) {
        if self.applied_index > self.compacted_index + KEPT {
            self.storage.wl().compact(self.applied_index).expect("it is applied");
            self.compacted_index = self.applied_index;
        }
    }
}
