//! Recovery after a majority of the voters is permanently lost, and clusters that start from a restored state.

use consensus_core::{
    ClusterId, Entry, HardState, Leadership, LogBatch, LogId, LogIndex, LogStorage, Member, MemberKind,
    Membership, NodeId, Payload, SnapshotMeta, StorageError, StorageId,
};

use crate::config::{new_cluster, new_leadership};

/// Result of [`force_new_cluster`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Configuration before the recovery.
    pub before: Membership,
    /// Last entry of this node's log. Later entries of other members are lost, even if they were acknowledged. Entries of
    /// this node that were not acknowledged before now count as committed.
    pub last: LogId,
    /// Entry with the new configuration, of which the node is the only member.
    pub by: LogId,
}

/// Why the recovery was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The node is no voter, or has no data.
    #[error(
        "node {0} is not a voter with data according to its own log, which has the members {1}: recover another node"
    )]
    NotAVoter(NodeId, Membership),
    /// The node is the only voter already: no majority is lost.
    #[error("node {0} is the only voter already: no recovery is needed")]
    Alone(NodeId),
    /// The node's log is damaged, or was damaged and has not caught up: entries that it acknowledged may be on another node
    /// only.
    #[error("the log of node {0} is damaged: recover another node")]
    Damaged(NodeId),
    /// A snapshot was being installed: neither log nor state is complete.
    #[error("node {0} was installing a snapshot: recover another node")]
    Installing(NodeId),
    /// The node started with an empty log and has not caught up: it has a part of the data.
    #[error(
        "node {node} started with an empty disk and has not caught up: its log ends with entry {last}, and {}; recover another node, or \
         start this one again until it has caught up, if there is a leader",
        needed(*required)
    )]
    Joining {
        /// The node.
        node: NodeId,
        /// Last entry of its log.
        last: LogId,
        /// Index that the log must reach; 0 if no leader has told it.
        required: LogIndex,
    },
}

fn needed(required: LogIndex) -> String {
    match required {
        LogIndex::ZERO => "no leader has told it how far the others were".to_owned(),
        required => format!("entries up to {required} were committed when it joined"),
    }
}

/// Makes `node` the only member of its cluster, by an entry in its log. No engine may use the log meanwhile. This is for
/// clusters in which a majority of the voters is permanently lost: choose the survivor with the greatest last entry, and add
/// the other survivors to it again with empty disks. If a lost node returned, there would be two clusters.
///
/// # Errors
/// See [`RecoverError`].
pub fn force_new_cluster(storage: &dyn LogStorage, node: NodeId) -> Result<Recovered, RecoverError> {
    let state = storage.load()?;
    let before =
        state.memberships.last().map_or(&state.purged.membership, |(_, membership)| membership).clone();
    if state.hard_state.installing.is_some() {
        return Err(RecoverError::Installing(node));
    }
    if state.damage.is_some() || state.hard_state.lost_through.is_some() {
        return Err(RecoverError::Damaged(node));
    }
    if let Some(required) = state.hard_state.joining {
        return Err(RecoverError::Joining { node, last: state.last(), required });
    }
    if before.is_only_voter(node) {
        return Err(RecoverError::Alone(node));
    }
    let own = before.get(node).filter(|member| member.kind == MemberKind::Voter);
    let Some(own) = own else { return Err(RecoverError::NotAVoter(node, before)) };
    let last = state.last();
    // A term in which no leader of the old cluster was elected, as far as this node knows.
    let term = state.hard_state.term.max(last.term).next();
    let by = LogId { term, index: last.index.next() };
    // The disk may not be the one that the configuration names: it was emptied, and has caught up since. The node is elected only
    // from the disk that its configuration names (I14).
    let own_storage = Some(state.storage).filter(|storage| *storage != StorageId::UNKNOWN);
    let alone = Membership::new([(node, Member { storage: own_storage, ..own.clone() })].into());
    // The new identity makes it another cluster: nodes that return with the old identity are refused.
    let cluster = new_cluster();
    let alone = alone.with_cluster(cluster).with_leadership(Leadership { first: by, id: new_leadership() });
    storage.write(LogBatch {
        hard_state: Some(HardState { term, voted_for: Some(node), cluster, ..HardState::default() }),
        entries: vec![Entry { id: by, payload: Payload::Membership(alone) }],
        ..LogBatch::default()
    })?;
    Ok(Recovered { before, last, by })
}

/// Draws the identity of a cluster that starts from a restored state. No other cluster has it.
#[must_use]
pub fn new_cluster_id() -> ClusterId {
    new_cluster()
}

/// Prepares a new, empty log for a state machine that was restored from a backup: the log starts after entry `applied`, which the
/// state machine reflects, and `node` is the only member of the new cluster `cluster`. Other nodes join it with empty disks, and
/// receive the restored state from it. No engine may use the log meanwhile.
///
/// # Errors
/// The log cannot be read or written, or is not empty.
pub fn found_cluster_on_state(
    storage: &dyn LogStorage,
    node: NodeId,
    member: Member,
    applied: LogId,
    cluster: ClusterId,
) -> Result<(), StorageError> {
    let state = storage.load()?;
    if !state.is_new() {
        let position = format!("the log of node {node}");
        let why = "it is not empty: a restored state needs a new log".to_owned();
        return Err(StorageError::Corrupt { position, why });
    }
    let own_storage = Some(state.storage).filter(|storage| *storage != StorageId::UNKNOWN);
    let alone = Membership::new([(node, Member { storage: own_storage, ..member })].into());
    let membership = alone.with_cluster(cluster);
    storage.write(LogBatch {
        hard_state: Some(HardState { term: applied.term, cluster, ..HardState::default() }),
        purge: Some(SnapshotMeta { last: applied, membership }),
        ..LogBatch::default()
    })
}
