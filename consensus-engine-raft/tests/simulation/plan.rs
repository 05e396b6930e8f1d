//! Parameters of a run, derived from its seed.

use std::time::Duration;

use consensus_core::{Endpoint, LeadershipId, Member, MemberKind, Membership, NodeId};
use consensus_engine_raft::{RaftConfig, SimulatedHangs, SimulatedLatency};
use consensus_raft_simulator::{Random, mix};
use consensus_transport_mem::Link;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Number of first members, which are numbered from 0.
    pub(crate) voters: u64,
    /// Number of all nodes; the last ones can be added.
    pub(crate) nodes: u64,
    pub(crate) clients: u64,
    pub(crate) fault_period: Duration,
    pub(crate) link: Link,
    pub(crate) forward: bool,
    /// Maximum number of proposals in flight.
    pub(crate) proposals_max: u64,
    pub(crate) reads_max: u64,
    pub(crate) inbox_bytes: u64,
    pub(crate) compact_after: u64,
    pub(crate) compact_keep: u64,
    /// Bytes that a compaction keeps, and bytes that it keeps for followers behind.
    pub(crate) compact_keep_bytes: u64,
    pub(crate) compact_hold_bytes: u64,
    pub(crate) snapshot_chunk_bytes: usize,
    /// Maximum number of entries of one message, and of one call of the state machine.
    pub(crate) append_entries: usize,
    pub(crate) apply_entries: u64,
    /// Maximum bytes of one read of the log for the state machine.
    pub(crate) apply_read_bytes: u64,
    /// Maximum duration of a call of storage or state machine, if any.
    pub(crate) latency: Option<Duration>,
    /// Number of sessions that are kept.
    pub(crate) sessions_max: u64,
    pub(crate) snapshot_bytes_per_second: u64,
    pub(crate) cache_bytes: u64,
    /// Time that a client waits for a result before it asks another node.
    pub(crate) time_limit: Duration,
    pub(crate) reads_percent: u64,
    pub(crate) stalls: Stalls,
}

/// Switches of the faults in `stalls.rs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stalls {
    /// A write of the log does not return before the fault ends.
    pub(crate) writes: bool,
    /// A call of the state machine does not return before the fault ends.
    pub(crate) machine: bool,
    /// A snapshot for a follower cannot be taken before the fault ends.
    pub(crate) snapshots: bool,
    /// There are no other faults but those of the network's messages, and the cluster must go on without the stalled node.
    pub(crate) alone: bool,
    /// Time limit of a write and of an apply, if it is not the default.
    pub(crate) limit: Option<Duration>,
}

impl Stalls {
    /// Only calls with a simulated latency can hang.
    fn of(random: &mut Random, has_latency: bool) -> Self {
        let switch = |random: &mut Random| random.percent(70);
        Self {
            writes: switch(random) && has_latency,
            machine: switch(random) && has_latency,
            snapshots: switch(random),
            alone: random.percent(15),
            limit: random.of(&[None, Some(Duration::from_secs(1))]),
        }
    }
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let ms = Duration::from_millis;
        let bad_network = random.percent(50);
        let percent = |random: &mut Random, most| random.below(most) as f64 / 100.0;
        let voters = random.of(&[1, 3, 3, 3, 3, 3, 3, 3, 4, 5]);
        let clients = 4 + random.below(5);
        let mut plan = Self {
            seed,
            voters,
            nodes: voters + random.below(3),
            clients,
            fault_period: ms(10_000 + random.below(6_000)),
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
            compact_after: random.of(&[0, 5, 40, 200]),
            compact_keep: random.of(&[0, 3, 20]),
            compact_keep_bytes: random.of(&[300, 64 << 20]),
            compact_hold_bytes: random.of(&[300, 512 << 20]),
            snapshot_chunk_bytes: random.of(&[20, 100]),
            append_entries: random.of(&[1, 3, 4096]),
            apply_entries: random.of(&[1, 3, 4096, 4096]),
            apply_read_bytes: random.of(&[1, 200, 4 << 20]),
            latency: random.of(&[None, Some(ms(2)), Some(ms(10)), Some(ms(40))]),
            sessions_max: clients + random.below(2),
            cache_bytes: random.of(&[0, 500, 4_000, 1 << 20]),
            time_limit: ms(random.of(&[300, 2_000])),
            reads_percent: random.of(&[20, 50]),
            stalls: Stalls { writes: false, machine: false, snapshots: false, alone: false, limit: None },
        };
        plan.stalls = Stalls::of(&mut random, plan.latency.is_some());
        plan
    }

    /// Endpoint of node `id` after `moves` moves.
    pub(crate) fn endpoint(id: u64, moves: u16) -> Endpoint {
        Endpoint::new("node", Self::port(id, moves)).expect("a name and a port")
    }

    pub(crate) fn port(id: u64, moves: u16) -> u16 {
        1000 * (1 + id as u16) + moves
    }

    fn first_members(&self) -> Membership {
        let member = |id| Member { endpoint: Some(Self::endpoint(id, 0)), ..Member::new(MemberKind::Voter) };
        Membership::new((0..self.voters).map(|id| (NodeId(id), member(id))).collect())
    }

    /// Configuration of node `id` at its start number `incarnation`.
    pub(crate) fn config(&self, id: u64, incarnation: u64) -> RaftConfig {
        let mut config = RaftConfig::new(NodeId(id));
        config.protocol.seed = mix(self.seed ^ mix(id ^ mix(incarnation)));
        config.protocol.leadership = LeadershipId(mix(config.protocol.seed) | 1);
        config.protocol.election_timeout = ELECTION_TIMEOUT;
        config.protocol.heartbeat_interval = Duration::from_millis(100);
        config.protocol.lease_drift_percent = 10;
        config.protocol.append_entries_max = self.append_entries;
        config.protocol.promote_lag_entries = 5;
        config.bootstrap = (id < self.voters).then(|| self.first_members());
        config.threads = false;
        let seed = config.protocol.seed;
        let hangs = SimulatedHangs::default();
        config.simulated_latency = self.latency.map(|max| SimulatedLatency { seed, max, hangs });
        (config.storage_stall_limit, config.apply_stall_limit) = (self.stalls.limit, self.stalls.limit);
        config.forward_proposals = self.forward;
        config.proposals_max = self.proposals_max;
        config.reads_max = self.reads_max;
        config.inbox_bytes_max = self.inbox_bytes;
        config.protocol.append_bytes_max = (self.inbox_bytes / 3).min(1 << 20); // A smaller limit would refuse every message.
        config.snapshot_bytes_per_second = self.snapshot_bytes_per_second;
        config.cache_bytes_max = self.cache_bytes;
        config.apply_entries_max = self.apply_entries;
        config.apply_read_bytes_max = self.apply_read_bytes;
        config.compact_after_entries = self.compact_after;
        config.compact_keep_entries = self.compact_keep;
        config.compact_keep_bytes = self.compact_keep_bytes;
        config.compact_hold_bytes = self.compact_hold_bytes;
        config.snapshot_chunk_bytes = self.snapshot_chunk_bytes;
        config.snapshot_retry = Duration::from_millis(300);
        config.snapshot_resume = Duration::from_secs(3);
        config
    }
}

pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
