//! What is left to do when a majority is lost for good.

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogStorage, Member, MemberKind, Membership, NodeId, Payload,
    StorageError,
};

use crate::config::new_cluster;

/// What [`force_new_cluster`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The configuration as it was.
    pub before: Membership,
    /// The last entry that this node had. What others had beyond is lost, be it acknowledged or not; what this node had
    /// and nobody had acknowledged counts as committed now.
    pub last: LogId,
    /// The entry that makes the node the only member.
    pub by: LogId,
}

/// Why it was not done; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The node has no vote, or no data.
    #[error("node {0} is not a voter with data in its own log ({1}): another node has to be recovered")]
    NotAVoter(NodeId, Membership),
    /// It is the only member already: there is nothing to recover from.
    #[error("node {0} is the only voter already")]
    Alone(NodeId),
    /// Its log is damaged, or was and is not whole again: what it acknowledged may be on another node only.
    #[error("the log of node {0} is damaged: another node has to be recovered")]
    Damaged(NodeId),
    /// A snapshot was being installed: neither log nor state is whole.
    #[error("node {0} was installing a snapshot: another node has to be recovered")]
    Installing(NodeId),
}

/// Makes `node` the only member of its cluster, in its log, while no engine uses it. For when a majority of the voters is
/// lost and will not come back: of the survivors, the one with the greatest last entry is to be taken, and the others are
/// added to it again with empty disks. Should one of the lost ones come back, there are two clusters.
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
    if before.is_only_voter(node) {
        return Err(RecoverError::Alone(node));
    }
    let own = before.get(node).filter(|member| member.kind == MemberKind::Voter);
    let Some(own) = own else { return Err(RecoverError::NotAVoter(node, before)) };
    let last = state.last();
    // A term that no leader of the old cluster is in yet, as far as this node knows.
    let term = state.hard_state.term.max(last.term).next();
    let by = LogId { term, index: last.index.next() };
    let alone = Membership::new([(node, Member { kind: MemberKind::Voter, ..own.clone() })].into());
    // Another cluster from here on: those who come back with the old one are refused.
    let cluster = new_cluster();
    let alone = alone.with_cluster(cluster);
    storage.write(LogBatch {
        hard_state: Some(HardState { term, voted_for: Some(node), cluster, ..HardState::default() }),
        entries: vec![Entry { id: by, payload: Payload::Membership(alone) }],
        ..LogBatch::default()
    })?;
    Ok(Recovered { before, last, by })
}
