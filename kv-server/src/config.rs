//! What to start: flags, environment, file, defaults - the first that says something counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use consensus_core::{Endpoint, NodeId};
use serde::Deserialize;

/// A replicated key-value server. Without --config it stands alone.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    /// Port for clients. A cluster's node has it from the file.
    #[arg(long, env = "KV_PORT")]
    port: Option<u16>,
    /// Address to listen at, for example 0.0.0.0 for all. Default: the node's host in the file; 127.0.0.1 alone.
    #[arg(long, env = "KV_LISTEN_HOST")]
    listen_host: Option<String>,
    /// TOML file that describes the cluster.
    #[arg(long, env = "KV_CONFIG")]
    config: Option<PathBuf>,
    /// Which node of the file this is. Default: instance_id in the file.
    #[arg(long, alias = "node_id", env = "KV_NODE_ID")]
    node_id: Option<u64>,
    /// The node joins a running cluster: it waits to be added by `kvctl member add`.
    #[arg(long, env = "KV_JOIN", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    join: Option<bool>,
    /// Nodes of the file, as 1,2,.., that need not answer before the very first start of the cluster. A node without data
    /// begins a cluster only when all others have answered that they have none, either; name those that cannot be started
    /// and never had data. A node named here that has the cluster's data may cost that data.
    #[arg(long, value_delimiter = ',')]
    founding_peers_missing: Option<Vec<u64>>,
    /// Where the node keeps its data. Default: ./data/node-N, where N is the node id.
    #[arg(long, env = "KV_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// "standalone" or "replicated".
    #[arg(long, env = "KV_MODE")]
    mode: Option<Mode>,
    /// What a follower does with what only the leader can do.
    #[arg(long, env = "KV_ROUTING")]
    routing: Option<Routing>,
    /// Client endpoints of all nodes, separated by commas, in place of the file's.
    #[arg(long, env = "KV_REPLICA_ENDPOINTS", value_delimiter = ',')]
    replica_endpoints: Option<Vec<Endpoint>>,
    /// Nodes of another cluster name are refused.
    #[arg(long, env = "KV_CLUSTER_NAME")]
    cluster_name: Option<String>,
    /// How often the other nodes are asked how they are, in ms.
    #[arg(long, env = "KV_HEALTH_CHECK_INTERVAL_MS")]
    health_check_interval_ms: Option<u64>,
    /// A node not seen for so long counts as failed, in ms.
    #[arg(long, env = "KV_NODE_TIMEOUT_MS")]
    node_timeout_ms: Option<u64>,
    /// A follower that hears nothing for once to twice this long asks for votes, in ms.
    #[arg(long, env = "KV_ELECTION_TIMEOUT_MS")]
    election_timeout_ms: Option<u64>,
    /// A leader says that it is there this often, in ms; at most half of the election timeout.
    #[arg(long, env = "KV_HEARTBEAT_INTERVAL_MS")]
    heartbeat_interval_ms: Option<u64>,
    /// The log is compacted after so many entries; 0: never.
    #[arg(long, env = "KV_COMPACT_AFTER_ENTRIES")]
    compact_after_entries: Option<u64>,
    /// The log is compacted too when it has grown by so many MiB; 0: its size does not count.
    #[arg(long, env = "KV_COMPACT_AFTER_MIB")]
    compact_after_mib: Option<u64>,
    /// By how much one node's clock may run faster than another's, in percent; 0: not known, no lease reads.
    #[arg(long, env = "KV_LEASE_DRIFT_PERCENT")]
    lease_drift_percent: Option<u32>,
    /// Entries that a compaction leaves at most, for followers that are away for a moment.
    #[arg(long, env = "KV_COMPACT_KEEP_ENTRIES")]
    compact_keep_entries: Option<u64>,
    /// MiB that it leaves at most for the same.
    #[arg(long, env = "KV_COMPACT_KEEP_MIB")]
    compact_keep_mib: Option<u64>,
    /// MiB that it leaves at most for a follower that answers and is further behind, or receives a snapshot.
    #[arg(long, env = "KV_COMPACT_HOLD_MIB")]
    compact_hold_mib: Option<u64>,
    /// Sessions kept; beyond, the one idle longest is forgotten.
    #[arg(long, env = "KV_SESSIONS_MAX")]
    sessions_max: Option<u64>,
    /// Room on the disk that is kept free, in MiB: with less, writes are refused until there is more. 0: none is kept.
    #[arg(long, env = "KV_DISK_RESERVE_MIB")]
    disk_reserve_mib: Option<u64>,
    /// Which nodes vote and keep no data, as 1,2,..: two nodes with data and a witness survive the loss of one.
    #[arg(long, env = "KV_WITNESSES", value_delimiter = ',')]
    witnesses: Option<Vec<u64>>,
    /// Records what consensus is told, in at most so many MiB below the data directory, for raft-replay. 0, the default: it
    /// does not.
    #[arg(long, env = "KV_FLIGHT_RECORDER_MIB")]
    flight_recorder_mib: Option<u64>,
    /// Snapshots are sent to other nodes at most so fast, in MiB per second, so that they leave room for the rest. 0, the
    /// default: no bound.
    #[arg(long, env = "KV_SNAPSHOT_MIB_PER_SECOND")]
    snapshot_mib_per_second: Option<u64>,
    /// What the log lies in. Default: what there is in the data directory; in a new one, wal.
    #[arg(long, env = "KV_LOG_STORAGE")]
    log_storage: Option<LogKind>,
    /// For when a majority is lost for good: makes this node, which must not run, the only member of its cluster, says
    /// what that means, and exits. What the others had beyond its log is lost.
    #[arg(long)]
    pub(crate) force_new_cluster: bool,
    /// For when so many nodes got other endpoints that there is no leader: this node goes by the endpoints of its file in
    /// place of those in its log, and writes them into the cluster's configuration when it leads. Start all nodes so, once,
    /// each with the new file.
    #[arg(long)]
    rewrite_endpoints: bool,
    /// What to log, as tracing's EnvFilter understands it.
    #[arg(long, env = "KV_LOG", default_value = "info")]
    pub(crate) log: String,
}

/// With or without consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// One node, no consensus.
    Standalone,
    /// A member of a cluster.
    Replicated,
}

/// What a follower does with what only the leader can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Routing {
    /// Has the leader do it.
    #[default]
    Forward,
    /// Answers NotLeader, with the leader's endpoint.
    Redirect,
}

/// What the log lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogKind {
    /// Files of its own: `consensus-storage-wal`.
    Wal,
    /// A RocksDB: `consensus-storage-rocksdb`.
    Rocksdb,
}

/// The file. Every key is optional; an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    deployment: Deployment,
    cluster: Cluster,
    log: Log,
    nodes: Vec<NodeEntry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Deployment {
    mode: Option<Mode>,
    instance_id: Option<u64>,
    replica_endpoints: Vec<Endpoint>,
    data_dir: Option<PathBuf>,
    listen_host: Option<String>,
    cluster_name: Option<String>,
    routing: Option<Routing>,
    sessions_max: Option<u64>,
    join: Option<bool>,
    #[serde(default)]
    witnesses: Vec<u64>,
    disk_reserve_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cluster {
    health_check_interval_ms: Option<u64>,
    node_timeout_ms: Option<u64>,
    election_timeout_ms: Option<u64>,
    heartbeat_interval_ms: Option<u64>,
    lease_drift_percent: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    compact_after_entries: Option<u64>,
    compact_after_mib: Option<u64>,
    compact_keep_entries: Option<u64>,
    compact_keep_mib: Option<u64>,
    compact_hold_mib: Option<u64>,
    flight_recorder_mib: Option<u64>,
    snapshot_mib_per_second: Option<u64>,
    storage: Option<LogKind>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    id: u64,
    client_endpoint: Endpoint,
    consensus_endpoint: Option<Endpoint>,
}

/// What to start, checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node: NodeId,
    pub(crate) data_dir: PathBuf,
    /// Where clients are listened for.
    pub(crate) client_listen: Endpoint,
    pub(crate) sessions_max: u64,
    pub(crate) disk_reserve_bytes: u64,
    /// `None` standing alone.
    pub(crate) cluster: Option<ClusterSettings>,
}

/// What a member of a cluster needs besides.
#[derive(Clone, Debug)]
pub(crate) struct ClusterSettings {
    pub(crate) name: String,
    /// The node waits to be added rather than begin a cluster of `nodes`.
    pub(crate) join: bool,
    /// Nodes that need not answer before the first start of the cluster.
    pub(crate) founding_peers_missing: BTreeSet<NodeId>,
    /// The endpoints of `nodes` count for more than those of the log, and go into the cluster's configuration.
    pub(crate) rewrite_endpoints: bool,
    pub(crate) lease_drift_percent: u32,
    pub(crate) witnesses: BTreeSet<NodeId>,
    /// All nodes, this one included.
    pub(crate) nodes: BTreeMap<NodeId, NodeEndpoints>,
    pub(crate) consensus_listen: Endpoint,
    pub(crate) routing: Routing,
    pub(crate) health_check_interval: Duration,
    pub(crate) node_timeout: Duration,
    pub(crate) election_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) compact_after_entries: u64,
    pub(crate) compact_after_bytes: u64,
    pub(crate) compact_keep_entries: u64,
    pub(crate) compact_keep_bytes: u64,
    pub(crate) compact_hold_bytes: u64,
    /// 0: no recording.
    pub(crate) flight_recorder_bytes: u64,
    /// 0: no bound.
    pub(crate) snapshot_bytes_per_second: u64,
    /// `None`: what there is, or the faster.
    pub(crate) log: Option<LogKind>,
}

/// Where a node is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeEndpoints {
    pub(crate) client: Endpoint,
    pub(crate) consensus: Endpoint,
}

/// A setting is wrong. It says where, which, its value, and what is allowed.
#[derive(Debug)]
pub(crate) struct ConfigError {
    place: String,
    why: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

impl Settings {
    pub(crate) fn from_arguments(arguments: Arguments) -> Result<Self, ConfigError> {
        let file = match &arguments.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let place =
            arguments.config.as_ref().map_or("settings".to_owned(), |path| path.display().to_string());
        Builder { arguments, file, place }.build()
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let error = |why: String| ConfigError { place: path.display().to_string(), why };
    let text = std::fs::read_to_string(path).map_err(|bad| error(format!("cannot be read: {bad}")))?;
    toml::from_str(&text).map_err(|bad| error(bad.to_string()))
}

/// For the crate `fuzz`: what these flags and this file come to.
pub(crate) fn from_text(flags: &[&str], file: &str) -> Result<Settings, ConfigError> {
    let error = |why: String| ConfigError { place: PLACE.to_owned(), why };
    let arguments = Arguments::try_parse_from(std::iter::once(&"kv-server").chain(flags));
    let arguments = arguments.map_err(|bad| error(bad.to_string()))?;
    let file: File = toml::from_str(file).map_err(|bad| error(bad.to_string()))?;
    Builder { arguments, file, place: PLACE.to_owned() }.build()
}

struct Builder {
    arguments: Arguments,
    file: File,
    place: String,
}

impl Builder {
    fn error<T>(&self, key: &str, value: impl fmt::Display, allowed: &str) -> Result<T, ConfigError> {
        Err(ConfigError { place: self.place.clone(), why: format!("{key} = {value}: {allowed}") })
    }

    fn build(self) -> Result<Settings, ConfigError> {
        let (arguments, deployment) = (&self.arguments, &self.file.deployment);
        let has_cluster = arguments.replica_endpoints.is_some() || !deployment.replica_endpoints.is_empty();
        let has_cluster = has_cluster || !self.file.nodes.is_empty();
        let by_default = if has_cluster { Mode::Replicated } else { Mode::Standalone };
        let node = NodeId(arguments.node_id.or(deployment.instance_id).unwrap_or(0));
        let data_dir = arguments.data_dir.clone().or_else(|| deployment.data_dir.clone());
        let data_dir = data_dir.unwrap_or_else(|| PathBuf::from(format!("./data/node-{node}")));
        let sessions_max = arguments.sessions_max.or(deployment.sessions_max).unwrap_or(10_000);
        if sessions_max == 0 {
            return self.error("sessions_max", 0, "it must be at least 1");
        }
        let reserve = arguments.disk_reserve_mib.or(deployment.disk_reserve_mib).unwrap_or(DISK_RESERVE_MIB);
        let disk_reserve_bytes = self.mebibytes("disk_reserve_mib", reserve)?;
        let (client_listen, cluster) = match arguments.mode.or(deployment.mode).unwrap_or(by_default) {
            Mode::Standalone => (self.listen("127.0.0.1", arguments.port.unwrap_or(9090))?, None),
            Mode::Replicated => {
                let (listen, cluster) = self.cluster(node)?;
                (listen, Some(cluster))
            }
        };
        Ok(Settings { node, data_dir, client_listen, sessions_max, disk_reserve_bytes, cluster })
    }

    fn mebibytes(&self, key: &str, count: u64) -> Result<u64, ConfigError> {
        count.checked_mul(1 << 20).map_or_else(|| self.error(key, count, "no disk is that large"), Ok)
    }

    /// A place to listen at: the host as configured, else `host`.
    fn listen(&self, host: &str, port: u16) -> Result<Endpoint, ConfigError> {
        let host = self
            .arguments
            .listen_host
            .as_deref()
            .or(self.file.deployment.listen_host.as_deref())
            .unwrap_or(host);
        Endpoint::new(host, port).or_else(|error| self.error("listen_host", host, &error.to_string()))
    }

    fn cluster(&self, node: NodeId) -> Result<(Endpoint, ClusterSettings), ConfigError> {
        let nodes = self.nodes()?;
        let Some(own) = nodes.get(&node) else {
            let known: Vec<String> = nodes.keys().map(NodeId::to_string).collect();
            let allowed = format!("the nodes of this cluster are {}", known.join(", "));
            return self.error("node_id", node, &allowed);
        };
        if let Some(port) = self.arguments.port.filter(|port| *port != own.client.port()) {
            let allowed = format!(
                "node {node} is at {} in the cluster's endpoints, where the others look for it",
                own.client
            );
            return self.error("port", port, &allowed);
        }
        let (arguments, file) = (&self.arguments, &self.file);
        let witnesses = arguments.witnesses.as_ref().unwrap_or(&file.deployment.witnesses);
        let witnesses: BTreeSet<NodeId> = witnesses.iter().copied().map(NodeId).collect();
        let missing = arguments.founding_peers_missing.iter().flatten().copied().map(NodeId).collect();
        let ms = |flag: Option<u64>, file: Option<u64>, default| {
            Duration::from_millis(flag.or(file).unwrap_or(default))
        };
        let settings = ClusterSettings {
            name: arguments
                .cluster_name
                .clone()
                .or_else(|| file.deployment.cluster_name.clone())
                .unwrap_or("default".into()),
            join: arguments.join.or(file.deployment.join).unwrap_or(false),
            founding_peers_missing: missing,
            rewrite_endpoints: arguments.rewrite_endpoints,
            lease_drift_percent: arguments
                .lease_drift_percent
                .or(file.cluster.lease_drift_percent)
                .unwrap_or(0),
            consensus_listen: self.listen(own.consensus.host(), own.consensus.port())?,
            routing: arguments.routing.or(file.deployment.routing).unwrap_or_default(),
            health_check_interval: ms(
                arguments.health_check_interval_ms,
                file.cluster.health_check_interval_ms,
                2000,
            ),
            node_timeout: ms(arguments.node_timeout_ms, file.cluster.node_timeout_ms, 10_000),
            election_timeout: ms(arguments.election_timeout_ms, file.cluster.election_timeout_ms, 500),
            heartbeat_interval: ms(arguments.heartbeat_interval_ms, file.cluster.heartbeat_interval_ms, 100),
            compact_after_entries: arguments
                .compact_after_entries
                .or(file.log.compact_after_entries)
                .unwrap_or(100_000),
            compact_after_bytes: self.mebibytes(
                "compact_after_mib",
                arguments.compact_after_mib.or(file.log.compact_after_mib).unwrap_or(256),
            )?,
            compact_keep_entries: arguments
                .compact_keep_entries
                .or(file.log.compact_keep_entries)
                .unwrap_or(10_000),
            compact_keep_bytes: self.mebibytes(
                "compact_keep_mib",
                arguments.compact_keep_mib.or(file.log.compact_keep_mib).unwrap_or(64),
            )?,
            compact_hold_bytes: self.mebibytes(
                "compact_hold_mib",
                arguments.compact_hold_mib.or(file.log.compact_hold_mib).unwrap_or(512),
            )?,
            flight_recorder_bytes: self.mebibytes(
                "flight_recorder_mib",
                arguments.flight_recorder_mib.or(file.log.flight_recorder_mib).unwrap_or(0),
            )?,
            snapshot_bytes_per_second: self.mebibytes(
                "snapshot_mib_per_second",
                arguments.snapshot_mib_per_second.or(file.log.snapshot_mib_per_second).unwrap_or(0),
            )?,
            log: arguments.log_storage.or(file.log.storage),
            witnesses,
            nodes: nodes.clone(),
        };
        self.check(node, &settings)?;
        Ok((self.listen(own.client.host(), own.client.port())?, settings))
    }

    fn check(&self, node: NodeId, settings: &ClusterSettings) -> Result<(), ConfigError> {
        let ms = |time: Duration| time.as_millis();
        let is_peer = |id: &&NodeId| **id != node && settings.nodes.contains_key(*id);
        if let Some(wrong) = settings.founding_peers_missing.iter().find(|id| !is_peer(id)) {
            return self.error(
                "founding_peers_missing",
                wrong,
                "it is not one of the other nodes of this cluster",
            );
        }
        if let Some(unknown) = settings.witnesses.iter().find(|id| !settings.nodes.contains_key(id)) {
            return self.error("witnesses", unknown, "it is not one of the nodes of this cluster");
        }
        if !settings.join && settings.nodes.keys().all(|id| settings.witnesses.contains(id)) {
            return self.error("witnesses", "all nodes", "one at least must keep data, or nobody could lead");
        }
        if settings.health_check_interval.is_zero() {
            return self.error("health_check_interval_ms", 0, "it must be at least 1");
        }
        if settings.node_timeout < settings.health_check_interval {
            let allowed = format!(
                "it must be at least health_check_interval_ms ({})",
                ms(settings.health_check_interval)
            );
            return self.error("node_timeout_ms", ms(settings.node_timeout), &allowed);
        }
        if settings.lease_drift_percent > 50 {
            return self.error("lease_drift_percent", settings.lease_drift_percent, "it must be at most 50");
        }
        if settings.heartbeat_interval.is_zero() {
            return self.error("heartbeat_interval_ms", 0, "it must be at least 1");
        }
        if settings.heartbeat_interval * 2 > settings.election_timeout {
            let allowed = format!(
                "it must be at least twice heartbeat_interval_ms ({})",
                ms(settings.heartbeat_interval)
            );
            return self.error("election_timeout_ms", ms(settings.election_timeout), &allowed);
        }
        if settings.election_timeout > ELECTION_TIMEOUT_MAX {
            let allowed = format!("it must be at most {}, a day", ms(ELECTION_TIMEOUT_MAX));
            return self.error("election_timeout_ms", ms(settings.election_timeout), &allowed);
        }
        Ok(())
    }

    /// All nodes: `[[nodes]]`, or `replica_endpoints` numbered from 0.
    fn nodes(&self) -> Result<BTreeMap<NodeId, NodeEndpoints>, ConfigError> {
        let listed =
            self.arguments.replica_endpoints.as_ref().unwrap_or(&self.file.deployment.replica_endpoints);
        let mut nodes = BTreeMap::new();
        for (id, client) in (0..).map(NodeId).zip(listed) {
            let consensus = self.consensus_endpoint(client)?;
            nodes.insert(id, NodeEndpoints { client: client.clone(), consensus });
        }
        let mut entries = BTreeMap::new();
        for entry in &self.file.nodes {
            let consensus = entry
                .consensus_endpoint
                .clone()
                .map_or_else(|| self.consensus_endpoint(&entry.client_endpoint), Ok)?;
            let endpoints = NodeEndpoints { client: entry.client_endpoint.clone(), consensus };
            if entries.insert(NodeId(entry.id), endpoints).is_some() {
                return self.error("nodes.id", entry.id, "two [[nodes]] have this id");
            }
        }
        if !entries.is_empty() {
            // Explicit entries say the same as the list and more, or they replace it.
            nodes = entries;
        }
        if nodes.is_empty() {
            return self.error(
                "replica_endpoints",
                "[]",
                "a replicated deployment lists its nodes here or in [[nodes]]",
            );
        }
        let mut places: Vec<&Endpoint> =
            nodes.values().flat_map(|node| [&node.client, &node.consensus]).collect();
        places.sort();
        if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            let allowed = "two nodes, or the client and consensus side of one, cannot listen at the same place (the consensus port is the client port + 1000 unless [[nodes]] says otherwise)";
            return self.error("endpoint", twice[0], allowed);
        }
        Ok(nodes)
    }

    fn consensus_endpoint(&self, client: &Endpoint) -> Result<Endpoint, ConfigError> {
        let port = client.port().checked_add(CONSENSUS_PORT_OFFSET);
        let endpoint = port.and_then(|port| Endpoint::new(client.host(), port).ok());
        let allowed = "the consensus port is this port + 1000, which must not exceed 65535; set consensus_endpoint in [[nodes]]";
        endpoint.map_or_else(|| self.error("client endpoint", client, allowed), Ok)
    }
}

/// Where settings stand that come from no file.
const PLACE: &str = "cluster.toml";
/// As for the engine.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const CONSENSUS_PORT_OFFSET: u16 = 1000;
/// Three write buffers of 64 MiB, of the log or of the state, and some.
const DISK_RESERVE_MIB: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[&str], file: &str) -> Result<Settings, String> {
        from_text(flags, file).map_err(|error| error.to_string())
    }

    const EXAMPLE: &str = r#"
        [deployment]
        mode = "replicated"            # or "standalone"
        instance_id = 0
        replica_endpoints = ["localhost:9090", "localhost:9091", "localhost:9092"]
        [cluster]
        health_check_interval_ms = 2000
        node_timeout_ms = 10000
    "#;

    #[test]
    fn the_example_works_unchanged_on_every_node() {
        for (flags, id, port) in [
            (&["--port", "9090"][..], 0, 9090),
            (&["--node-id", "1"], 1, 9091),
            (&["--node_id", "2"], 2, 9092),
        ] {
            let settings = settings(flags, EXAMPLE).unwrap();
            assert_eq!((settings.node, settings.client_listen.port()), (NodeId(id), port));
            assert_eq!(settings.data_dir, PathBuf::from(format!("./data/node-{id}")));
            let cluster = settings.cluster.unwrap();
            assert_eq!(cluster.consensus_listen.port(), port + 1000);
            assert_eq!((cluster.nodes.len(), cluster.node_timeout), (3, Duration::from_secs(10)));
        }
    }

    #[test]
    fn without_a_file_it_stands_alone() {
        let settings = settings(&["--port", "7000"], "").unwrap();
        assert!(settings.cluster.is_none());
        assert_eq!(settings.client_listen.to_string(), "127.0.0.1:7000");
    }

    #[test]
    fn flags_beat_the_file_and_nodes_can_be_explicit() {
        let file = r#"
            [deployment]
            routing = "redirect"
            listen_host = "0.0.0.0"
            [[nodes]]
            id = 7
            client_endpoint = "[::1]:9000"
            consensus_endpoint = "[::1]:9500"
        "#;
        let settings =
            settings(&["--node-id", "7", "--routing", "forward", "--node-timeout-ms", "3000"], file).unwrap();
        let cluster = settings.cluster.unwrap();
        assert_eq!(cluster.routing, Routing::Forward);
        assert_eq!(cluster.node_timeout, Duration::from_secs(3));
        assert_eq!(settings.client_listen.to_string(), "0.0.0.0:9000");
        assert_eq!(cluster.nodes[&NodeId(7)].consensus.to_string(), "[::1]:9500");
    }

    #[test]
    fn settings_of_the_log_reach_the_engine() {
        let file = format!("{EXAMPLE}[log]\ncompact_hold_mib = 5\nsnapshot_mib_per_second = 7\n");
        let settings = settings(&["--node-id", "0", "--compact-hold-mib", "6"], &file).unwrap();
        let raft = crate::node::raft_config(&settings, settings.cluster.as_ref().unwrap());
        assert_eq!((raft.compact_hold_bytes, raft.snapshot_bytes_per_second), (6 << 20, 7 << 20));
    }

    #[test]
    fn a_wrong_setting_says_where_which_and_what_is_allowed() {
        let nodes = "replica_endpoints = [\"a:1\", \"b:2\"]";
        let cases = [
            (vec![], "[deployment]\nnode = 1".to_owned(), vec!["node", "expected one of", "instance_id"]),
            (vec![], "[deployment]\nmode = \"both\"".into(), vec!["both", "standalone", "replicated"]),
            (
                vec![],
                "[deployment]\nreplica_endpoints = [\"localhost\"]".into(),
                vec!["localhost", "no port", "host:port"],
            ),
            (
                vec!["--node-id", "5"],
                format!("[deployment]\n{nodes}"),
                vec!["cluster.toml", "node_id = 5", "0, 1"],
            ),
            (vec!["--port", "3"], format!("[deployment]\n{nodes}"), vec!["port = 3", "a:1"]),
            (
                vec![],
                format!("[deployment]\n{nodes}\n[cluster]\nnode_timeout_ms = 1"),
                vec!["node_timeout_ms = 1", "2000"],
            ),
            (
                vec![],
                format!("[deployment]\n{nodes}\n[cluster]\nelection_timeout_ms = 150"),
                vec!["election_timeout_ms = 150", "twice"],
            ),
            (
                vec![],
                format!("[deployment]\n{nodes}\n[cluster]\nelection_timeout_ms = 86400001"),
                vec!["election_timeout_ms = 86400001", "at most 86400000"],
            ),
            (
                vec![],
                "[deployment]\nreplica_endpoints = [\"a:1\", \"a:1001\"]".into(),
                vec!["a:1001", "same place"],
            ),
            (vec![], "[deployment]\nreplica_endpoints = [\"a:65000\"]".into(), vec!["a:65000", "65535"]),
            (vec!["--mode", "replicated"], String::new(), vec!["replica_endpoints"]),
            (
                vec!["--founding-peers-missing", "1,0"],
                format!("[deployment]\n{nodes}"),
                vec!["founding_peers_missing = 0", "not one of the other nodes"],
            ),
            (vec!["--witnesses", "7"], format!("[deployment]\n{nodes}"), vec!["witnesses = 7", "not one of"]),
            (
                vec!["--witnesses", "0,1"],
                format!("[deployment]\n{nodes}"),
                vec!["one at least must keep data"],
            ),
            (
                vec!["--disk-reserve-mib", "99999999999999"],
                String::new(),
                vec!["disk_reserve_mib", "no disk"],
            ),
            (vec![], "[deployment]\nsessions_max = 0".into(), vec!["sessions_max = 0", "at least 1"]),
        ];
        for (flags, file, words) in cases {
            let error = settings(&flags, &file).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{file}: {error}");
        }
    }
}
