//! Settings of one node's protocol.

use std::time::Duration;

use consensus_core::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

/// Settings of one node's protocol. [`Config::validate`] is called by [`Raft::new`](crate::Raft::new), so that an invalid
/// one cannot be in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// A follower that hears nothing for a time drawn from `election_timeout..2 * election_timeout` asks for votes; a
    /// leader that hears from no quorum for `election_timeout` steps down. Default 500 ms. Shorter finds a dead leader
    /// sooner, and mistakes a slow one for dead more often.
    ///
    /// A follower that is [told](crate::Event::Disconnected) that the leader's process has ended asks within a third of it;
    /// with leases, so long after the leader has been silent for it.
    pub election_timeout: Duration,
    /// A leader says that it is there this often. Default 100 ms; at most half of `election_timeout`.
    pub heartbeat_interval: Duration,
    /// Most entries in one message. Default 4096, at least 1.
    pub append_entries_max: usize,
    /// Most bytes of entries in one message; one entry always goes. Default 1 MiB.
    pub append_bytes_max: u64,
    /// Most messages with entries that a follower may be behind in acknowledging. Default 64, at least 1.
    pub inflight_messages_max: usize,
    /// Most bytes of entries that it may be behind; one message always goes. Default 16 MiB.
    pub inflight_bytes_max: u64,
    /// How far the log of a joining member may lag when it becomes a voter, in entries. Default 1000: what a leader
    /// sends in a moment.
    pub promote_lag_entries: u64,
    /// By how much the clock of one node may run faster than that of another, in percent, at most 50. 0, the default:
    /// not known, and reads by lease ask for a read index instead. The same on every node.
    pub lease_drift_percent: u32,
    /// This node keeps no commands, whatever its membership says of it: it never stands for election.
    pub witness: bool,
    /// Identity that this node gives the cluster if it becomes its first leader; drawn at random at each start, so that two
    /// clusters never get the same one. [`ClusterId::NONE`], the default here, gives none (for tests of the protocol alone).
    pub new_cluster: ClusterId,
    /// Seeds the election timeouts, different on each node, or they would ask for votes at once again and again; and the
    /// ids of questions and forwarded proposals, different at each start, or an answer from before could be taken for one
    /// to a new question.
    pub seed: u64,
}

impl Config {
    /// The defaults for node `id`.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            election_timeout: Duration::from_millis(500),
            heartbeat_interval: Duration::from_millis(100),
            append_entries_max: 4096,
            append_bytes_max: 1 << 20,
            inflight_messages_max: 64,
            inflight_bytes_max: 16 << 20,
            promote_lag_entries: 1000,
            lease_drift_percent: 0,
            witness: false,
            new_cluster: ClusterId::NONE,
            seed: id.0,
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// Says which setting is wrong, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bad = |key, allowed: &str| Err(ConfigError { key, allowed: allowed.to_owned() });
        if self.heartbeat_interval.is_zero() {
            return bad("heartbeat_interval", "more than 0");
        }
        if self.heartbeat_interval > self.election_timeout / 2 || self.election_timeout > TIMEOUT_MAX {
            return bad("election_timeout", "at least twice heartbeat_interval, and at most a day");
        }
        if self.lease_drift_percent > 50 {
            return bad("lease_drift_percent", "at most 50");
        }
        if self.append_entries_max == 0 {
            return bad("append_entries_max", "at least 1");
        }
        if self.inflight_messages_max == 0 {
            return bad("inflight_messages_max", "at least 1");
        }
        if self.inflight_bytes_max == 0 {
            return bad("inflight_bytes_max", "at least 1");
        }
        Ok(())
    }
}

/// Longer only an error is; and what is far beyond could not be added to the time.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A setting is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Which.
    pub key: &'static str,
    /// What it may be.
    pub allowed: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} must be {}", self.key, self.allowed)
    }
}

impl std::error::Error for ConfigError {}
