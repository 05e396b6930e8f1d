//! Section `[cluster]`: health checks, elections, leases.

use std::time::Duration;

use clap::Args;

use super::values::{DAY, MILLISECOND, duration, number};

/// Settings of `[cluster]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[cluster]")]
pub(crate) struct Cluster {
    /// Interval at which this node asks each other node for its status.
    #[arg(long, alias = "health-check-interval-ms", default_value = "2s", value_name = "DURATION",
        value_parser = duration(MILLISECOND..=DAY))]
    pub(crate) health_check_interval: Duration,
    /// Time without a response after which a node is shown as failed; at least the health check interval.
    ///
    /// It is for people: elections depend on the election timeout and the heartbeat interval.
    #[arg(long, alias = "node-timeout-ms", default_value = "10s", value_name = "DURATION",
        value_parser = duration(MILLISECOND..))]
    pub(crate) node_timeout: Duration,
    /// Time without a message from the leader after which a follower starts an election; the follower waits once to
    /// twice this long, chosen at random.
    ///
    /// It is the same on all nodes, and at least twice the heartbeat interval. A follower whose connection
    /// to the leader was closed, and is refused when it connects again, starts an election within a third of this.
    #[arg(long, alias = "election-timeout-ms", default_value = "500ms", value_name = "DURATION",
        value_parser = duration(MILLISECOND..=DAY))]
    pub(crate) election_timeout: Duration,
    /// Interval at which a leader sends heartbeats; at most half of the election timeout.
    #[arg(long, alias = "heartbeat-interval-ms", default_value = "100ms", value_name = "DURATION",
        value_parser = duration(MILLISECOND..=DAY))]
    pub(crate) heartbeat_interval: Duration,
    /// Longest time that a write of the log may take. After that the disk counts as stalled: a leader transfers its leadership,
    /// and `kvctl status` says so.
    ///
    /// Lower finds a disk that hangs sooner, and mistakes a disk that pauses for one that hangs. Default: two election timeouts,
    /// and at least 2s.
    #[arg(long, value_name = "DURATION", value_parser = duration(MILLISECOND..=DAY))]
    pub(crate) storage_stall_limit: Option<Duration>,
    /// Longest time that the state machine may take to apply what it is given at once. After that it counts as stalled: a
    /// leader transfers its leadership, and `kvctl status` says so.
    ///
    /// Default: 20 election timeouts, and at least 10s.
    #[arg(long, value_name = "DURATION", value_parser = duration(MILLISECOND..=DAY))]
    pub(crate) apply_stall_limit: Option<Duration>,
    /// Interval at which the leader has all nodes compute the checksum of their states as of one entry of the log, and compares
    /// them. If they differ, the alarm CORRUPT is raised for the node that differs from most, and commands are refused.
    ///
    /// Each check reads the whole state on each node, beside other work. 0: no checks.
    #[arg(long, default_value = "0", value_name = "DURATION", value_parser = duration(Duration::ZERO..))]
    pub(crate) state_check_interval: Duration,
    /// Greatest difference between the speeds of two nodes' clocks, in percent. With it, reads with the
    /// consistency `LEASE` cost no message.
    ///
    /// 0: the difference is not known, and these reads are served as `LINEARIZABLE`.
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = number(0_u32..=50))]
    pub(crate) lease_drift_percent: u32,
}
