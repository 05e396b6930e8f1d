//! Flags for one start. They are neither keys of the file nor environment variables, where they would stay in place.

use std::path::PathBuf;

use clap::Args;

use super::values::number;

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
    /// Checks the settings of all layers, and the files that they name; prints all errors at once, or one line; and exits.
    ///
    /// Nothing is changed, and no port is opened: whether ports are free, hosts have addresses and other nodes answer is not checked. The
    /// exit code is 0 if a start would find nothing wrong, otherwise 2.
    #[arg(long)]
    pub(crate) check_config: bool,
    /// Makes this node the only member of its cluster, prints what that means, and exits.
    ///
    /// It is for a cluster that has lost a majority of its nodes for ever. The node must not run. Writes that the
    /// other nodes acknowledged beyond the end of this node's log are lost.
    #[arg(long)]
    pub(crate) force_new_cluster: bool,
    /// Makes a new data directory from this backup, prints what that means, and exits.
    ///
    /// The data directory must not exist, or be empty. A node of a cluster becomes the only member of a new cluster, with a new
    /// identity; the others join it. Default: none.
    #[arg(long, value_name = "FILE")]
    pub(crate) restore: Option<PathBuf>,
    /// Makes a new data directory from this snapshot of etcd 3.4 to 3.7 (`etcdctl snapshot save`), prints what that means, and exits.
    ///
    /// With `--bump-revision 0` keys keep their revisions and history; leases have their whole time to live; users keep their
    /// passwords. Otherwise it is as with `--restore`. Default: none.
    #[arg(long, value_name = "FILE")]
    pub(crate) import_etcd: Option<PathBuf>,
    /// Number by which `--restore` and `--import-etcd` raise the revision of the store. All revisions before count as compacted then, so that clients that
    /// saw later revisions than the backup has notice it. 0: the revision of the backup, and its history.
    #[arg(long, default_value_t = 1_000_000_000, value_name = "COUNT", value_parser = number(0_u64..=MAX_BUMP))]
    pub(crate) bump_revision: u64,
    /// Checks this backup, prints its revision and number of keys, and exits. Default: none.
    #[arg(long, value_name = "FILE")]
    pub(crate) check_backup: Option<PathBuf>,
}

/// Greatest number by which a revision is raised.
const MAX_BUMP: u64 = 1 << 48;

/// Heading of these flags in `--help`.
pub(crate) const ONCE: &str = "Flags for one start";
