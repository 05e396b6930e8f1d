//! omnipaxos: with its own `MemoryStorage` (crate `omnipaxos_storage`), messages taken and handled as its examples do.
//! Configured as it is by default but for `batch_size`, which is the window: each batch is full, so that no tick has to
//! flush it, and all of it is stored and sent at once (with the default of 1 it is about half as fast). Ticks only elect
//! the leader, on which the decided index is watched; nobody reads the decided entries.

use bytes::Bytes;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig, macros::Entry, messages::Message};
use omnipaxos_storage::memory_storage::MemoryStorage;

use crate::compare::{Cluster as _, PAYLOAD_BYTES};

/// Decided entries that the logs may hold before they are trimmed.
const KEPT: usize = 8192;

/// Its users' entries are structs of strings and numbers, copied for each follower and each log; copies of `Bytes` only
/// count references, so that this is the best it gets.
#[derive(Clone, Debug, Entry)]
struct Payload(#[expect(dead_code, reason = "nothing is done with what is decided")] Bytes);

pub(super) struct Cluster {
    /// Node `pid` is at `pid - 1`.
    nodes: Vec<OmniPaxos<Payload, MemoryStorage<Payload>>>,
    leader: usize,
    payload: Payload,
    trimmed: usize,
    /// Empty between calls, kept for its capacity.
    messages: Vec<Message<Payload>>,
}

impl crate::compare::Cluster for Cluster {
    fn elect(nodes: usize, batch_size: usize) -> Self {
        let nodes = nodes as u64;
        let start = |pid| {
            let cluster =
                ClusterConfig { configuration_id: 1, nodes: (1..=nodes).collect(), flexible_quorum: None };
            let server = ServerConfig { pid, batch_size, ..ServerConfig::default() };
            cluster.build_for_server(server, MemoryStorage::default()).expect("a valid configuration")
        };
        let mut cluster = Self {
            nodes: (1..=nodes).map(start).collect(),
            leader: 0,
            payload: Payload(Bytes::from(vec![7; PAYLOAD_BYTES])),
            trimmed: 0,
            messages: Vec::new(),
        };
        loop {
            cluster.nodes.iter_mut().for_each(OmniPaxos::tick);
            cluster.settle();
            // The leader of each node, and whether that node follows (or leads) it already.
            let leaders: Vec<_> = cluster.nodes.iter().map(OmniPaxos::get_current_leader).collect();
            if let Some((leader, true)) = leaders[0]
                && leaders.iter().all(|other| *other == leaders[0])
            {
                cluster.leader = leader as usize - 1;
                return cluster;
            }
        }
    }

    fn done(&self) -> usize {
        self.nodes[self.leader].get_decided_idx()
    }

    fn propose(&mut self, count: usize) {
        for _ in 0..count {
            self.nodes[self.leader].append(self.payload.clone()).expect("it leads");
        }
    }

    fn settle(&mut self) {
        self.hand_over();
        self.trim();
    }
}

impl Cluster {
    /// Until no node has anything to say.
    fn hand_over(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for index in 0..self.nodes.len() {
                self.nodes[index].take_outgoing_messages(&mut self.messages);
                for message in self.messages.drain(..) {
                    quiet = false;
                    self.nodes[message.get_receiver() as usize - 1].handle_incoming(message);
                }
            }
        }
    }

    /// All nodes, up to what all of them have.
    fn trim(&mut self) {
        if self.done() - self.trimmed > KEPT {
            self.trimmed = self.done();
            self.nodes[self.leader].trim(None).expect("it leads");
            self.hand_over();
        }
    }
}
