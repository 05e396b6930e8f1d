//! Parameters of a run, derived from its seed.

use std::{collections::BTreeMap, time::Duration};

use consensus_core::{Member, MemberKind, Membership, NodeId};
use consensus_engine_raft::{RaftConfig, SimulatedHangs, SimulatedLatency};
use consensus_raft_simulator::{Random, mix};
use consensus_transport_mem::Link;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) fault_period: Duration,
    pub(crate) link: Link,
    /// Maximum duration of a call of storage or state machine, if any.
    latency: Option<Duration>,
    compact_log_after: u64,
    /// Whether history is compacted.
    pub(crate) compact_history: bool,
    /// Time that a client waits for a response.
    pub(crate) time_limit: Duration,
    /// Longest pause between two faults.
    pub(crate) fault_pause_max: Duration,
    /// Deviation of each node's clock in thousandths.
    pub(crate) drift: [i64; NODES as usize],
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let ms = Duration::from_millis;
        let bad_network = random.percent(30);
        Self {
            seed,
            fault_period: ms(20_000 + random.below(15_000)),
            link: Link {
                latency: (ms(1), ms(2 + random.below(8))),
                loss: if bad_network { 0.02 } else { 0.0 },
                duplication: if bad_network { 0.05 } else { 0.0 },
                reordering: bad_network,
                cut: false,
            },
            latency: random.of(&[
                None,
                Some(ms(5)),
                Some(ms(20)),
                Some(ms(40)),
                Some(ms(100)),
                Some(ms(100)),
            ]),
            compact_log_after: random.of(&[0, 20, 100]),
            compact_history: random.percent(60),
            time_limit: ms(random.of(&[300, 1_000, 2_000])),
            fault_pause_max: ms(random.of(&[1_500, 5_000, 9_000])),
            drift: std::array::from_fn(|_| random.below(9).cast_signed() - 4),
        }
    }

    /// Configuration of node `id` at its start number `incarnation`.
    pub(crate) fn config(&self, id: u64, incarnation: u64) -> RaftConfig {
        let members = (0..NODES).map(|id| (NodeId(id), Member::new(MemberKind::Voter)));
        let mut config = RaftConfig::new(NodeId(id));
        config.protocol.seed = mix(self.seed ^ mix(id ^ mix(incarnation)));
        config.protocol.election_timeout = ELECTION_TIMEOUT;
        config.protocol.heartbeat_interval = Duration::from_millis(100);
        config.bootstrap = Some(Membership::new(members.collect::<BTreeMap<_, _>>()));
        config.threads = false;
        let seed = config.protocol.seed;
        let hangs = SimulatedHangs::default();
        config.simulated_latency = self.latency.map(|max| SimulatedLatency { seed, max, hangs });
        config.compact_after_entries = self.compact_log_after;
        config.compact_keep_entries = 3;
        config.compact_keep_bytes = 1_000;
        config.compact_hold_bytes = 1_000;
        config.snapshot_retry = Duration::from_millis(300);
        config
    }
}

pub(crate) const NODES: u64 = 3;
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
