//! What a run is like, from its seed.

use std::time::Duration;

use consensus_core::{Membership, NodeId};
use consensus_engine_raft::RaftConfig;
use consensus_raft_simulator::{Random, mix};
use consensus_transport_mem::Link;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) clients: u64,
    pub(crate) troubled: Duration,
    pub(crate) link: Link,
    pub(crate) forward: bool,
    /// Most proposals in flight.
    pub(crate) proposals_max: u64,
    pub(crate) reads_max: u64,
    pub(crate) inbox_bytes: u64,
    pub(crate) compact_after: u64,
    pub(crate) snapshot_bytes_per_second: u64,
    pub(crate) cache_bytes: u64,
    /// How long a client waits for an answer before it asks elsewhere.
    pub(crate) patience: Duration,
    pub(crate) reads_percent: u64,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let ms = Duration::from_millis;
        let bad_network = random.percent(50);
        let percent = |random: &mut Random, most| random.below(most) as f64 / 100.0;
        Self {
            seed,
            nodes: random.of(&[1, 3, 3, 3, 3, 3, 3, 3, 5, 5]),
            clients: 4 + random.below(5),
            troubled: ms(10_000 + random.below(6_000)),
            link: Link {
                latency: (ms(1), ms(1 + random.below(8))),
                loss: if bad_network { percent(&mut random, 8) } else { 0.0 },
                duplication: if bad_network { percent(&mut random, 20) } else { 0.0 },
                reordering: bad_network && random.percent(50),
                cut: false,
            },
            forward: random.percent(50),
            proposals_max: if random.percent(25) { 1 + random.below(3) } else { 1000 },
            reads_max: random.of(&[1, 1000, 1000]),
            inbox_bytes: random.of(&[1_000, 1 << 20]),
            snapshot_bytes_per_second: random.of(&[0, 0, 300]),
            compact_after: random.of(&[0, 40, 200]),
            cache_bytes: random.of(&[500, 4_000, 1 << 20]),
            patience: ms(random.of(&[300, 2_000])),
            reads_percent: random.of(&[20, 50]),
        }
    }

    /// Of the node `id`, at its start number `life`.
    pub(crate) fn config(&self, id: u64, life: u64) -> RaftConfig {
        let mut config = RaftConfig::new(NodeId(id));
        config.protocol.seed = mix(self.seed ^ mix(id ^ mix(life)));
        config.protocol.election_timeout = Duration::from_millis(500);
        config.protocol.heartbeat_interval = Duration::from_millis(100);
        config.protocol.lease_drift_percent = 10;
        config.bootstrap = Some(Membership::of_voters(0..self.nodes));
        config.threads = false;
        config.forward_proposals = self.forward;
        config.proposals_max = self.proposals_max;
        config.reads_max = self.reads_max;
        config.inbox_bytes_max = self.inbox_bytes;
        config.snapshot_bytes_per_second = self.snapshot_bytes_per_second;
        config.cache_bytes_max = self.cache_bytes;
        config.compact_after_entries = self.compact_after;
        config.compact_keep_entries = 20;
        config.snapshot_chunk_bytes = 100;
        config.snapshot_retry = Duration::from_millis(300);
        config.snapshot_resume = Duration::from_secs(3);
        config
    }
}
