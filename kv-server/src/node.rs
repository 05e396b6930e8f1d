//! Puts a node together, and takes it apart again.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use consensus_core::{
    ClusterId, ConsensusEngine, Endpoint, Health, LogIndex, LogState, LogStorage, Member, MemberKind,
    Membership, NetworkTransport, NodeId, ReadConsistency, ReadError, Role, StateMachine, StorageError,
    TransportError,
};
use consensus_engine_raft::{
    RaftConfig, RaftEngine, StartError,
    flight::FlightRecorder,
    recover::{RecoverError, Recovered, force_new_cluster as force_new_cluster_in},
};
use consensus_storage_dir::require_node;
use consensus_storage_rocksdb::{Reserve, RocksLogStorage};
use consensus_storage_wal::WalLogStorage;
use consensus_transport_thrift::{ThriftConfig, ThriftTransport};
use kv_state_machine::{ConsensusKvDatabase, Durability, KvStartError, KvStateMachine};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    between::OwnMember,
    call_log::{AuditError, CallLog},
    cluster::{ClusterManager, endpoints},
    config::{LogKind, Mode, NodeEndpoints, Publication, Settings, Topology},
    descriptors,
    etcd::ApiLimits,
    founding::{Loaded, announce_members, explain, may_bootstrap, newest_membership},
    frontend::{Frontend, Limits, Place},
    measure, members, memory,
    mode::{self, ModeError},
    quota, removal,
    routing::RoutingManager,
    state_check,
    tls::{Security, SecurityError},
};

/// A running node.
pub(crate) struct Node {
    database: ConsensusKvDatabase,
    /// `None` standing alone.
    transport: Option<Arc<ThriftTransport>>,
    frontend: JoinHandle<()>,
    call_log: CallLog,
    /// Whether the cluster knows of this node what it tells of itself.
    published: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Engine(#[from] StartError),
    #[error(transparent)]
    Database(#[from] KvStartError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error("{0}")]
    Founding(String),
    #[error("{0}")]
    Descriptors(String),
    #[error("{path} is not there: choose the node's --data-dir")]
    NoLog { path: String },
    #[error(
        "member {name} was removed from the cluster; to add it again, empty {path}, run etcdctl member add, and start it with \
         --initial-cluster-state=existing"
    )]
    Removed { name: String, path: String },
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Mode(#[from] ModeError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(
        "{path} holds the data of a node that is no witness; remove the node from the cluster, and add it again as a \
         witness with another --data-dir"
    )]
    NoWitness { path: String },
    #[error(
        "{state} has applied entries of the cluster {of_state}, and {log} is a log of the cluster {of_log}: they do not belong together; \
         restore both from the same copy, or replace the node: remove it from the cluster, empty its data directory, and add it again"
    )]
    OtherCluster { state: String, of_state: ClusterId, log: String, of_log: ClusterId },
}

impl Node {
    pub(crate) async fn start(settings: Settings) -> Result<Self, NodeError> {
        claim_data_dir(&settings)?;
        let security = Security::load(&settings)?;
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(security.clone().keep_current(settings.tls.clone(), stopping.clone()));
        // The libraries look up their metrics when they start.
        measure::install(settings.metrics.metrics, &settings.data_dir);
        let call_log = CallLog::open(&settings.audit, &settings.metrics)?;
        let (limits, peers_max) = limits(&settings)?;
        let (database, transport, cluster) = match &settings.topology {
            None => {
                let machine = open_store(&settings, Durability::EachBatch)?;
                let database = ConsensusKvDatabase::new_with_mock_on(settings.node, machine)?;
                let reserve = Reserve::new(&settings.data_dir, settings.limits.disk_reserve);
                (database.with_reserve(reserve), None, None)
            }
            Some(topology) => {
                let (database, transport) = replicated(&settings, topology, peers_max, &security).await?;
                let membership = database.status().borrow().membership.clone();
                if settings.publication == Publication::Always {
                    if let Some(difference) =
                        endpoints::peer_url_warning(&membership, settings.node, &topology.nodes)
                    {
                        tracing::warn!("{difference}");
                    }
                } else if let Some(differences) = endpoints::warning(&membership, &topology.nodes) {
                    tracing::warn!("{differences}");
                    if settings.once.rewrite_endpoints {
                        let (engine, file) = (database.engine().clone(), topology.nodes.clone());
                        tokio::spawn(endpoints::rewrite(engine, settings.node, membership, file));
                    }
                }
                let manager = ClusterManager::start(&settings, topology, database.status(), &security);
                (database, Some(transport), Some(manager))
            }
        };
        let mut bounds = kv_state_machine::Limits::default();
        bounds.transaction_operations_max = settings.limits.transaction_operations_max;
        bounds.quota_bytes = settings.limits.quota_size;
        // It was checked with the settings.
        let auto_compaction = settings.limits.auto_compaction().unwrap_or_default();
        let database = database.with_limits(bounds).with_auto_compaction(auto_compaction);
        let (routing, sessions_max) = (settings.deployment.routing, settings.limits.sessions_max);
        let router = RoutingManager::new(settings.node, database.clone(), cluster, routing, sessions_max)
            .listening_at(settings.client_listen.clone())
            .secured_by(security.clone())
            .configured_as(settings.listing.clone())
            .recording_to(call_log.clone());
        let router = Arc::new(router);
        let frontend = Frontend::bind(places(&settings, &security), router.clone(), limits).await?;
        database.start().await?;
        if bounds.quota_bytes > 0 {
            tokio::spawn(quota::watch(router.clone(), stopping.clone()));
        }
        tokio::spawn(measure::maintain(stopping.clone()));
        if settings.topology.is_some() {
            let interval = settings.cluster.state_check_interval;
            tokio::spawn(state_check::run(router.clone(), interval, stopping.clone()));
        }
        tokio::spawn(call_log.clone().tell_omitted(stopping.clone()));
        let published = publish(&settings, router, stopping.clone());
        let frontend = tokio::spawn(frontend.run(stopping));
        let mode = if settings.topology.is_some() { "replicated" } else { "standalone" };
        let clients_max = limits.clients_max;
        tracing::info!(node = %settings.node, mode, clients = %settings.client_listen, clients_max, data = %settings.data_dir.display(), "ready");
        Ok(Self { database, transport, frontend, call_log, published, stop })
    }

    /// Waits until the cluster knows where clients reach this node, for which it needs a leader. False: it will not.
    pub(crate) async fn published(&self) -> bool {
        self.published.clone().wait_for(|published| *published).await.is_ok()
    }

    /// Ends when the engine has stopped of an error.
    pub(crate) async fn failed(&self) -> String {
        let mut status = self.database.status();
        let failed = status.wait_for(|status| matches!(status.health, Health::Fatal(_))).await;
        match failed.map(|status| status.health.clone()) {
            Ok(Health::Fatal(why)) => why,
            _ => "the engine is gone".to_owned(),
        }
    }

    /// Waits until the engine's task answers. Returns whether no call of the state machine takes longer than `limit`; one that waits for a
    /// disk that is stalled does not count. The engine of a standalone server has no task, and answers at once; its calls wait for the
    /// disk themselves, and do not count.
    pub(crate) async fn responds(&self, limit: Duration) -> bool {
        let engine = self.database.engine();
        // It is decided by the engine's task from its clock, without other nodes. Its result does not matter.
        let question = ReadConsistency::StaleWithin(Duration::MAX);
        while let Err(ReadError::Overloaded { .. }) = engine.read_barrier(question).await {
            tokio::time::sleep(OVERLOAD_PAUSE).await;
        }
        let status = self.database.status().borrow().clone();
        let is_stuck = status.apply_stalled_since.is_some_and(|since| since.elapsed() > limit);
        let waits_for_disk = status.storage_stalled_since.is_some() || self.database.waits_for_disk();
        !is_stuck || waits_for_disk || status.role == Role::Standalone
    }

    /// Transfers leadership while calls are still served, takes no more calls, finishes those in hand, stops the engine, closes
    /// the connections.
    pub(crate) async fn shutdown(mut self) {
        self.transfer_leadership().await;
        let _ = self.stop.send(true);
        // Calls that wait for a quorum may never end.
        if tokio::time::timeout(CALLS_MAX, &mut self.frontend).await.is_err() {
            tracing::warn!("some calls are left unanswered");
            self.frontend.abort();
        }
        self.call_log.flush().await;
        if let Err(error) = self.database.shutdown().await {
            tracing::warn!(%error);
        }
        if let Some(transport) = &self.transport {
            transport.shutdown().await;
        }
    }

    /// Has another node lead, if there is one that can, so that clients of all nodes wait as short as possible.
    async fn transfer_leadership(&self) {
        let status = self.database.status().borrow().clone();
        let others = status.membership.voters().filter(|id| *id != status.node_id).count();
        if status.leader != Some(status.node_id) || others == 0 {
            return;
        }
        let transfer = self.database.engine().transfer_leadership(None);
        match tokio::time::timeout(TRANSFER_MAX, transfer).await {
            Ok(Ok(leader)) => {
                tracing::info!(%leader, "another node leads");
                tokio::time::sleep(TRANSFER_HEARD).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "leadership was not transferred before the end"),
            Err(_) => tracing::warn!("no other node has taken over leadership in time"),
        }
    }
}

/// Where the node listens for clients.
fn places(settings: &Settings, security: &Security) -> Vec<Place> {
    let place = |endpoint: &Endpoint, is_for_health| {
        let tls = security.clients.clone().filter(|_| !settings.plain_listeners.contains(endpoint));
        Place { endpoint: endpoint.clone(), tls, is_for_health }
    };
    let clients = std::iter::once(&settings.client_listen).chain(&settings.client_listen_also);
    let clients = clients.map(|endpoint| place(endpoint, false));
    clients.chain(settings.health_listen.iter().map(|endpoint| place(endpoint, true))).collect()
}

/// Tells the cluster of this node what it does not know; the result becomes true when it knows.
fn publish(
    settings: &Settings,
    router: Arc<RoutingManager>,
    stop: watch::Receiver<bool>,
) -> watch::Receiver<bool> {
    let (done, published) = watch::channel(false);
    let own = settings.topology.as_ref().and_then(|all| all.nodes.get(&settings.node)).cloned();
    let replaces = settings.publication == Publication::Always;
    tokio::spawn(async move {
        if let Some(NodeEndpoints { client: Some(endpoint), name, .. }) = own {
            let own = OwnMember { node: router.node(), endpoint, name, replaces };
            members::publish(router, own, stop).await;
        }
        let _ = done.send(true);
    });
    published
}

async fn replicated(
    settings: &Settings,
    topology: &Topology,
    peers_max: usize,
    security: &Security,
) -> Result<(ConsensusKvDatabase, Arc<ThriftTransport>), NodeError> {
    let (storage, log) = Loaded::load(open_log(settings)?)?;
    // As in etcd. Without etcd's flags the node stays, and tells those who ask that it was removed.
    if settings.publication == Publication::Always
        && removal::was_removed(settings, topology, &log, security).await
    {
        let own = topology.nodes.get(&settings.node);
        let name = own.and_then(|own| own.name.clone()).unwrap_or_else(|| settings.node.to_string());
        return Err(NodeError::Removed { name, path: settings.data_dir.display().to_string() });
    }
    let mut thrift = ThriftConfig::new(settings.node, topology.consensus_listen.clone())
        .with_election_timeout(settings.cluster.election_timeout);
    thrift.cluster.clone_from(&settings.deployment.cluster_name);
    thrift.storage = log.storage;
    thrift.connections_max = peers_max;
    thrift.tls.clone_from(&security.peers);
    thrift.advertise = topology.nodes.get(&settings.node).map(|endpoints| endpoints.consensus.clone());
    let transport = Arc::new(ThriftTransport::bind(thrift).await?);
    let mut config = raft_config(settings, topology);
    let may_bootstrap = may_bootstrap(settings, topology, &log, &transport).await;
    if !may_bootstrap.map_err(|error| NodeError::Founding(explain(settings, &error)))? {
        config.bootstrap = None;
    }
    if topology.witnesses.contains(&settings.node) {
        let engine = RaftEngine::start_witness(config, transport.clone(), storage).await?;
        tokio::spawn(announce_members(transport.clone(), engine.status()));
        return Ok((ConsensusKvDatabase::witness(engine), transport));
    }
    let machine = open_store(settings, Durability::FromLog)?.with_reserve(settings.limits.disk_reserve);
    require_same_cluster(&settings.data_dir, machine.cluster(), machine.applied().index, &log)?;
    let executor = machine.executor();
    let engine = RaftEngine::start(config, transport.clone(), storage, Box::new(machine)).await?;
    tokio::spawn(announce_members(transport.clone(), engine.status()));
    Ok((ConsensusKvDatabase::new(engine, executor), transport))
}

/// Refuses a state whose entries, up to `applied`, are of another cluster than those of the log. Ids of entries may be equal in
/// both.
fn require_same_cluster(
    data_dir: &Path,
    of_state: ClusterId,
    applied: LogIndex,
    log: &LogState,
) -> Result<(), NodeError> {
    let applied_before = log.memberships.iter().rev().find(|(index, _)| *index <= applied);
    let of_log = applied_before.map_or(&log.purged.membership, |(_, membership)| membership).cluster();
    if of_state.is_compatible_with(of_log) {
        return Ok(());
    }
    let path = |name| data_dir.join(name).display().to_string();
    Err(NodeError::OtherCluster { state: path(STATE), of_state, log: path(LOG), of_log })
}

fn open_store(settings: &Settings, durability: Durability) -> Result<KvStateMachine, StorageError> {
    let share = || (memory::available() / 8).max(64 << 20);
    let cache = settings.limits.store_cache_size.unwrap_or_else(share);
    let cache = usize::try_from(cache).unwrap_or(usize::MAX);
    KvStateMachine::open_with_cache(&settings.data_dir.join(STATE), settings.node, durability, cache)
}

/// Limits of clients, and the maximum number of connections of peers.
fn limits(settings: &Settings) -> Result<(Limits, usize), NodeError> {
    descriptors::raise_limit();
    let wanted = &settings.limits;
    let shares =
        descriptors::share(wanted.clients_max, databases(settings)).map_err(NodeError::Descriptors)?;
    let limits = Limits {
        clients_max: shares.clients,
        responses_bytes: wanted.responses_size,
        connection_responses_bytes: wanted.connection_responses_size,
        api: ApiLimits {
            // It is far below what a usize holds.
            request_bytes: usize::try_from(wanted.request_size).unwrap_or(usize::MAX),
            streams_max: wanted.streams_max,
            watch_progress_interval: wanted.watch_progress_interval,
        },
    };
    Ok((limits, shares.peers))
}

/// Number of RocksDBs that the node has.
fn databases(settings: &Settings) -> usize {
    if settings.topology.is_some() && log_kind(settings) == LogKind::Rocksdb { 2 } else { 1 }
}

/// Kind of log that the settings ask for, or that is there.
fn log_kind(settings: &Settings) -> LogKind {
    let found = settings.data_dir.join(LOG).join("rocksdb").exists().then_some(LogKind::Rocksdb);
    settings.log.log_storage.or(found).unwrap_or(LogKind::Wal)
}

fn open_log(settings: &Settings) -> Result<Arc<dyn LogStorage>, StorageError> {
    open_log_in(settings, &settings.data_dir)
}

/// Opens the log of a data directory.
pub(crate) fn open_log_in(settings: &Settings, data_dir: &Path) -> Result<Arc<dyn LogStorage>, StorageError> {
    let (path, node, reserve) = (data_dir.join(LOG), settings.node, settings.limits.disk_reserve);
    Ok(match log_kind(settings) {
        LogKind::Wal => Arc::new(WalLogStorage::open(&path, node)?.with_reserve(reserve)),
        LogKind::Rocksdb => Arc::new(RocksLogStorage::open(&path, node)?.with_reserve(reserve)),
    })
}

pub(crate) fn raft_config(settings: &Settings, topology: &Topology) -> RaftConfig {
    // It must be the same on all nodes, so it has no client endpoints unless all nodes know all of them.
    let are_clients_known = settings.publication == Publication::IfUnknown
        && topology.nodes.values().all(|node| node.client.is_some());
    let mut members = BTreeMap::new();
    for (id, endpoints) in &topology.nodes {
        let NodeEndpoints { client, consensus, name } = endpoints.clone();
        let kind = if topology.witnesses.contains(id) { MemberKind::Witness } else { MemberKind::Voter };
        let client_endpoint = client.filter(|_| are_clients_known);
        let member = Member { endpoint: Some(consensus), client_endpoint, name, ..Member::new(kind) };
        members.insert(*id, member);
    }
    let (cluster, log) = (&settings.cluster, &settings.log);
    let mut config = RaftConfig::new(settings.node);
    config.bootstrap = Some(Membership::new(members)).filter(|_| !settings.deployment.join);
    if settings.once.rewrite_endpoints {
        let consensus = |(id, endpoints): (&NodeId, &NodeEndpoints)| (*id, endpoints.consensus.clone());
        config.moved_endpoints = topology.nodes.iter().map(consensus).collect();
    }
    config.protocol.lease_drift_percent = cluster.lease_drift_percent;
    config.protocol.election_timeout = cluster.election_timeout;
    config.protocol.heartbeat_interval = cluster.heartbeat_interval;
    config.storage_stall_limit = cluster.storage_stall_limit;
    config.apply_stall_limit = cluster.apply_stall_limit;
    config.compact_after_entries = log.compact_after_entries;
    config.compact_after_bytes = log.compact_after_size;
    config.compact_keep_entries = log.compact_keep_entries;
    config.compact_keep_bytes = log.compact_keep_size;
    config.compact_hold_bytes = log.compact_hold_size;
    config.snapshot_bytes_per_second = log.snapshot_rate;
    config.snapshot_dir.clone_from(&settings.data_dir);
    config.snapshot_reserve_bytes = settings.limits.disk_reserve;
    let recorder =
        FlightRecorder { dir: settings.data_dir.join(FLIGHT), bytes_max: log.flight_recorder_size };
    config.flight_recorder = Some(recorder).filter(|recorder| recorder.bytes_max > 0);
    config
}

/// Directory of the log.
pub(crate) fn log_dir(data_dir: &Path) -> PathBuf {
    data_dir.join(LOG)
}

/// The newest configuration in the log of a node that does not run.
pub(crate) fn recorded_membership(settings: &Settings) -> Result<Membership, NodeError> {
    Ok(newest_membership(&open_log(settings)?.load()?).clone())
}

/// Makes the node the only member of its cluster.
pub(crate) fn force_new_cluster(settings: &Settings) -> Result<Recovered, NodeError> {
    let path = log_dir(&settings.data_dir);
    if !path.exists() {
        return Err(NodeError::NoLog { path: path.display().to_string() });
    }
    mode::require_replicated(&settings.data_dir)?;
    let storage = open_log(settings)?;
    Ok(force_new_cluster_in(&*storage, settings.node)?)
}

/// Message about a recovery of `node`.
pub(crate) fn describe_recovery(node: NodeId, recovered: &Recovered) -> String {
    let Recovered { before, last, by } = recovered;
    format!(
        "node {node} is the only member now, by entry {by}; before, the members were: {before}\n\
         - its log ended with entry {last}: what was acknowledged beyond is lost, and what was written up to there counts\n\
         - start it as before; a file that lists the others does no harm\n\
         - add the others with empty data directories: kv-server --join, then kvctl member add\n\
         - none of them may be started again with its old data: it would take itself for the old cluster"
    )
}

/// Checks that the data directory is one of this mode, and of a node that is a witness or not; a new one gets the mode.
fn claim_data_dir(settings: &Settings) -> Result<(), NodeError> {
    mode::claim(&settings.data_dir, mode_of(settings), LOG, STATE)?;
    require_kind(settings)
}

/// The same check of a data directory that may not exist. Changes nothing.
pub(crate) fn verify_data_dir(settings: &Settings) -> Result<(), NodeError> {
    mode::verify(&settings.data_dir, mode_of(settings), LOG, STATE)?;
    for name in [LOG, STATE] {
        require_node(&settings.data_dir.join(name), settings.node)?;
    }
    require_kind(settings)
}

fn mode_of(settings: &Settings) -> Mode {
    if settings.topology.is_some() { Mode::Replicated } else { Mode::Standalone }
}

/// Refuses a witness the data of a node that is none.
fn require_kind(settings: &Settings) -> Result<(), NodeError> {
    let is_witness = settings.topology.as_ref().is_some_and(|all| all.witnesses.contains(&settings.node));
    if is_witness && settings.data_dir.join(STATE).exists() {
        return Err(NodeError::NoWitness { path: settings.data_dir.display().to_string() });
    }
    Ok(())
}

/// Directories within the data directory.
pub(crate) const LOG: &str = "log";
const FLIGHT: &str = "flight";
pub(crate) const STATE: &str = "state";
/// The time for another node to take over leadership at shutdown.
const TRANSFER_MAX: Duration = Duration::from_secs(1);
/// The time for all nodes to hear of the new leader, so that they send nothing more to this one.
const TRANSFER_HEARD: Duration = Duration::from_millis(300);
/// Calls in hand get this long at shutdown.
const CALLS_MAX: Duration = Duration::from_secs(2);
/// Pause before an engine that has too many reads is asked again.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(50);
