//! Members of a cluster and their roles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{ClusterId, Endpoint, LeadershipId, LogId, LogIndex, NodeId, StorageId};

/// Part that a member has in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemberKind {
    /// Votes, and its acknowledgements count for commitment.
    Voter,
    /// Receives the log, but does not vote, and its acknowledgements do not count (dissertation §4.2.1).
    Learner,
    /// A learner that the leader turns into a voter as soon as it has caught up.
    Joining,
    /// Votes and counts like a voter, but is sent no commands and never becomes leader: a cheap third member that makes a
    /// majority of two others possible.
    Witness,
}

impl fmt::Display for MemberKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Joining => "joining",
            Self::Witness => "witness",
        })
    }
}

impl MemberKind {
    /// Whether members of this kind vote. [`Member::votes`] says whether a certain member does.
    #[must_use]
    pub fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Witness)
    }
}

/// One member of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Part that the member has in the cluster.
    pub kind: MemberKind,
    /// Endpoint of the member's transport; `None` if the transport needs no endpoints (in-process transports).
    pub endpoint: Option<Endpoint>,
    /// Priority as leader: a leader transfers leadership to a member with a higher priority that has caught up. Usually 0
    /// for all members.
    pub priority: u32,
    /// Endpoint at which the member serves clients. Engines do not use it; programs can tell it to clients.
    pub client_endpoint: Option<Endpoint>,
    /// Name of the member; `None` if it has none. Engines do not use it; programs can show it to people.
    pub name: Option<String>,
    /// Identity of the member's log storage, set when a leader first learns it. A node that returns with another storage has
    /// lost its votes and acknowledgements, and counts no more until it is removed and added again. Before a leader learns
    /// it: [`StorageId::UNKNOWN`] for a member that a change added, which does not vote yet ([`votes`](Self::votes)); `None`
    /// for a founding member, which may have voted and acknowledged entries already. Always `None` if the member's storage
    /// has no identity.
    pub storage: Option<StorageId>,
}

impl Member {
    /// Creates a member without endpoints, with priority 0.
    #[must_use]
    pub fn new(kind: MemberKind) -> Self {
        Self { kind, endpoint: None, priority: 0, client_endpoint: None, name: None, storage: None }
    }

    /// Whether the member votes and counts for commitment. A member that a change added does not before its storage is known.
    /// Otherwise its disk could be emptied after it voted and acknowledged entries, and the empty disk would count as the
    /// one before.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.kind.votes() && self.storage != Some(StorageId::UNKNOWN)
    }

    /// Whether the member's storage is known, so that another one in its place is noticed.
    #[must_use]
    pub fn storage_is_known(&self) -> bool {
        self.storage.is_some_and(|known| known != StorageId::UNKNOWN)
    }

    /// Whether the member's votes and acknowledgements count when they come from `storage`.
    #[must_use]
    pub fn trusts(&self, storage: StorageId) -> bool {
        self.storage.is_none_or(|known| known == storage || known == StorageId::UNKNOWN)
    }
}

/// The configuration of a cluster: its members (dissertation §4). A configuration is an entry of the log, and takes effect
/// when the entry is appended.
///
/// While voters change, the configuration is *joint* (§6): elections and commitment then need both a quorum of the incoming
/// voters and a quorum of the outgoing ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
    /// Voters before the change; empty unless the configuration is joint.
    outgoing: BTreeMap<NodeId, Member>,
    /// Identity of the cluster, [`ClusterId::NONE`] until its first leader has drawn one.
    cluster: ClusterId,
    /// The latest leaderships, in the order of the log.
    leaderships: Vec<Leadership>,
}

/// The time in which a node leads one term. Its first entry is a configuration, which names the leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leadership {
    /// First entry of the leader's term.
    pub first: LogId,
    /// Number drawn by the leader.
    pub id: LeadershipId,
}

/// One change of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds a member, or changes the kind, priority, endpoints or name of one. The [`storage`](Member::storage) of an existing
    /// member is kept; that of a new member is learned later.
    Set(NodeId, Member),
    /// Removes a member.
    Remove(NodeId),
    /// Adds a member; refused if the node is a member already. Unlike [`Set`](Self::Set) it cannot demote or move an
    /// existing member by mistake.
    Add(NodeId, Member),
}

/// Why a change of a configuration is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMembership {
    /// No voter could become leader, so that nothing could ever be committed.
    #[error("no voter would be left that can become leader")]
    NoVoter,
    /// A witness cannot become another kind of member or the reverse: the log of a witness lacks the commands.
    #[error(
        "node {0} cannot become a witness or cease to be one: remove it, empty its disk, and add it again"
    )]
    Witness(NodeId),
    /// The node to remove is not a member.
    #[error("node {0} is not a member")]
    NotAMember(NodeId),
    /// The change removes a member and adds its id again. The new disk would count as the old one, which may have held
    /// committed entries that the new one lacks.
    #[error(
        "node {0} is removed and added again in one change: remove it in one change, and add it in another when that is done"
    )]
    RemovedAndAdded(NodeId),
    /// The node to add is a member already.
    #[error(
        "node {0} is a member already: change it as a member, or remove it first if its disk was emptied or replaced"
    )]
    AlreadyAMember(NodeId),
    /// Another member has the endpoint. A node that listens there would receive the messages for both.
    #[error("node {node} cannot have the consensus endpoint of node {owner}")]
    EndpointTaken {
        /// The member that was to get the endpoint.
        node: NodeId,
        /// The member that has the endpoint.
        owner: NodeId,
    },
}

impl Membership {
    /// Creates a configuration that is not joint.
    #[must_use]
    pub fn new(members: BTreeMap<NodeId, Member>) -> Self {
        Self::joint(members, BTreeMap::new())
    }

    /// Creates a joint configuration of `members` and the `outgoing` voters.
    #[must_use]
    pub fn joint(members: BTreeMap<NodeId, Member>, outgoing: BTreeMap<NodeId, Member>) -> Self {
        Self { members, outgoing, cluster: ClusterId::NONE, leaderships: Vec::new() }
    }

    /// This configuration with the identity `cluster`.
    #[must_use]
    pub fn with_cluster(self, cluster: ClusterId) -> Self {
        Self { cluster, ..self }
    }

    /// This configuration as that of a later leadership. The [`LEADERSHIPS_MAX`] latest leaderships are kept.
    #[must_use]
    pub fn with_leadership(mut self, leadership: Leadership) -> Self {
        self.leaderships.push(leadership);
        let excess = self.leaderships.len().saturating_sub(LEADERSHIPS_MAX);
        self.leaderships.drain(..excess);
        self
    }

    /// A configuration of `members` in the same cluster and leadership; not joint.
    #[must_use]
    pub fn with_members(&self, members: BTreeMap<NodeId, Member>) -> Self {
        self.with_voters(members, BTreeMap::new())
    }

    fn with_voters(&self, members: BTreeMap<NodeId, Member>, outgoing: BTreeMap<NodeId, Member>) -> Self {
        let (cluster, leaderships) = (self.cluster, self.leaderships.clone());
        Self { members, outgoing, cluster, leaderships }
    }

    /// Whether the members, and the outgoing voters, are those of `other`.
    #[must_use]
    pub fn has_members_of(&self, other: &Self) -> bool {
        self.members == other.members && self.outgoing == other.outgoing
    }

    /// The latest leaderships up to this configuration, at most [`LEADERSHIPS_MAX`], in the order of the log.
    #[must_use]
    pub fn leaderships(&self) -> &[Leadership] {
        &self.leaderships
    }

    /// The leadership to which the entry at `index` belongs; `None` if it is not among the latest ones. Must not be asked about
    /// entries after the next leadership's first one.
    ///
    /// Two logs with equal entries up to `index` give equal results where both have one. If the results differ, so do the logs: the
    /// same log id may be that of two entries after an old copy of a disk was restored.
    #[must_use]
    pub fn leadership_at(&self, index: LogIndex) -> Option<Leadership> {
        self.leaderships.iter().rev().find(|leadership| leadership.first.index <= index).copied()
    }

    /// Identity of the cluster; [`ClusterId::NONE`] until its first leader has drawn one.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Creates a configuration of voters without endpoints.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = u64>) -> Self {
        Self::new(voters.into_iter().map(|id| (NodeId(id), Member::new(MemberKind::Voter))).collect())
    }

    /// Members by id. In a joint configuration these are the members after the change.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// Voters before the change, in a joint configuration; otherwise empty.
    #[must_use]
    pub fn outgoing(&self) -> &BTreeMap<NodeId, Member> {
        &self.outgoing
    }

    /// Whether quorums of two sets of voters are needed.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// All nodes that receive the log: the members, and the outgoing voters of a joint configuration.
    pub fn all_members(&self) -> impl Iterator<Item = (NodeId, &Member)> + '_ {
        let leaving = self.outgoing.iter().filter(|(id, _)| !self.members.contains_key(id));
        self.members.iter().chain(leaving).map(|(id, member)| (*id, member))
    }

    /// The member `node`, also if it is an outgoing voter.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).or_else(|| self.outgoing.get(&node))
    }

    /// Ids of all voters, in either set of voters.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.all_members().map(|(id, _)| id).filter(|id| self.is_voter(*id))
    }

    /// Whether `node` votes, in either set of voters.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(Member::votes) || self.outgoing.contains_key(&node)
    }

    /// Whether `node` may be elected: it votes and is not a witness.
    #[must_use]
    pub fn can_lead(&self, node: NodeId) -> bool {
        let leads = |members: &BTreeMap<NodeId, Member>| {
            members.get(&node).is_some_and(|member| member.kind == MemberKind::Voter && member.votes())
        };
        leads(&self.members) || leads(&self.outgoing)
    }

    /// Whether `node` is the only voter, so that its own durable write is a quorum.
    #[must_use]
    pub fn is_only_voter(&self, node: NodeId) -> bool {
        let mut voters = self.voters();
        voters.next() == Some(node) && voters.next().is_none()
    }

    /// Whether votes and acknowledgements of `node` count when they come from `storage`. True for a node that is no member.
    #[must_use]
    pub fn trusts(&self, node: NodeId, storage: StorageId) -> bool {
        self.get(node).is_none_or(|member| member.trusts(storage))
    }

    /// The sets of voters of which a quorum is needed: one, or two in a joint configuration.
    fn voter_sets(&self) -> impl Iterator<Item = InlineVec<NodeId>> {
        let voters = self.members.iter().filter(|(_, member)| member.votes());
        let incoming = voters.map(|(id, _)| *id).collect();
        let outgoing = self.is_joint().then(|| self.outgoing.keys().copied().collect());
        std::iter::once(incoming).chain(outgoing)
    }

    /// Whether `nodes` contain a quorum, more than half, of each set of voters. Always false without voters.
    #[must_use]
    pub fn has_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.quorum_value(|id| nodes.contains(&id)) == Some(true)
    }

    /// The greatest value that a quorum of each set of voters has reached (I4: only voters count). `reached` returns the value
    /// of a voter. `None` without voters.
    #[must_use]
    pub fn quorum_value<T: Ord + Copy>(&self, mut reached: impl FnMut(NodeId) -> T) -> Option<T> {
        let mut least: Option<T> = None;
        for voters in self.voter_sets() {
            let mut values: InlineVec<T> = voters.into_iter().map(&mut reached).collect();
            values.sort_unstable();
            // Of n values in ascending order, those from position (n - 1) / 2 on are more than half.
            let least_of_quorum = values.len().saturating_sub(1) / 2;
            let value = *values.get(least_of_quorum)?;
            least = Some(least.map_or(value, |least| least.min(value)));
        }
        least
    }

    /// This configuration with `changes` applied. Neither `self` nor the result is joint.
    ///
    /// # Errors
    /// The changed configuration is invalid.
    pub fn with_changes(&self, changes: &[MemberChange]) -> Result<Self, InvalidMembership> {
        let mut members = self.members.clone();
        for change in changes {
            match change {
                MemberChange::Set(id, _) | MemberChange::Add(id, _)
                    if self.members.contains_key(id) && !members.contains_key(id) =>
                {
                    return Err(InvalidMembership::RemovedAndAdded(*id));
                }
                MemberChange::Add(id, _) if members.contains_key(id) => {
                    return Err(InvalidMembership::AlreadyAMember(*id));
                }
                MemberChange::Set(id, member) | MemberChange::Add(id, member) => {
                    let added = Some(StorageId::UNKNOWN);
                    let storage = members.get(id).map_or(added, |member| member.storage);
                    members.insert(*id, Member { storage, ..member.clone() });
                }
                MemberChange::Remove(id) => {
                    members.remove(id).ok_or(InvalidMembership::NotAMember(*id))?;
                }
            }
        }
        self.check_endpoints(&members)?;
        let is_witness = |member: &Member| member.kind == MemberKind::Witness;
        let changes_witness = |(id, member): &(&NodeId, &Member)| {
            self.members.get(id).is_some_and(|before| is_witness(before) != is_witness(member))
        };
        if let Some((id, _)) = members.iter().find(changes_witness) {
            return Err(InvalidMembership::Witness(*id));
        }
        let changed = self.with_members(members);
        if !changed.members.keys().any(|id| changed.can_lead(*id)) {
            Err(InvalidMembership::NoVoter)
        } else {
            Ok(changed)
        }
    }

    /// Refuses an endpoint that is new for its member and that another member has. An endpoint that two members share in
    /// `self` already does not prevent other changes.
    fn check_endpoints(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), InvalidMembership> {
        let before = |id| self.members.get(&id).and_then(|member| member.endpoint.as_ref());
        for (node, member) in members {
            let Some(endpoint) = member.endpoint.as_ref().filter(|new| before(*node) != Some(*new)) else {
                continue;
            };
            let has_endpoint =
                |(id, other): &(&NodeId, &Member)| *id != node && other.endpoint.as_ref() == Some(endpoint);
            if let Some((owner, _)) = members.iter().find(has_endpoint) {
                return Err(InvalidMembership::EndpointTaken { node: *node, owner: *owner });
            }
        }
        Ok(())
    }

    /// The configuration that follows this one, which is not joint, on the way to `target`: the joint configuration of both
    /// if their voters differ, else `target` itself.
    #[must_use]
    pub fn step_towards(&self, target: &Self) -> Self {
        if self.voters().eq(target.voters()) {
            return target.clone();
        }
        let outgoing = self.members.iter().filter(|(_, member)| member.votes());
        let outgoing = outgoing.map(|(id, member)| (*id, member.clone())).collect();
        self.with_voters(target.members.clone(), outgoing)
    }

    /// The configuration that follows this joint one: the same without the outgoing voters.
    #[must_use]
    pub fn without_outgoing(&self) -> Self {
        self.with_members(self.members.clone())
    }
}

/// A list of the members, such as `0 voter, 1 voter, 2 joining`, followed by the outgoing voters in a joint configuration.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<String> =
            self.members.iter().map(|(id, member)| format!("{id} {}", member.kind)).collect();
        f.write_str(&members.join(", "))?;
        if self.is_joint() {
            let outgoing: Vec<String> = self.outgoing.keys().map(NodeId::to_string).collect();
            write!(f, " (joint with {})", outgoing.join(", "))?;
        }
        Ok(())
    }
}

/// Number of leaderships that a configuration names. With more, a disk that is restored could be older and still be compared; each
/// costs about 20 bytes in every configuration in the log.
pub const LEADERSHIPS_MAX: usize = 64;

/// Usually on the stack, because quorums are computed for every response of a follower.
type InlineVec<T> = SmallVec<[T; 8]>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(base: &Membership, id: u64, kind: MemberKind) -> Membership {
        base.with_changes(&[MemberChange::Set(NodeId(id), Member::new(kind))]).unwrap()
    }

    /// Like [`with`], with a known storage of the member.
    fn with_known(base: &Membership, id: u64, kind: MemberKind) -> Membership {
        let mut members = with(base, id, kind).members().clone();
        members.get_mut(&NodeId(id)).unwrap().storage = Some(StorageId(100 + id));
        base.with_members(members)
    }

    #[test]
    fn quorum_is_more_than_half_of_the_voters() {
        for (voters, quorum) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)] {
            let membership = Membership::of_voters(1..=voters);
            let first = |count| (1..=count).map(NodeId).collect();
            assert!(membership.has_quorum(&first(quorum)), "{voters} voters");
            assert!(!membership.has_quorum(&first(quorum - 1)), "{voters} voters");
        }
    }

    #[test]
    fn membership_without_voters_has_no_quorum() {
        let learners = Membership::new(BTreeMap::from([(NodeId(1), Member::new(MemberKind::Learner))]));
        assert!(!learners.has_quorum(&BTreeSet::from([NodeId(1)])));
        assert_eq!(learners.quorum_value(|_| 7), None);
        assert_eq!(Membership::default().quorum_value(|_| 7), None);
    }

    #[test]
    fn change_of_voters_goes_through_a_joint_configuration() {
        let three = Membership::of_voters(1..=3);
        let learning = with_known(&three, 4, MemberKind::Learner);
        assert_eq!(three.step_towards(&learning), learning, "no voter changes");
        let target = learning
            .with_changes(&[
                MemberChange::Remove(NodeId(1)),
                MemberChange::Set(NodeId(4), Member::new(MemberKind::Voter)),
            ])
            .unwrap();
        let joint = learning.step_towards(&target);
        assert!(joint.is_joint());
        assert_eq!(joint.voters().collect::<Vec<_>>(), [2, 3, 4, 1].map(NodeId));
        assert!(!joint.has_quorum(&[3, 4].map(NodeId).into()), "a quorum of the new voters alone");
        assert!(!joint.has_quorum(&[1, 2].map(NodeId).into()), "a quorum of the old voters alone");
        assert!(joint.has_quorum(&[1, 2, 4].map(NodeId).into()));
        assert_eq!(joint.without_outgoing(), target);
        assert_eq!(joint.to_string(), "2 voter, 3 voter, 4 voter (joint with 1, 2, 3)");
    }

    #[test]
    fn added_voter_does_not_vote_before_its_storage_is_known() {
        let two = Membership::of_voters([1, 2]);
        let added = with(&two, 3, MemberKind::Voter);
        assert!(
            !added.is_voter(NodeId(3)) && !added.can_lead(NodeId(3)) && !two.step_towards(&added).is_joint()
        );
        assert!(
            added.has_quorum(&[1, 2].map(NodeId).into()) && !added.has_quorum(&[1, 3].map(NodeId).into())
        );
        let known = with_known(&two, 3, MemberKind::Voter);
        assert!(known.is_voter(NodeId(3)) && added.step_towards(&known).is_joint());
        assert!(known.has_quorum(&[1, 3].map(NodeId).into()));
    }

    #[test]
    fn removal_of_the_last_voter_or_of_a_stranger_is_refused() {
        let one = Membership::of_voters([1]);
        assert_eq!(one.with_changes(&[MemberChange::Remove(NodeId(1))]), Err(InvalidMembership::NoVoter));
        assert_eq!(
            one.with_changes(&[MemberChange::Remove(NodeId(7))]),
            Err(InvalidMembership::NotAMember(NodeId(7)))
        );
    }

    #[test]
    fn change_that_removes_and_adds_one_id_is_refused() {
        let three = Membership::of_voters(1..=3);
        let voter = || Member::new(MemberKind::Voter);
        let replaced = [MemberChange::Remove(NodeId(2)), MemberChange::Set(NodeId(2), voter())];
        assert_eq!(three.with_changes(&replaced), Err(InvalidMembership::RemovedAndAdded(NodeId(2))));
        let replaced = [MemberChange::Remove(NodeId(2)), MemberChange::Add(NodeId(2), voter())];
        assert_eq!(three.with_changes(&replaced), Err(InvalidMembership::RemovedAndAdded(NodeId(2))));
        let elsewhere = [MemberChange::Set(NodeId(4), voter()), MemberChange::Remove(NodeId(4))];
        assert_eq!(three.with_changes(&elsewhere), Ok(three.clone()), "node 4 was no member before");
    }

    #[test]
    fn cluster_identity_stays_through_changes() {
        let cluster = ClusterId(7);
        let three = Membership::of_voters(1..=3).with_cluster(cluster);
        let target = three.with_changes(&[MemberChange::Remove(NodeId(3))]).unwrap();
        let joint = three.step_towards(&target);
        assert!(joint.is_joint());
        assert_eq!([target.cluster(), joint.cluster(), joint.without_outgoing().cluster()], [cluster; 3]);
        assert!(cluster.is_compatible_with(ClusterId::NONE) && !cluster.is_compatible_with(ClusterId(8)));
    }

    #[test]
    fn member_added_again_is_refused() {
        let two = Membership::of_voters(1..=2);
        let add = |id| MemberChange::Add(NodeId(id), Member::new(MemberKind::Joining));
        assert_eq!(two.with_changes(&[add(1)]), Err(InvalidMembership::AlreadyAMember(NodeId(1))));
        assert_eq!(two.with_changes(&[add(3), add(3)]), Err(InvalidMembership::AlreadyAMember(NodeId(3))));
        let three = two.with_changes(&[add(3)]).unwrap();
        let added = Member { storage: Some(StorageId::UNKNOWN), ..Member::new(MemberKind::Joining) };
        assert_eq!(three.get(NodeId(3)), Some(&added), "as Set adds it: not as a founding member");
    }

    #[test]
    fn endpoint_of_another_member_is_refused() {
        let at = |port| {
            let endpoint = Some(Endpoint::new("localhost", port).unwrap());
            Member { endpoint, ..Member::new(MemberKind::Voter) }
        };
        let two = Membership::new([(NodeId(1), at(1)), (NodeId(2), at(2))].into());
        let taken =
            |node, owner| Err(InvalidMembership::EndpointTaken { node: NodeId(node), owner: NodeId(owner) });
        assert_eq!(two.with_changes(&[MemberChange::Add(NodeId(3), at(2))]), taken(3, 2));
        assert_eq!(two.with_changes(&[MemberChange::Set(NodeId(1), at(2))]), taken(1, 2));
        let replaced = [MemberChange::Remove(NodeId(2)), MemberChange::Add(NodeId(3), at(2))];
        assert!(two.with_changes(&replaced).is_ok(), "the endpoint is free in the same step");
        let swapped = [MemberChange::Set(NodeId(1), at(2)), MemberChange::Set(NodeId(2), at(1))];
        assert!(two.with_changes(&swapped).is_ok(), "two members trade places");
        let shared = Membership::new([(NodeId(1), at(1)), (NodeId(2), at(1))].into());
        assert!(shared.with_changes(&[MemberChange::Set(NodeId(3), at(3))]).is_ok(), "it was shared before");
    }

    #[test]
    fn witness_counts_for_quorums_and_cannot_lead() {
        let membership = with_known(&Membership::of_voters([1, 2]), 3, MemberKind::Witness);
        assert!(membership.has_quorum(&[1, 3].map(NodeId).into()));
        assert!(membership.can_lead(NodeId(1)) && !membership.can_lead(NodeId(3)));
        let turn = MemberChange::Set(NodeId(3), Member::new(MemberKind::Voter));
        assert_eq!(membership.with_changes(&[turn]), Err(InvalidMembership::Witness(NodeId(3))));
        let alone = [MemberChange::Remove(NodeId(1)), MemberChange::Remove(NodeId(2))];
        assert_eq!(membership.with_changes(&alone), Err(InvalidMembership::NoVoter));
    }

    #[test]
    fn changed_member_keeps_its_storage_and_added_member_does_not() {
        let mut members = Membership::of_voters(1..=2).members().clone();
        members.get_mut(&NodeId(1)).unwrap().storage = Some(StorageId(7));
        let membership = Membership::new(members);
        let kept = with(&membership, 1, MemberKind::Learner);
        assert!(kept.trusts(NodeId(1), StorageId(7)) && !kept.trusts(NodeId(1), StorageId(8)));
        let removed = kept.with_changes(&[MemberChange::Remove(NodeId(1))]).unwrap();
        assert!(with(&removed, 1, MemberKind::Voter).trusts(NodeId(1), StorageId(8)));
    }

    proptest! {
        /// Compared with a brute-force search for the greatest value v such that a majority of each set is at v or above,
        /// for single and joint configurations of up to 7 voters.
        #[test]
        fn quorum_value_equals_brute_force_search(
            values in proptest::collection::vec(0u64..6, 8),
            incoming in proptest::collection::btree_set(0u64..8, 1..=7),
            outgoing in proptest::collection::btree_set(0u64..8, 0..=7),
        ) {
            let members = |ids: &BTreeSet<u64>| Membership::of_voters(ids.iter().copied()).members().clone();
            let membership = Membership::joint(members(&incoming), members(&outgoing));
            let at = |ids: &BTreeSet<u64>, v: u64| {
                ids.is_empty() || ids.iter().filter(|id| values[**id as usize] >= v).count() * 2 > ids.len()
            };
            let brute = (0..6).rev().find(|v| at(&incoming, *v) && at(&outgoing, *v)).unwrap();
            prop_assert_eq!(membership.quorum_value(|id| values[id.0 as usize]), Some(brute));
        }
    }
}
