//! Settings of one node's engine.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use consensus_core::{ClusterId, Endpoint, Membership, NodeId};
use consensus_raft_protocol::{Config, ConfigError};

use crate::{flight::FlightRecorder, latency::SimulatedLatency};

/// Settings of one node's engine; checked by [`RaftEngine::start`](crate::RaftEngine::start).
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Timeouts and limits of the protocol, this node's id among them.
    pub protocol: Config,
    /// The first configuration of the cluster, the same on every node; used only where the log is empty. `None` waits
    /// for a leader to bring it.
    pub bootstrap: Option<Membership>,
    /// Where members listen, in place of what the configuration in this node's log says when the node starts: for members
    /// that moved while no leader could tell the others. A configuration that comes later counts again. The node and the
    /// cluster that answer there must be the same: this changes nobody's vote. Default: empty.
    pub moved_endpoints: BTreeMap<NodeId, Endpoint>,
    /// Whether a proposal on a node that does not lead is handed to the leader, rather than refused. It costs a way to
    /// the leader and back; if the answer is lost nobody knows what became of the command
    /// ([`ProposeError::Unknown`](consensus_core::ProposeError::Unknown)), so clients that propose again do so in a
    /// [session](consensus_core::session). Default: refused, with who leads.
    pub forward_proposals: bool,
    /// Largest command. Default 4 MiB.
    pub command_bytes_max: u64,
    /// Most proposals in flight; more are refused as overload. Default 65 536.
    pub proposals_max: u64,
    /// Most bytes of proposals in flight; more are refused as overload. Default 64 MiB.
    pub proposal_bytes_max: u64,
    /// Most reads waiting for a barrier; more are refused as overload. Default 65 536.
    pub reads_max: u64,
    /// Most bytes of messages from peers that wait to be handled; more are dropped, as a network would. Default 64 MiB.
    pub inbox_bytes_max: u64,
    /// Entries kept in memory for followers that are a little behind; what is older is read from disk. Default 32 MiB.
    pub cache_bytes_max: u64,
    /// Most entries that the state machine is given in one call; what waits behind it, such as a snapshot, waits that long.
    /// Default 4096, at least 1.
    pub apply_entries_max: u64,
    /// Most bytes of entries that are read from the log at once for the state machine, when they are no longer in memory; one
    /// entry is always read. Default 4 MiB.
    pub apply_read_bytes_max: u64,
    /// The log is compacted each time that this many entries have been applied, by one member after another, not by all at
    /// once; 0: never by itself. Default 100 000. Lower saves disk, and costs a flush of the state machine each time.
    pub compact_after_entries: u64,
    /// The log is compacted too when it has grown by this many bytes since the last time; 0: its bytes do not count.
    /// Default 256 MiB.
    pub compact_after_bytes: u64,
    /// Most entries that a compaction leaves, so that a follower briefly absent needs no snapshot. Default 10 000.
    pub compact_keep_entries: u64,
    /// Most bytes that it leaves for the same. Default 64 MiB.
    pub compact_keep_bytes: u64,
    /// Most bytes that it leaves to a follower that answers and is further behind than that, or is being sent a snapshot,
    /// after which it needs the log: or that snapshot would not be the last. Default 512 MiB.
    pub compact_hold_bytes: u64,
    /// Piece of a snapshot stream. Default 256 KiB.
    pub snapshot_chunk_bytes: usize,
    /// Most bytes of a snapshot sent per second, so that it leaves room on the network for the rest. Default 0: no bound.
    pub snapshot_bytes_per_second: u64,
    /// Wait before a piece of a snapshot that could not be sent is sent again, and before work that failed and can be repeated
    /// is done again the first time (a snapshot, a flush of the state machine); then twice as long each time, up to 16 times
    /// as long. Default 1 s.
    pub snapshot_retry: Duration,
    /// How long a transfer waits for a network that fails, to go on where it was; then it is begun anew with a new
    /// snapshot. The old one is kept until then, with what it takes of the disk. Default 60 s.
    pub snapshot_resume: Duration,
    /// Where a snapshot is gathered while it arrives (unlinked files; a crash leaves nothing). Default: the system's
    /// place for temporary files. Needs room for one snapshot.
    pub snapshot_dir: PathBuf,
    /// Bytes of the disk of `snapshot_dir` that a snapshot leaves free while it arrives. What would take more is refused, and
    /// the leader sends a snapshot again later. Default 0: the disk is not asked.
    pub snapshot_reserve_bytes: u64,
    /// Longest time that a write of the log may take. Then the disk counts as stalled: a leader gives leadership away, the
    /// outcome of its proposals is reported as unknown, and the status says so until the write returns. Lower finds a disk that
    /// hangs sooner, and mistakes one that pauses (virtual disks do so for a second now and then) for one that hangs. More than
    /// 0. Default, with `None`: two election timeouts, but at least 2 s.
    pub storage_stall_limit: Option<Duration>,
    /// Longest time that the state machine may take to apply what is handed to it at once, with the same consequences. A
    /// command that takes longer makes each leader give leadership away in turn. More than 0. Default, with `None`: 20 election
    /// timeouts, but at least 10 s.
    pub apply_stall_limit: Option<Duration>,
    /// Whether storage and state machine are called on threads of their own. `false` is for storages and machines in memory,
    /// whose calls do not block: they are called on the engine's own task, without a hop to another thread, and under
    /// tokio's paused clock a run takes no time and can be repeated. One that blocks would hold up heartbeats. Default
    /// `true`; a node without others, which has no heartbeats to hold up, then still does on its task what comes alone, as long
    /// as that takes less than a millisecond and the runtime has another thread for other tasks. (The first write of a disk that
    /// stalls holds up reads, too; the next goes to the thread.)
    pub threads: bool,
    /// How long storage and state machine take where `threads` is `false`, for simulations. Default: no time.
    pub simulated_latency: Option<SimulatedLatency>,
    /// Records what the protocol is told, for `raft-replay`. Default: it does not.
    pub flight_recorder: Option<FlightRecorder>,
}

impl RaftConfig {
    /// The defaults for node `id`, with a seed that was not there before.
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
    /// Says which setting is wrong, and what it may be.
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
        for (key, limit) in
            [("storage_stall_limit", self.storage_stall_limit), ("apply_stall_limit", self.apply_stall_limit)]
        {
            if limit.is_some_and(|limit| limit.is_zero() || limit > STALL_LIMIT_MAX) {
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
    /// Longest time that a write of the log may take.
    pub(crate) fn storage_limit(&self) -> Duration {
        let default = || (2 * self.protocol.election_timeout).max(Duration::from_secs(2));
        self.storage_stall_limit.unwrap_or_else(default)
    }

    /// Longest time that an apply may take.
    pub(crate) fn apply_limit(&self) -> Duration {
        let default = || (20 * self.protocol.election_timeout).max(Duration::from_secs(10));
        self.apply_stall_limit.unwrap_or_else(default)
    }
}

/// A longer limit can only be a mistake.
const STALL_LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the standard library draws for its hash maps.
/// An identity that no other cluster has.
pub(crate) fn new_cluster() -> ClusterId {
    ClusterId(entropy().max(1))
}

fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
