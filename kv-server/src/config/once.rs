//! Flags for one start. They are neither keys of the file nor environment variables, where they would stay in place.

use clap::Args;

/// Flags for one start.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = ONCE)]
pub(crate) struct Once {
    /// Ids of listed nodes that need not answer before the first start of the cluster.
    ///
    /// A node without data starts a cluster only when all other nodes have answered that they have none, either. Name
    /// nodes that cannot be started and never had data. If a node named here has data of the cluster, that data may be
    /// lost. Default: none.
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub(crate) founding_peers_missing: Vec<u64>,
    /// Uses the endpoints of the file in place of those in the log, and writes them into the cluster's configuration when
    /// this node is the leader.
    ///
    /// It is for a cluster in which so many nodes have new endpoints that there is no leader. Start all nodes with it,
    /// each with the new file.
    #[arg(long)]
    pub(crate) rewrite_endpoints: bool,
    /// Makes this node the only member of its cluster, prints what that means, and exits.
    ///
    /// It is for a cluster that has lost a majority of its nodes for ever. The node must not run. Writes that the
    /// other nodes acknowledged beyond the end of this node's log are lost.
    #[arg(long)]
    pub(crate) force_new_cluster: bool,
}

/// Heading of these flags in `--help`.
pub(crate) const ONCE: &str = "Flags for one start";
