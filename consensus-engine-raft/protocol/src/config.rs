//! Settings of the protocol on one node.

use std::time::Duration;

use consensus_core::{ClusterId, LeadershipId, NodeId};
use serde::{Deserialize, Serialize};

/// Settings of the protocol on one node. [`Raft::new`](crate::Raft::new) calls [`Config::validate`], so a running node never
/// has invalid settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Id of this node.
    pub id: NodeId,
    /// Base of the election timeout. A follower that hears no leader for a random time in
    /// `election_timeout..2 * election_timeout` campaigns; a leader that hears no quorum for `election_timeout` steps down.
    /// Default 500 ms. A shorter timeout detects a dead leader sooner, and mistakes a slow one for dead more often.
    ///
    /// A follower that is [told](crate::Event::Disconnected) that the leader's process has ended campaigns within a third of
    /// this time; with leases, that third starts when the leader has been silent for `election_timeout`.
    pub election_timeout: Duration,
    /// Interval of a leader's heartbeats. Default 100 ms; at most half of `election_timeout`.
    pub heartbeat_interval: Duration,
    /// Maximum number of entries in one message. Default 4096, at least 1.
    pub append_entries_max: usize,
    /// Maximum number of bytes of entries in one message, except that one entry is always sent. Default 1 MiB.
    pub append_bytes_max: u64,
    /// Maximum number of unacknowledged messages with entries per follower. Default 64, at least 1.
    pub inflight_messages_max: usize,
    /// Maximum number of unacknowledged bytes of entries per follower, except that one message is always sent. Default 16
    /// MiB.
    pub inflight_bytes_max: u64,
    /// Maximum number of entries that the log of a joining member may lag behind when it becomes a voter. Default 1000,
    /// which a leader sends within moments.
    pub promote_lag_entries: u64,
    /// Percentage by which the clock of one node may run faster than that of another, at most 50. 0, the default, means
    /// unknown: lease reads then use ReadIndex instead. Must be the same on every node.
    pub lease_drift_percent: u32,
    /// Whether this node keeps no commands. Such a node never campaigns, whatever the configuration says of it.
    pub witness: bool,
    /// Identity that this node gives the cluster if it becomes its first leader. The engine draws it at random at each
    /// start, so that no two clusters share one. [`ClusterId::NONE`], the default here, gives no identity (for tests of the
    /// protocol alone).
    pub new_cluster: ClusterId,
    /// Number of the leaderships of this node until it ends. The engine draws it at random at each start, so that a node whose
    /// disk is an old copy does not lead under the number that it had before. [`LeadershipId::NONE`], the default here, names no
    /// leaderships (for tests of the protocol alone).
    pub leadership: LeadershipId,
    /// Seed of the election timeouts and of the ids of ReadIndex requests and forwarded proposals. It must differ between
    /// nodes, or they would campaign at the same times again and again. It must differ at each start, or a late response to
    /// a request of an earlier incarnation could match a new request.
    pub seed: u64,
}

impl Config {
    /// Returns the default settings of node `id`.
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
            leadership: LeadershipId::NONE,
            seed: id.0,
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first invalid setting, and its allowed values.
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

/// A longer timeout can only be a mistake, and a much longer one would overflow when it is added to the time.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// An invalid setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Name of the setting.
    pub key: &'static str,
    /// Allowed values, in words that follow "must be".
    pub allowed: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} must be {}", self.key, self.allowed)
    }
}

impl std::error::Error for ConfigError {}
