//! Section `[deployment]`: which node this is, and which nodes there are.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use consensus_core::Endpoint;

use super::values::host;

/// Settings of `[deployment]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[deployment]")]
pub(crate) struct Deployment {
    /// Whether the server is a member of a cluster.
    ///
    /// A data directory stays with the mode that it was first used in. Default: `replicated` if nodes are listed, else
    /// `standalone`.
    #[arg(long)]
    pub(crate) mode: Option<Mode>,
    /// Id of this node. Usually a flag or an environment variable, so that all nodes share one file.
    #[arg(long, alias = "node_id", visible_alias = "instance-id", default_value_t = 0)]
    pub(crate) node_id: u64,
    /// Client endpoints (`host:port`) of the nodes, which have the ids 0, 1, 2 and so on in this order.
    ///
    /// The consensus port of a node is its client port + 1000. Default: no nodes.
    #[arg(long, value_delimiter = ',', value_name = "ENDPOINTS")]
    pub(crate) replica_endpoints: Vec<Endpoint>,
    /// Directory of the node's log and state. Default: `./data/node-N`, where N is the node id.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Host name or address to listen at, for example `0.0.0.0` or `::` for all addresses of the machine.
    /// Default: the node's host in the list of nodes; `127.0.0.1` for a standalone server.
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub(crate) listen_host: Option<String>,
    /// Name of the cluster. Nodes of a cluster with another name are refused.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) cluster_name: String,
    /// How a follower handles requests that only the leader can serve.
    ///
    /// `forward` has the leader serve them; `redirect` returns `NotLeader` with the leader's endpoint.
    #[arg(long, default_value = "forward")]
    pub(crate) routing: Routing,
    /// Whether the node joins a running cluster: it starts no cluster, and waits for `kvctl member add`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) join: bool,
    /// Ids of the nodes that vote and keep no data. Two nodes with data and a witness survive the loss of one.
    ///
    /// It is given when the cluster starts, or with `--join` and `kvctl member add --witness`. A node cannot become a
    /// witness later, nor cease to be one. Default: none.
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub(crate) witnesses: Vec<u64>,
}

/// With or without consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// One node, without consensus.
    Standalone,
    /// A member of a cluster.
    Replicated,
}

/// How a follower handles requests that only the leader can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Routing {
    /// The leader serves them on the follower's behalf.
    Forward,
    /// The client gets `NotLeader` with the leader's endpoint.
    Redirect,
}
