//! How a node takes its first place in a cluster, and what an operator is told when it cannot.

use std::{
    collections::BTreeSet,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};

use consensus_core::{
    ClusterId, EngineStatus, Entry, LogBatch, LogIndex, LogState, LogStorage, MemberKind, Membership, NodeId,
    StorageError,
};
use consensus_transport_thrift::{
    ClusterHistory, Founders, ThriftTransport,
    founding::{Conflict, FoundingConfig, FoundingError, FoundingOutcome, await_founders},
};
use tokio::sync::watch;

use crate::config::{NodeEndpoints, Publication, Settings, Topology};

/// A log that was loaded before the engine asks for it.
pub(crate) struct Loaded {
    storage: Arc<dyn LogStorage>,
    found: Mutex<Option<LogState>>,
}

impl Loaded {
    pub(crate) fn load(storage: Arc<dyn LogStorage>) -> Result<(Arc<Self>, LogState), StorageError> {
        let found = storage.load()?;
        Ok((Arc::new(Self { storage, found: Mutex::new(Some(found.clone())) }), found))
    }

    fn take(&self) -> Option<LogState> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl LogStorage for Loaded {
    fn load(&self) -> Result<LogState, StorageError> {
        self.take().map_or_else(|| self.storage.load(), Ok)
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        self.take();
        self.storage.write(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.storage.read(after, last, max_bytes)
    }
}

/// Decides whether the node writes the first configuration, with the other nodes where that is needed; from then on the
/// others are answered who this node is.
pub(crate) async fn may_bootstrap(
    settings: &Settings,
    topology: &Topology,
    log: &LogState,
    transport: &ThriftTransport,
) -> Result<bool, FoundingError> {
    if !log.is_new() {
        let membership = newest_membership(log);
        warn_of_other_voters(settings, topology, membership);
        transport.announce(ClusterHistory::of(membership));
        transport.answer_probes();
        return Ok(false);
    }
    if settings.deployment.join {
        transport.announce(ClusterHistory::Empty { founders: Founders::new() });
        transport.answer_probes();
        return Ok(false);
    }
    let founding = FoundingConfig {
        founders: topology.founders(),
        endpoints: topology.nodes.iter().map(|(id, node)| (*id, node.consensus.clone())).collect(),
        may_be_missing: topology.founding_peers_missing.clone(),
    };
    let node = settings.node;
    let waiting = |peers: &BTreeSet<NodeId>| {
        tracing::warn!(%node, "{}", describe_waiting(settings.publication, topology, peers));
    };
    match await_founders(transport, &founding, waiting).await? {
        FoundingOutcome::Bootstrap => {
            tracing::info!(%node, voters = %ids(founding.founders.keys()), "all nodes are new: this is the first start of the cluster");
            Ok(true)
        }
        FoundingOutcome::Follow { member } => {
            tracing::info!(%node, %member, "the cluster exists and counts on this node: its log comes from the leader");
            Ok(false)
        }
    }
}

/// Message while the first start of a cluster waits for these nodes.
fn describe_waiting(publication: Publication, topology: &Topology, peers: &BTreeSet<NodeId>) -> String {
    match publication {
        Publication::IfUnknown => format!(
            "waiting for {}: before the first start of a cluster every node that was listed must answer that it has no data; if one of \
             them cannot be started and never had data, name it with --founding-peers-missing",
            describe_nodes(topology, peers)
        ),
        Publication::Always => format!(
            "waiting for {}: before the first start of a cluster every member of --initial-cluster must answer that it has no data; if \
             one of them cannot be started and never had data, stop the others, empty their data directories, start them with an \
             --initial-cluster without it, and add it later. Nothing is lost by that: the cluster has not begun",
            describe_members(topology, peers)
        ),
    }
}

/// Keeps what the node says of itself to those who ask up to date.
pub(crate) async fn announce_members(
    transport: Arc<ThriftTransport>,
    mut status: watch::Receiver<Arc<EngineStatus>>,
) {
    loop {
        let membership = status.borrow_and_update().membership.clone();
        // Until then what was announced at the start says more.
        if membership.cluster() != ClusterId::NONE {
            transport.announce(ClusterHistory::of(&membership));
        }
        if status.wait_for(|status| !Arc::ptr_eq(&status.membership, &membership)).await.is_err() {
            return;
        }
    }
}

/// Message about a node that must not start.
pub(crate) fn explain(settings: &Settings, error: &FoundingError) -> String {
    let (node, peer) = (settings.node, error.peer);
    let mut text = format!(
        "node {node} does not start: {error}; no entry was written to its log, so its data directory, {}, can be used for node {node} again\n",
        settings.data_dir.display()
    );
    let join = match settings.publication {
        Publication::IfUnknown => format!(
            "start it with --join, and add it: kvctl member add {node} --consensus HOST:PORT --client HOST:PORT"
        ),
        Publication::Always => {
            "add it (etcdctl member add NAME --peer-urls=URL), and start it with --initial-cluster-state=existing"
                .to_owned()
        }
    };
    let _ = match &error.conflict {
        Conflict::NotAMember(_) => write!(
            text,
            "- to make it a member of that cluster, {join}\n\
             - to list it with the others adds nobody: the list is only read at the very first start of a cluster\n\
             - if its data should be there, check --data-dir and whether the disk is mounted"
        ),
        Conflict::OtherDisk { .. } => write!(
            text,
            "- if its data should be there, check --data-dir and whether the disk is mounted\n\
             - if its disk was lost, remove the member: kvctl member remove {node}; then {join}\n\
             - if node {node} runs elsewhere, give this one an id of its own"
        ),
        Conflict::OwnIdElsewhere(_) => {
            write!(text, "- stop the other one, or give this one an id and endpoints of its own")
        }
        Conflict::OtherName(_) if settings.publication == Publication::Always => {
            write!(text, "- give all members the same --initial-cluster and --initial-cluster-token")
        }
        Conflict::OtherFounders(_) => {
            write!(text, "- give all nodes the same list for the first start, and add other nodes later")
        }
        Conflict::OtherNode(_) => {
            write!(
                text,
                "- give all nodes the same list, and check the id, or name, of node {peer} and of this one"
            )
        }
        _ => write!(
            text,
            "- check the endpoint of node {peer} in the file, the cluster's name, and the versions"
        ),
    };
    text
}

/// One warning if the file lists other voters than the log has.
fn warn_of_other_voters(settings: &Settings, topology: &Topology, membership: &Membership) {
    let in_log: BTreeSet<NodeId> = membership.all_members().map(|(id, _)| id).collect();
    let in_file: BTreeSet<NodeId> = topology.nodes.keys().copied().collect();
    if settings.deployment.join || in_log.is_empty() || in_log == in_file {
        return;
    }
    tracing::warn!(
        node = %settings.node,
        "the members are {}, as the log says; the file lists {}. The log counts: the file's list is only read at the very \
         first start. To add a node, start it with --join and an empty data directory, then run kvctl member add",
        ids(in_log.iter()),
        ids(in_file.iter())
    );
}

/// The newest configuration in a log, whether or not it is committed.
pub(crate) fn newest_membership(log: &LogState) -> &Membership {
    log.memberships.last().map_or(&log.purged.membership, |(_, membership)| membership)
}

fn ids<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

fn describe_nodes(topology: &Topology, nodes: &BTreeSet<NodeId>) -> String {
    let describe = |id: &NodeId| match topology.nodes.get(id) {
        Some(endpoints) => format!("node {id} at {}", endpoints.consensus),
        None => format!("node {id}"),
    };
    nodes.iter().map(describe).collect::<Vec<_>>().join(", ")
}

fn describe_members(topology: &Topology, nodes: &BTreeSet<NodeId>) -> String {
    let describe = |id: &NodeId| match topology.nodes.get(id) {
        Some(NodeEndpoints { name: Some(name), consensus, .. }) => {
            format!("member {name} at http://{consensus}")
        }
        _ => format!("the member with the id {id}"),
    };
    nodes.iter().map(describe).collect::<Vec<_>>().join(", ")
}

impl Topology {
    /// The voters of the first configuration.
    fn founders(&self) -> Founders {
        let kind = |id| if self.witnesses.contains(id) { MemberKind::Witness } else { MemberKind::Voter };
        self.nodes.keys().map(|id| (*id, kind(id))).collect()
    }
}
