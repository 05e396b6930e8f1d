//! Properties that are checked in every state.

use consensus_core::{LogId, LogIndex, NodeId, Term};
use consensus_raft_protocol::Raft;

use super::state::{State, World};

/// Knowledge of the checks about the whole cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Committed entries by index from 1, with the term of the leader that committed them.
    pub(super) committed: Vec<(LogId, Term)>,
    pub(super) leaders: Vec<(Term, NodeId)>,
    pub(super) votes: Vec<(NodeId, Term, NodeId)>,
    /// Highest index that may have been acknowledged to a client.
    pub(super) acknowledged: LogIndex,
    pub(super) fingerprints: Vec<u64>,
}

impl Known {
    /// Election Safety and Leader Completeness.
    pub(super) fn elected(&mut self, raft: &Raft) -> Result<(), String> {
        let (term, id) = (raft.term(), raft.id());
        if let Some((_, other)) = self.leaders.iter().find(|(known, other)| *known == term && *other != id) {
            return Err(format!("Election Safety: {other} and {id} are leaders of term {term}"));
        }
        if !self.leaders.contains(&(term, id)) {
            self.leaders.push((term, id));
            self.leaders.sort_unstable();
        }
        for (entry, _) in
            self.committed.iter().filter(|(entry, by)| *by < term && entry.index > raft.purged().index)
        {
            if raft.id_at(entry.index) != Some(*entry) {
                return Err(format!("Leader Completeness: {id}, the leader of term {term}, lacks {entry}"));
            }
        }
        Ok(())
    }

    /// A node follows only an elected leader (P8).
    pub(super) fn follows(&self, raft: &Raft) -> Result<(), String> {
        let (id, term) = (raft.id(), raft.term());
        match raft.leader() {
            Some(leader) if !self.leaders.contains(&(term, leader)) => {
                Err(format!("Election Safety: {id} follows {leader}, which is not leader of term {term}"))
            }
            _ => Ok(()),
        }
    }

    /// At most one vote in a term (I1).
    pub(super) fn voted(&mut self, voter: NodeId, term: Term, candidate: NodeId) -> Result<(), String> {
        match self.votes.iter().find(|(known, at, _)| *known == voter && *at == term) {
            Some((_, _, other)) if *other != candidate => {
                Err(format!("I1: {voter} votes for {other} and {candidate} in term {term}"))
            }
            Some(_) => Ok(()),
            None => {
                self.votes.push((voter, term, candidate));
                Ok(())
            }
        }
    }

    /// State Machine Safety, and that committed entries are on a quorum of disks (I4).
    pub(super) fn committed(&mut self, entry: LogId, term: Term, is_on_quorum: bool) -> Result<(), String> {
        let at = entry.index.0 as usize - 1;
        match self.committed.get(at) {
            Some((known, _)) if *known != entry => {
                Err(format!("State Machine Safety: {known} and {entry} are both committed"))
            }
            Some(_) => Ok(()),
            None if !is_on_quorum => Err(format!("I4: {entry} is committed, but on no quorum of disks")),
            None => {
                self.committed.push((entry, term));
                Ok(())
            }
        }
    }
}

impl World {
    /// Any two logs agree up to their last common entry (Log Matching).
    pub(crate) fn check(&self, state: &State) -> Result<(), String> {
        for (at, one) in state.nodes.iter().enumerate() {
            for other in &state.nodes[at + 1..] {
                let from = one.raft.purged().index.max(other.raft.purged().index).0;
                let to = one.raft.last_log().index.min(other.raft.last_log().index).0;
                let same =
                    |index: &u64| one.raft.id_at(LogIndex(*index)) == other.raft.id_at(LogIndex(*index));
                let Some(last) = (from..=to).rev().find(same) else { continue };
                if let Some(index) = (from.max(1)..=last).find(|index| !same(index)) {
                    return Err(format!(
                        "Log Matching: {} and {} differ at {index}, but agree at {last}",
                        one.id, other.id
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Returns the knowledge for an addition, copied from the state when first needed.
pub(super) fn fresh<'a>(known: &'a mut Option<Known>, state: &State) -> &'a mut Known {
    known.get_or_insert_with(|| Known::clone(&state.known))
}
