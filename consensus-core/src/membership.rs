//! Who takes part.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Endpoint, NodeId};

/// What a member does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemberKind {
    /// Votes, and counts for commitment.
    Voter,
    /// Receives the log, but neither votes nor counts (dissertation §4.2.1).
    Learner,
}

/// One member and where its transport listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What it does.
    pub kind: MemberKind,
    /// Where its transport listens; `None` where addresses are known otherwise (in-process transports).
    pub endpoint: Option<Endpoint>,
}

/// The configuration of a cluster (dissertation §4): who votes, who learns. It is itself an entry of the log and takes
/// effect when it is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
}

impl Membership {
    /// From its members.
    #[must_use]
    pub fn new(members: BTreeMap<NodeId, Member>) -> Self {
        Self { members }
    }

    /// Voters only, without endpoints.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = u64>) -> Self {
        let voter = || Member { kind: MemberKind::Voter, endpoint: None };
        Self { members: voters.into_iter().map(|id| (NodeId(id), voter())).collect() }
    }

    /// All members, by id.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// Ids of the voters, in order.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(|(_, m)| m.kind == MemberKind::Voter).map(|(id, _)| *id)
    }

    /// Whether `node` votes.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|m| m.kind == MemberKind::Voter)
    }

    /// Whether `node` is the one voter: its own durable write is a quorum.
    #[must_use]
    pub fn is_only_voter(&self, node: NodeId) -> bool {
        self.is_voter(node) && self.voters().count() == 1
    }

    /// Number of voters that make a quorum: more than half. 0 if there is no voter, and then nothing is a quorum.
    #[must_use]
    pub fn quorum(&self) -> usize {
        match self.voters().count() {
            0 => 0,
            voters => voters / 2 + 1,
        }
    }

    /// Whether `nodes` hold a quorum of the voters. Without voters nothing does.
    #[must_use]
    pub fn has_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let quorum = self.quorum();
        quorum > 0 && self.voters().filter(|id| nodes.contains(id)).count() >= quorum
    }

    /// The greatest value that a quorum of the voters has reached, `reached` telling each one's (I4: only voters
    /// count). `None` without voters.
    #[must_use]
    pub fn quorum_value<T: Ord + Copy>(&self, mut reached: impl FnMut(NodeId) -> T) -> Option<T> {
        let mut values: Vec<T> = self.voters().map(&mut reached).collect();
        // With n voters in ascending order, the values from position n - quorum on are a quorum.
        let position = values.len().checked_sub(self.quorum()).filter(|_| !values.is_empty())?;
        values.sort_unstable();
        Some(values[position])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quorums_are_more_than_half() {
        for (voters, quorum) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)] {
            assert_eq!(Membership::of_voters(1..=voters).quorum(), quorum, "{voters} voters");
        }
    }

    #[test]
    fn without_voters_nothing_is_a_quorum() {
        let mut members = Membership::of_voters([1]).members().clone();
        members.get_mut(&NodeId(1)).unwrap().kind = MemberKind::Learner;
        let learners = Membership::new(members);
        assert!(!learners.has_quorum(&BTreeSet::from([NodeId(1)])));
        assert_eq!(learners.quorum_value(|_| 7), None);
    }

    proptest! {
        /// Against brute force: the greatest value v such that a majority is at v or above.
        #[test]
        fn quorum_value_is_what_brute_force_finds(values in proptest::collection::vec(0u64..6, 1..=7)) {
            let membership = Membership::of_voters(0..values.len() as u64);
            let brute = (0..6).rev().find(|v| values.iter().filter(|x| *x >= v).count() * 2 > values.len()).unwrap();
            prop_assert_eq!(membership.quorum_value(|id| values[id.0 as usize]), Some(brute));
        }
    }
}
