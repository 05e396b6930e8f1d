//! Who takes part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{ClusterId, Endpoint, NodeId, StorageId};

/// What a member does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemberKind {
    /// Votes, and counts for commitment.
    Voter,
    /// Receives the log, but neither votes nor counts (dissertation §4.2.1).
    Learner,
    /// A learner that the leader makes a voter as soon as it has caught up.
    Joining,
    /// Votes and counts like a voter, but is sent no commands and never leads: a cheap third that breaks ties.
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
    /// Whether members of this kind vote. See [`Member::votes`] for one of them.
    #[must_use]
    pub fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Witness)
    }
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What it does.
    pub kind: MemberKind,
    /// Where its transport listens; `None` where addresses are known otherwise (in-process transports).
    pub endpoint: Option<Endpoint>,
    /// Who has a higher one gets the lead, when it has caught up. Usually all have 0.
    pub priority: u32,
    /// Where it serves its clients, for engines' users to tell them; engines do not use it.
    pub client_endpoint: Option<Endpoint>,
    /// Its log storage, from when a leader first heard of it: a node that comes back with another one has forgotten what
    /// it voted and acknowledged, and counts no more until it is removed and added again. Until then
    /// [`StorageId::UNHEARD`] for a member that a change added, which does not vote yet ([`votes`](Self::votes)), and `None`
    /// for a founding member, which may have voted and acknowledged without anybody noting its storage, and for one whose
    /// storage has no identity.
    pub storage: Option<StorageId>,
}

impl Member {
    /// A member without endpoints.
    #[must_use]
    pub fn new(kind: MemberKind) -> Self {
        Self { kind, endpoint: None, priority: 0, client_endpoint: None, storage: None }
    }

    /// Whether it votes and counts for commitment. A member that a change added does not before its storage is known: if its
    /// disk were emptied before anybody had noted which one acknowledged and voted, the empty disk would vote in its place.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.kind.votes() && self.storage != Some(StorageId::UNHEARD)
    }

    /// Whether an empty storage in place of its own is noticed.
    #[must_use]
    pub fn storage_is_known(&self) -> bool {
        self.storage.is_some_and(|known| known != StorageId::UNHEARD)
    }

    /// Whether its votes and acknowledgements count when they come from `storage`.
    #[must_use]
    pub fn trusts(&self, storage: StorageId) -> bool {
        self.storage.is_none_or(|known| known == storage || known == StorageId::UNHEARD)
    }
}

/// The configuration of a cluster (dissertation §4): who votes, who learns. It is itself an entry of the log and takes
/// effect when it is appended.
///
/// While voters change it is *joint* (§6): elections and commitment then need a quorum of the voters as they will be and
/// a quorum of the voters as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
    /// The voters as they were; empty unless joint.
    outgoing: BTreeMap<NodeId, Member>,
    /// Identity of the cluster, [`ClusterId::NONE`] until its first leader has drawn one.
    cluster: ClusterId,
}

/// One change of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds a member, or gives one another kind or other endpoints. Its [`storage`](Member::storage) is kept if it is a
    /// member, and learned anew if it was none.
    Set(NodeId, Member),
    /// Removes a member.
    Remove(NodeId),
    /// Adds a member; refused if the node is one. A caller that means somebody new cannot demote or move a member by
    /// mistake.
    Add(NodeId, Member),
}

/// Why a configuration cannot be what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMembership {
    /// Nobody could ever be elected or commit anything.
    #[error("no voter would be left that can lead")]
    NoVoter,
    /// A witness's log lacks the commands: it would lead, or apply, what it does not have.
    #[error(
        "node {0} cannot become a witness or cease to be one: remove it, empty its disk, and add it again"
    )]
    Witness(NodeId),
    /// It cannot be removed.
    #[error("node {0} is not a member")]
    NotAMember(NodeId),
    /// The change removes a member and adds its id again. Its new disk would count as the old one, which may have held what
    /// was committed: membership is about disks, not ids.
    #[error(
        "node {0} is removed and added again in one change: remove it in one change, and add it in another when that is done"
    )]
    RemovedAndAdded(NodeId),
    /// It cannot be added.
    #[error(
        "node {0} is a member already: change it as a member, or remove it first if its disk was emptied or replaced"
    )]
    AlreadyAMember(NodeId),
    /// Two members cannot listen at one place: whoever listens there would be taken for both.
    #[error("node {node} cannot have the consensus endpoint that node {owner} has")]
    EndpointTaken {
        /// The member that was to get the endpoint.
        node: NodeId,
        /// The member that has it.
        owner: NodeId,
    },
}

impl Membership {
    /// From its members.
    #[must_use]
    pub fn new(members: BTreeMap<NodeId, Member>) -> Self {
        Self { members, outgoing: BTreeMap::new(), cluster: ClusterId::NONE }
    }

    /// A joint configuration: `members`, and the voters as they were.
    #[must_use]
    pub fn joint(members: BTreeMap<NodeId, Member>, outgoing: BTreeMap<NodeId, Member>) -> Self {
        Self { members, outgoing, cluster: ClusterId::NONE }
    }

    /// The same members in the cluster with this identity.
    #[must_use]
    pub fn with_cluster(self, cluster: ClusterId) -> Self {
        Self { cluster, ..self }
    }

    /// The same cluster with these members instead; not joint.
    #[must_use]
    pub fn with_members(&self, members: BTreeMap<NodeId, Member>) -> Self {
        Self::new(members).with_cluster(self.cluster)
    }

    /// Identity of the cluster; [`ClusterId::NONE`] until its first leader has drawn one.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Voters only, without endpoints.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = u64>) -> Self {
        Self::new(voters.into_iter().map(|id| (NodeId(id), Member::new(MemberKind::Voter))).collect())
    }

    /// The members by id; in a joint configuration those that will be.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// In a joint configuration the voters as they were.
    #[must_use]
    pub fn outgoing(&self) -> &BTreeMap<NodeId, Member> {
        &self.outgoing
    }

    /// Whether two sets of voters decide.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Everybody to whom the log goes: members, and voters that are leaving.
    pub fn everybody(&self) -> impl Iterator<Item = (NodeId, &Member)> + '_ {
        let leaving = self.outgoing.iter().filter(|(id, _)| !self.members.contains_key(id));
        self.members.iter().chain(leaving).map(|(id, member)| (*id, member))
    }

    /// What is known of `node`.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).or_else(|| self.outgoing.get(&node))
    }

    /// Ids of all who vote.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.everybody().map(|(id, _)| id).filter(|id| self.is_voter(*id))
    }

    /// Whether `node` votes, in either set of voters.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(Member::votes) || self.outgoing.contains_key(&node)
    }

    /// Whether `node` may be elected: it votes and is no witness.
    #[must_use]
    pub fn can_lead(&self, node: NodeId) -> bool {
        let leads = |members: &BTreeMap<NodeId, Member>| {
            members.get(&node).is_some_and(|member| member.kind == MemberKind::Voter && member.votes())
        };
        leads(&self.members) || leads(&self.outgoing)
    }

    /// Whether `node` is the one voter: its own durable write is a quorum.
    #[must_use]
    pub fn is_only_voter(&self, node: NodeId) -> bool {
        let mut voters = self.voters();
        voters.next() == Some(node) && voters.next().is_none()
    }

    /// Whether votes and acknowledgements of `node` count when they come from `storage`.
    #[must_use]
    pub fn trusts(&self, node: NodeId, storage: StorageId) -> bool {
        self.get(node).is_none_or(|member| member.trusts(storage))
    }

    /// The sets of voters that decide: one, or two in a joint configuration.
    fn voter_sets(&self) -> impl Iterator<Item = Few<NodeId>> {
        let voters = self.members.iter().filter(|(_, member)| member.votes());
        let incoming = voters.map(|(id, _)| *id).collect();
        let outgoing = self.is_joint().then(|| self.outgoing.keys().copied().collect());
        std::iter::once(incoming).chain(outgoing)
    }

    /// Whether `nodes` hold a quorum - more than half - of each set of voters. Without voters nothing does.
    #[must_use]
    pub fn has_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.quorum_value(|id| nodes.contains(&id)) == Some(true)
    }

    /// The greatest value that a quorum of each set of voters has reached, `reached` telling each one's (I4: only voters
    /// count). `None` without voters.
    #[must_use]
    pub fn quorum_value<T: Ord + Copy>(&self, mut reached: impl FnMut(NodeId) -> T) -> Option<T> {
        let mut least: Option<T> = None;
        for voters in self.voter_sets() {
            let mut values: Few<T> = voters.into_iter().map(&mut reached).collect();
            values.sort_unstable();
            // With n values in ascending order those from position (n - 1) / 2 on are more than half.
            let least_of_quorum = values.len().saturating_sub(1) / 2;
            let value = *values.get(least_of_quorum)?;
            least = Some(least.map_or(value, |least| least.min(value)));
        }
        least
    }

    /// The configuration after `changes`, as one that is not joint. `self` must not be joint either.
    ///
    /// # Errors
    /// It cannot be.
    pub fn changed(&self, changes: &[MemberChange]) -> Result<Self, InvalidMembership> {
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
                    let added = Some(StorageId::UNHEARD);
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
        let turned = |(id, member): &(&NodeId, &Member)| {
            self.members.get(id).is_some_and(|before| is_witness(before) != is_witness(member))
        };
        if let Some((id, _)) = members.iter().find(turned) {
            return Err(InvalidMembership::Witness(*id));
        }
        let changed = self.with_members(members);
        if !changed.members.keys().any(|id| changed.can_lead(*id)) {
            Err(InvalidMembership::NoVoter)
        } else {
            Ok(changed)
        }
    }

    /// Refuses an endpoint that is new for its member and that another member has. What two members share already, by a
    /// configuration of before this check, stands in the way of no other change.
    fn check_endpoints(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), InvalidMembership> {
        let before = |id| self.members.get(&id).and_then(|member| member.endpoint.as_ref());
        for (node, member) in members {
            let Some(endpoint) = member.endpoint.as_ref().filter(|new| before(*node) != Some(*new)) else {
                continue;
            };
            let has =
                |(id, other): &(&NodeId, &Member)| *id != node && other.endpoint.as_ref() == Some(endpoint);
            if let Some((owner, _)) = members.iter().find(has) {
                return Err(InvalidMembership::EndpointTaken { node: *node, owner: *owner });
            }
        }
        Ok(())
    }

    /// The next step from this configuration, which is not joint, towards `target`: the joint one of both if voters
    /// differ, else `target` itself.
    #[must_use]
    pub fn towards(&self, target: &Self) -> Self {
        if self.voters().eq(target.voters()) {
            return target.clone();
        }
        let outgoing = self.members.iter().filter(|(_, member)| member.votes());
        let outgoing = outgoing.map(|(id, member)| (*id, member.clone())).collect();
        Self::joint(target.members.clone(), outgoing).with_cluster(self.cluster)
    }

    /// The configuration after a joint one.
    #[must_use]
    pub fn left(&self) -> Self {
        self.with_members(self.members.clone())
    }
}

/// The members in short: `0 voter, 1 voter, 2 joining`, and in a joint configuration who voted before.
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

/// On the stack: a quorum is looked for with every answer of a follower.
type Few<T> = SmallVec<[T; 8]>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(base: &Membership, id: u64, kind: MemberKind) -> Membership {
        base.changed(&[MemberChange::Set(NodeId(id), Member::new(kind))]).unwrap()
    }

    /// The same, with the storage of the member noted.
    fn with_known(base: &Membership, id: u64, kind: MemberKind) -> Membership {
        let mut members = with(base, id, kind).members().clone();
        members.get_mut(&NodeId(id)).unwrap().storage = Some(StorageId(100 + id));
        base.with_members(members)
    }

    #[test]
    fn quorums_are_more_than_half() {
        for (voters, quorum) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)] {
            let membership = Membership::of_voters(1..=voters);
            let first = |count| (1..=count).map(NodeId).collect();
            assert!(membership.has_quorum(&first(quorum)), "{voters} voters");
            assert!(!membership.has_quorum(&first(quorum - 1)), "{voters} voters");
        }
    }

    #[test]
    fn without_voters_nothing_is_a_quorum() {
        let learners = Membership::new(BTreeMap::from([(NodeId(1), Member::new(MemberKind::Learner))]));
        assert!(!learners.has_quorum(&BTreeSet::from([NodeId(1)])));
        assert_eq!(learners.quorum_value(|_| 7), None);
        assert_eq!(Membership::default().quorum_value(|_| 7), None);
    }

    #[test]
    fn a_change_of_voters_goes_through_a_joint_configuration() {
        let three = Membership::of_voters(1..=3);
        let learning = with_known(&three, 4, MemberKind::Learner);
        assert_eq!(three.towards(&learning), learning, "no voter changes");
        let target = learning
            .changed(&[
                MemberChange::Remove(NodeId(1)),
                MemberChange::Set(NodeId(4), Member::new(MemberKind::Voter)),
            ])
            .unwrap();
        let joint = learning.towards(&target);
        assert!(joint.is_joint());
        assert_eq!(joint.voters().collect::<Vec<_>>(), [2, 3, 4, 1].map(NodeId));
        assert!(!joint.has_quorum(&[3, 4].map(NodeId).into()), "a quorum of the new voters alone");
        assert!(!joint.has_quorum(&[1, 2].map(NodeId).into()), "a quorum of the old voters alone");
        assert!(joint.has_quorum(&[1, 2, 4].map(NodeId).into()));
        assert_eq!(joint.left(), target);
        assert_eq!(joint.to_string(), "2 voter, 3 voter, 4 voter (joint with 1, 2, 3)");
    }

    #[test]
    fn added_voter_does_not_vote_before_its_storage_is_known() {
        let two = Membership::of_voters([1, 2]);
        let added = with(&two, 3, MemberKind::Voter);
        assert!(!added.is_voter(NodeId(3)) && !added.can_lead(NodeId(3)) && !two.towards(&added).is_joint());
        assert!(
            added.has_quorum(&[1, 2].map(NodeId).into()) && !added.has_quorum(&[1, 3].map(NodeId).into())
        );
        let known = with_known(&two, 3, MemberKind::Voter);
        assert!(known.is_voter(NodeId(3)) && added.towards(&known).is_joint());
        assert!(known.has_quorum(&[1, 3].map(NodeId).into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let one = Membership::of_voters([1]);
        assert_eq!(one.changed(&[MemberChange::Remove(NodeId(1))]), Err(InvalidMembership::NoVoter));
        assert_eq!(
            one.changed(&[MemberChange::Remove(NodeId(7))]),
            Err(InvalidMembership::NotAMember(NodeId(7)))
        );
    }

    #[test]
    fn change_that_removes_and_adds_one_id_is_refused() {
        let three = Membership::of_voters(1..=3);
        let voter = || Member::new(MemberKind::Voter);
        let replaced = [MemberChange::Remove(NodeId(2)), MemberChange::Set(NodeId(2), voter())];
        assert_eq!(three.changed(&replaced), Err(InvalidMembership::RemovedAndAdded(NodeId(2))));
        let replaced = [MemberChange::Remove(NodeId(2)), MemberChange::Add(NodeId(2), voter())];
        assert_eq!(three.changed(&replaced), Err(InvalidMembership::RemovedAndAdded(NodeId(2))));
        let elsewhere = [MemberChange::Set(NodeId(4), voter()), MemberChange::Remove(NodeId(4))];
        assert_eq!(three.changed(&elsewhere), Ok(three.clone()), "node 4 was no member before");
    }

    #[test]
    fn cluster_identity_stays_through_changes() {
        let cluster = ClusterId(7);
        let three = Membership::of_voters(1..=3).with_cluster(cluster);
        let target = three.changed(&[MemberChange::Remove(NodeId(3))]).unwrap();
        let joint = three.towards(&target);
        assert!(joint.is_joint());
        assert_eq!([target.cluster(), joint.cluster(), joint.left().cluster()], [cluster; 3]);
        assert!(cluster.is_compatible_with(ClusterId::NONE) && !cluster.is_compatible_with(ClusterId(8)));
    }

    #[test]
    fn member_added_again_is_refused() {
        let two = Membership::of_voters(1..=2);
        let add = |id| MemberChange::Add(NodeId(id), Member::new(MemberKind::Joining));
        assert_eq!(two.changed(&[add(1)]), Err(InvalidMembership::AlreadyAMember(NodeId(1))));
        assert_eq!(two.changed(&[add(3), add(3)]), Err(InvalidMembership::AlreadyAMember(NodeId(3))));
        let three = two.changed(&[add(3)]).unwrap();
        let added = Member { storage: Some(StorageId::UNHEARD), ..Member::new(MemberKind::Joining) };
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
        assert_eq!(two.changed(&[MemberChange::Add(NodeId(3), at(2))]), taken(3, 2));
        assert_eq!(two.changed(&[MemberChange::Set(NodeId(1), at(2))]), taken(1, 2));
        let replaced = [MemberChange::Remove(NodeId(2)), MemberChange::Add(NodeId(3), at(2))];
        assert!(two.changed(&replaced).is_ok(), "the endpoint is free in the same step");
        let swapped = [MemberChange::Set(NodeId(1), at(2)), MemberChange::Set(NodeId(2), at(1))];
        assert!(two.changed(&swapped).is_ok(), "two members trade places");
        let shared = Membership::new([(NodeId(1), at(1)), (NodeId(2), at(1))].into());
        assert!(shared.changed(&[MemberChange::Set(NodeId(3), at(3))]).is_ok(), "it was shared before");
    }

    #[test]
    fn a_witness_counts_and_cannot_lead() {
        let membership = with_known(&Membership::of_voters([1, 2]), 3, MemberKind::Witness);
        assert!(membership.has_quorum(&[1, 3].map(NodeId).into()));
        assert!(membership.can_lead(NodeId(1)) && !membership.can_lead(NodeId(3)));
        let turn = MemberChange::Set(NodeId(3), Member::new(MemberKind::Voter));
        assert_eq!(membership.changed(&[turn]), Err(InvalidMembership::Witness(NodeId(3))));
        let alone = [MemberChange::Remove(NodeId(1)), MemberChange::Remove(NodeId(2))];
        assert_eq!(membership.changed(&alone), Err(InvalidMembership::NoVoter));
    }

    #[test]
    fn a_member_keeps_its_storage_and_a_new_one_brings_its_own() {
        let mut members = Membership::of_voters(1..=2).members().clone();
        members.get_mut(&NodeId(1)).unwrap().storage = Some(StorageId(7));
        let membership = Membership::new(members);
        let kept = with(&membership, 1, MemberKind::Learner);
        assert!(kept.trusts(NodeId(1), StorageId(7)) && !kept.trusts(NodeId(1), StorageId(8)));
        let removed = kept.changed(&[MemberChange::Remove(NodeId(1))]).unwrap();
        assert!(with(&removed, 1, MemberKind::Voter).trusts(NodeId(1), StorageId(8)));
    }

    proptest! {
        /// Against brute force, for all sizes up to 7 and joint ones: the greatest value v such that a majority of each
        /// set is at v or above.
        #[test]
        fn quorum_value_is_what_brute_force_finds(
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
