//! omnipaxos: with its own `MemoryStorage` (crate `omnipaxos_storage`), messages taken and handled as its examples do.
//! Configured as it is by default but for `batch_size`, which is the window: each batch is full, so that no tick has to
//! flush it, and all of it is stored and sent at once (with the default of 1 it is about half as fast). Ticks only elect
//! the leader, on which the decided index is watched; nobody reads the decided entries.

use std::time::{Duration, Instant};

use bytes::Bytes;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig, macros::Entry, messages::Message};
use omnipaxos_storage::memory_storage::MemoryStorage;

use super::PAYLOAD_BYTES;

/// Proposals between two looks at the clock.
const BETWEEN_LOOKS: usize = 512;
/// Decided entries that the logs may hold before they are trimmed.
const KEPT: usize = 8192;

/// Its users' entries are structs of strings and numbers, copied for each follower and each log; copies of `Bytes` only
/// count references, so that this is the best it gets.
#[derive(Clone, Debug, Entry)]
struct Payload(#[expect(dead_code, reason = "nothing is done with what is decided")] Bytes);

/// Proposals per second.
pub(crate) fn run(nodes: usize, window: usize, time: Duration) -> f64 {
    let mut cluster = Cluster::elect(nodes as u64, window);
    cluster.keep_busy(window, time / 4); // Until it runs evenly.
    cluster.keep_busy(window, time)
}

struct Cluster {
    /// Node `pid` is at `pid - 1`.
    nodes: Vec<OmniPaxos<Payload, MemoryStorage<Payload>>>,
    leader: usize,
    payload: Payload,
    proposed: usize,
    trimmed: usize,
    /// Empty between calls, kept for its capacity.
    messages: Vec<Message<Payload>>,
}

impl Cluster {
    fn elect(nodes: u64, batch_size: usize) -> Self {
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
            proposed: 0,
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

    /// So many proposals in flight for so long; how many were decided per second.
    fn keep_busy(&mut self, window: usize, time: Duration) -> f64 {
        let (before, began) = (self.decided(), Instant::now());
        loop {
            let look = self.decided() + BETWEEN_LOOKS;
            while self.decided() < look {
                while self.proposed - self.decided() < window {
                    self.nodes[self.leader].append(self.payload.clone()).expect("it leads");
                    self.proposed += 1;
                }
                self.settle();
                self.trim();
            }
            if began.elapsed() >= time {
                return (self.decided() - before) as f64 / began.elapsed().as_secs_f64();
            }
        }
    }

    fn decided(&self) -> usize {
        self.nodes[self.leader].get_decided_idx()
    }

    /// Until no node has anything to say.
    fn settle(&mut self) {
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
        if self.decided() - self.trimmed > KEPT {
            self.trimmed = self.decided();
            self.nodes[self.leader].trim(None).expect("it leads");
            self.settle();
        }
    }
}
