//! Settings of one node's engine.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use consensus_core::{ClusterId, Endpoint, LeadershipId, Membership, NodeId};
use consensus_raft_protocol::{Config, ConfigError};

use crate::{flight::FlightRecorder, latency::SimulatedLatency};

/// Settings of one node's engine. [`RaftEngine::start`](crate::RaftEngine::start) validates them.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Timeouts and limits of the protocol, and this node's id.
    pub protocol: Config,
    /// First configuration of the cluster, the same on every node. Used only if the log is empty. With `None` the node waits
    /// for a leader that sends one.
    pub bootstrap: Option<Membership>,
    /// Endpoints that replace those of the configuration in this node's log at start, for members that moved while no leader
    /// could record their new endpoints. A later configuration takes precedence again. The same node of the same cluster
    /// must listen at the new endpoint: votes and quorums do not change. Default: empty.
    pub moved_endpoints: BTreeMap<NodeId, Endpoint>,
    /// Whether a node that is not leader forwards proposals to the leader instead of refusing them. It costs one round trip
    /// to the leader. If the response is lost, the outcome of the command is unknown
    /// ([`ProposeError::Unknown`](consensus_core::ProposeError::Unknown)), so clients that propose again use a
    /// [session](consensus_core::session). Default `false`: the error names the leader.
    pub forward_proposals: bool,
    /// Maximum size of one command in bytes. Default 4 MiB.
    pub command_bytes_max: u64,
    /// Maximum number of proposals in flight; more are refused as overload. Default 65 536.
    pub proposals_max: u64,
    /// Maximum total size of proposals in flight in bytes; more are refused as overload. Default 64 MiB.
    pub proposal_bytes_max: u64,
    /// Maximum number of reads that wait for a barrier; more are refused as overload. Default 65 536.
    pub reads_max: u64,
    /// Maximum bytes of messages from peers that wait to be processed; more are dropped, as a network may do. Default 64
    /// MiB.
    pub inbox_bytes_max: u64,
    /// Bytes of recent entries that are kept in memory for followers; older ones are read from disk. Default 32 MiB.
    pub cache_bytes_max: u64,
    /// Maximum number of entries in one call of the state machine. Other work for the state machine, such as a snapshot,
    /// waits for the call. Default 4096, at least 1.
    pub apply_entries_max: u64,
    /// Maximum bytes of entries in one read of the log for the state machine, for entries that are not in memory any more.
    /// One entry is always read. Default 4 MiB.
    pub apply_read_bytes_max: u64,
    /// Number of applied entries after which the log is compacted. Members compact in turn, not all at once. 0 disables
    /// this rule. Default 100 000. A lower value uses less disk space, and costs a flush of the state machine each time.
    pub compact_after_entries: u64,
    /// Bytes by which the log may grow before it is compacted. 0 disables this rule. Default 256 MiB.
    pub compact_after_bytes: u64,
    /// Maximum number of entries that a compaction keeps, so that a follower that was briefly absent needs no snapshot.
    /// Default 10 000.
    pub compact_keep_entries: u64,
    /// Maximum bytes of entries that a compaction keeps for the same purpose. Default 64 MiB.
    pub compact_keep_bytes: u64,
    /// Maximum bytes of entries that a compaction keeps for a follower that is in touch and further behind, or that is being
    /// sent a snapshot: it needs the entries after the snapshot, or it would need another snapshot. Default 512 MiB.
    pub compact_hold_bytes: u64,
    /// Size of one chunk of a snapshot stream in bytes. Default 256 KiB, at least 1.
    pub snapshot_chunk_bytes: usize,
    /// Maximum bytes of snapshots sent per second, to leave network bandwidth for other messages. Default 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// Pause before a snapshot chunk that could not be sent is sent again, and before failed work (a snapshot, a flush of
    /// the state machine) is retried for the first time. The pause doubles with each further failure, up to 16 times its
    /// length. Default 1 s.
    pub snapshot_retry: Duration,
    /// Maximum time for which a snapshot transfer waits for a failing network and then continues at the same chunk. After it
    /// the transfer starts again with a new snapshot. The old snapshot uses disk space until then. Default 60 s.
    pub snapshot_resume: Duration,
    /// Directory for snapshots while they arrive, in unlinked files, so that a crash leaves nothing behind. Needs room for
    /// one snapshot. Default: the system's directory for temporary files.
    pub snapshot_dir: PathBuf,
    /// Bytes that an arriving snapshot must leave free on the disk of `snapshot_dir`. A larger snapshot is refused, and the
    /// leader sends one again later. Default 0: free space is not checked.
    pub snapshot_reserve_bytes: u64,
    /// Time for which a leader waits until a proposal is committed, or until it may answer a read. After that the outcome of
    /// the proposal is unknown ([`ProposeError::Unknown`](consensus_core::ProposeError::Unknown)), and the read fails
    /// ([`ReadError::TimedOut`](consensus_core::ReadError::TimedOut)). A leader without a quorum steps down sooner; this limit
    /// counts if the disks of a quorum hang. More than 0, at most a day. Default (`None`): 5 s and two election timeouts.
    pub wait_limit: Option<Duration>,
    /// Time limit of one log write. When it is exceeded, the disk counts as stalled: a leader transfers leadership, reports
    /// the outcome of its proposals as unknown, and the status shows the stall until the write returns. A lower limit
    /// detects a hanging disk sooner, and mistakes a slow one for hanging more often (virtual disks pause for a second now
    /// and then). More than 0, at most a day. Default (`None`): two election timeouts, but at least 2 s.
    pub storage_stall_limit: Option<Duration>,
    /// Time limit of one apply call of the state machine, with the same consequences. A command that takes longer makes each
    /// leader transfer leadership in turn. More than 0, at most a day. Default (`None`): 20 election timeouts, but at least
    /// 10 s.
    pub apply_stall_limit: Option<Duration>,
    /// Whether storage and state machine are called on dedicated threads. `false` is for those in memory, whose calls do not
    /// block: the engine's own task calls them, without switching threads, and under tokio's paused clock a run takes no
    /// time and is repeatable. Calls that block would delay heartbeats. Default `true`. The only member of a cluster sends
    /// no heartbeats; with `true` its task still makes small calls inline, as long as they take less than a millisecond and
    /// the runtime has another thread for other tasks. (A call that takes longer than 50 to 100 ms is left to the runtime's
    /// thread that makes it, and the engine goes on without it.)
    pub threads: bool,
    /// Simulated latency of storage and state machine where `threads` is `false`. Default: none.
    pub simulated_latency: Option<SimulatedLatency>,
    /// Records all inputs of the protocol, for `raft-replay`. Default: no recording.
    pub flight_recorder: Option<FlightRecorder>,
}

impl RaftConfig {
    /// Returns the default settings of node `id`, with a random seed.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        let mut protocol = Config::new(id);
        protocol.seed = id.0 ^ entropy();
        protocol.new_cluster = new_cluster();
        Self {
            protocol,
            bootstrap: None,
            moved_endpoints: BTreeMap::new(),
            forward_proposals: false,
            command_bytes_max: 4 << 20,
            proposals_max: 65_536,
            proposal_bytes_max: 64 << 20,
            reads_max: 65_536,
            inbox_bytes_max: 64 << 20,
            cache_bytes_max: 32 << 20,
            apply_entries_max: 4096,
            apply_read_bytes_max: 4 << 20,
            compact_after_entries: 100_000,
            compact_after_bytes: 256 << 20,
            compact_keep_entries: 10_000,
            compact_keep_bytes: 64 << 20,
            compact_hold_bytes: 512 << 20,
            snapshot_chunk_bytes: 256 << 10,
            snapshot_bytes_per_second: 0,
            snapshot_retry: Duration::from_secs(1),
            snapshot_resume: Duration::from_secs(60),
            snapshot_dir: std::env::temp_dir(),
            snapshot_reserve_bytes: 0,
            wait_limit: None,
            storage_stall_limit: None,
            apply_stall_limit: None,
            threads: true,
            simulated_latency: None,
            flight_recorder: None,
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first invalid setting, and its allowed values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.protocol.validate()?;
        let bad = |key, allowed: &str| Err(ConfigError { key, allowed: allowed.to_owned() });
        if self.proposals_max == 0 {
            return bad("proposals_max", "at least 1");
        }
        if self.command_bytes_max > self.proposal_bytes_max {
            return bad("proposal_bytes_max", "at least command_bytes_max");
        }
        if self.apply_entries_max == 0 {
            return bad("apply_entries_max", "at least 1");
        }
        if self.snapshot_chunk_bytes == 0 {
            return bad("snapshot_chunk_bytes", "at least 1");
        }
        for (key, limit) in [
            ("wait_limit", self.wait_limit),
            ("storage_stall_limit", self.storage_stall_limit),
            ("apply_stall_limit", self.apply_stall_limit),
        ] {
            if limit.is_some_and(|limit| limit.is_zero() || limit > LIMIT_MAX) {
                return bad(key, "more than 0, and at most a day");
            }
        }
        if self.flight_recorder.as_ref().is_some_and(|recorder| recorder.bytes_max < 1 << 20) {
            return bad("flight_recorder.bytes_max", "at least 1 MiB");
        }
        Ok(())
    }
}

impl RaftConfig {
    /// Time limit of a proposal or a read at the leader.
    pub(crate) fn wait_limit(&self) -> Duration {
        self.wait_limit.unwrap_or_else(|| Duration::from_secs(5) + 2 * self.protocol.election_timeout)
    }

    /// Time limit of one log write.
    pub(crate) fn storage_limit(&self) -> Duration {
        let default = || (2 * self.protocol.election_timeout).max(Duration::from_secs(2));
        self.storage_stall_limit.unwrap_or_else(default)
    }

    /// Time limit of one apply call.
    pub(crate) fn apply_limit(&self) -> Duration {
        let default = || (20 * self.protocol.election_timeout).max(Duration::from_secs(10));
        self.apply_stall_limit.unwrap_or_else(default)
    }
}

/// A longer limit can only be a mistake.
const LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Draws the identity of a new cluster, which no other cluster has.
pub(crate) fn new_cluster() -> ClusterId {
    ClusterId(entropy().max(1))
}

/// Draws the number of a node's leaderships, which no other start of a node has.
pub(crate) fn new_leadership() -> LeadershipId {
    LeadershipId(entropy().max(1))
}

/// Random bits from the standard library's seed of hash maps.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
