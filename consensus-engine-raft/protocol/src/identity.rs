//! Protection from wrong disks: old copies, emptied disks, and disks of another cluster (I17 to I20).
//!
//! * A node compares its committed entries with those that every leader sends, and stops if they differ (I17). Two entries with
//!   one log id may differ too, after an old copy of a disk led in a term in which the disk had led before. Each leader therefore
//!   draws a number, which the first entry of its term names: a configuration, with the numbers of the leaders before. Logs whose
//!   entries at an index belong to leaders with different numbers differ there.
//! * A log that starts empty may be that of a former member whose disk was emptied. That member voted, and acknowledged
//!   entries that it no longer has. The node accepts entries, but it does not campaign until it holds everything that was
//!   committed when it joined; if it is a founding member, it neither votes nor counts towards quorums until then (I18). A
//!   member that a change has added votes and counts as soon as the configuration names its disk, because the removal of a
//!   former member with its id ended the promises of that member. Before its disk is named it is no voter
//!   ([`Member::votes`](consensus_core::Member::votes)), which prevents this:
//!   1. Node 2 is added and acknowledges an entry, which is committed with this acknowledgement.
//!   2. Node 2's disk is emptied before the leader has recorded it.
//!   3. A candidate that lacks the entry knows no disk of node 2, and would be elected with the vote of the empty disk.
//!
//!   A node joins with an empty log in three steps:
//!   1. It starts with an empty log and no configuration: [`HardState::joining`](consensus_core::HardState::joining) is 0.
//!   2. A leader reports a commit index whose entry is of the leader's own term. The node writes that index to `joining`.
//!   3. The node's disk holds the entries up to that index, and the node knows that they are committed: it is an ordinary
//!      member.
//! * The first leader draws the identity of the cluster (I20).

use consensus_core::{
    ClusterId, Leadership, LeadershipId, LogId, LogIndex, Membership, NodeId, SnapshotMeta, StorageId, Term,
};

use crate::{Append, Contradiction, EntryInfo, Output, Raft, TwoLeaders, raft::Role};

impl Raft {
    /// Returns the identity of the cluster to send to other nodes: the committed one, or on a leader the one in its log. A
    /// node that knows a committed identity refuses messages of a leader with another one.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        match self.role {
            // A leader has all committed entries, so no member of its cluster can know another identity. On a follower an
            // identity that is not committed may still be replaced; with it the follower would refuse the next leader.
            Role::Leader(_) => self.log.membership().cluster(),
            _ => self.hard.cluster,
        }
    }

    /// Records the committed identity of the cluster in the hard state. A log that started empty is read to its end first,
    /// because it may contain the identity of a cluster from which the current one was recovered.
    pub(crate) fn record_cluster(&mut self) {
        if self.hard.cluster != ClusterId::NONE || self.is_joining() {
            return;
        }
        let cluster = self.log.membership_at(self.commit).cluster();
        if cluster != ClusterId::NONE {
            self.hard.cluster = cluster;
            self.writes.hard_state();
        }
    }

    /// Whether the log holds `entry` at `index`: with the same term and, as far as the protocol can see, the same content.
    pub(crate) fn holds(&self, index: LogIndex, entry: &EntryInfo) -> bool {
        self.log.contains(LogId { term: entry.term, index }) && self.has_content_of(index, entry)
    }

    /// Compares configurations, because two histories may have given one log id to two entries and the protocol sees no
    /// payloads. This tells two first configurations apart. Purged entries are not compared.
    fn has_content_of(&self, index: LogIndex, entry: &EntryInfo) -> bool {
        index <= self.log.purged().index || self.log.membership_entry(index) == entry.membership
    }

    /// Finds an entry in a leader's message that differs from a committed entry of this node, or a configuration of another
    /// cluster (I17). Entries that are not committed here are not compared.
    pub(crate) fn find_contradiction(
        &self,
        leader: NodeId,
        append: &Append,
        entries: &[EntryInfo],
        has_membership: bool,
    ) -> Option<Contradiction> {
        let contradiction = |own, theirs| Some(Contradiction { own, theirs, leader });
        if append.prev.index <= self.commit {
            if let Some(own) = self.log.id_at(append.prev.index).filter(|own| *own != append.prev) {
                return contradiction(own, append.prev);
            }
            let is_other = |own: &Leadership| !own.id.is_compatible_with(append.prev_leadership);
            if let Some(own) = self.log.leadership_at(append.prev.index).filter(is_other) {
                return contradiction(LogId { term: own.first.term, index: append.prev.index }, append.prev);
            }
            let committed = self.commit.since(append.prev.index) as usize;
            for (index, entry) in (append.prev.index.0 + 1..).map(LogIndex).zip(entries).take(committed) {
                let theirs = LogId { term: entry.term, index };
                let differs = |own: &LogId| *own != theirs || !self.has_content_of(index, entry);
                if let Some(own) = self.log.id_at(index).filter(differs) {
                    return contradiction(own, theirs);
                }
                // Of purged entries only the leaderships are known.
                let named = entry.membership.as_ref().and_then(|sent| sent.leadership_at(index));
                let own =
                    self.log.leadership_at(index).filter(|own| named.is_some_and(|named| named != *own));
                if let Some(own) = own {
                    return contradiction(LogId { term: own.first.term, index }, theirs);
                }
            }
        }
        if has_membership {
            let is_foreign = |entry: &EntryInfo| {
                entry.membership.as_ref().is_some_and(|membership| !self.is_own_cluster(membership))
            };
            let at = entries.iter().position(is_foreign)?;
            let theirs =
                LogId { term: entries[at].term, index: LogIndex(append.prev.index.0 + 1 + at as u64) };
            return contradiction(self.log.id_at(self.commit).unwrap_or_default(), theirs);
        }
        None
    }

    /// Finds the contradiction between a snapshot and the committed entries or the cluster of this node (I17). Of the entries
    /// before the snapshot's last one, their leaderships are compared.
    pub(crate) fn contradicts_snapshot(&self, leader: NodeId, meta: &SnapshotMeta) -> Option<Contradiction> {
        let contradiction = |own, theirs| Some(Contradiction { own, theirs, leader });
        let committed = self.log.id_at(self.commit).unwrap_or_default();
        if meta.last.index <= self.commit
            && let Some(own) = self.log.id_at(meta.last.index).filter(|own| *own != meta.last)
        {
            return contradiction(own, meta.last);
        }
        if meta.last.index > self.commit && !self.is_own_cluster(&meta.membership) {
            return contradiction(committed, meta.last);
        }
        let index = self.commit.min(meta.last.index);
        let own = self.log.leadership_at(index)?;
        let theirs = meta.membership.leadership_at(index).filter(|theirs| *theirs != own)?;
        contradiction(LogId { term: own.first.term, index }, LogId { term: theirs.first.term, index })
    }

    /// Whether the committed entries of this node were compared with a snapshot that has just arrived (I17). If not, too many
    /// leaderships have begun after them: the snapshot does not name theirs any more.
    #[must_use]
    pub fn was_compared_with(&self, meta: &SnapshotMeta) -> bool {
        let index = self.commit.min(meta.last.index);
        let (own, theirs) = (self.log.leadership_at(index), &meta.membership);
        own.is_none() || theirs.leaderships().is_empty() || theirs.leadership_at(index).is_some()
    }

    fn is_own_cluster(&self, membership: &Membership) -> bool {
        self.hard.cluster.is_compatible_with(membership.cluster())
    }

    /// Stops this node's participation in the protocol.
    pub(crate) fn stop_contradicted(&mut self, contradiction: Contradiction) {
        self.contradicted = true;
        self.outputs.push(Output::Contradicted(contradiction));
    }

    /// Whether `from` is the only leader of `term` (this node's term) that this node has heard of. If not, stops this node's
    /// participation in the protocol.
    pub(crate) fn is_only_leader(&mut self, from: NodeId, term: Term) -> bool {
        let known = match (&self.role, self.followed) {
            (Role::Leader(_), _) => self.config.id,
            (_, Some((followed, leader))) if followed == term => leader,
            _ => from,
        };
        if known != from {
            self.contradicted = true;
            self.outputs.push(Output::TwoLeaders(TwoLeaders { term, known, other: from }));
        }
        known == from
    }

    /// Returns the configuration that a leader appends at the start of its term: the one in force, with an identity of the cluster
    /// if it has none (I20), and with the new leadership (I17). `None` if this node draws neither.
    pub(crate) fn first_membership(&self) -> Option<Membership> {
        let mut membership = Membership::clone(self.log.membership());
        if membership.cluster() == ClusterId::NONE {
            membership = membership.with_cluster(self.config.new_cluster);
        }
        if self.config.leadership != LeadershipId::NONE {
            let first = LogId { term: self.hard.term, index: self.log.last().index.next() };
            membership = membership.with_leadership(Leadership { first, id: self.config.leadership });
        }
        (membership != **self.log.membership()).then_some(membership)
    }

    /// Marks a log that starts empty as lacking the entries that were committed before (I18).
    pub(crate) fn start_joining(&mut self) {
        self.hard.joining = Some(LogIndex::ZERO);
    }

    /// Whether the log may still lack entries that were committed when it joined.
    pub(crate) fn is_joining(&self) -> bool {
        self.hard.joining.is_some()
    }

    /// Whether this node may vote for a candidate whose configuration names `known` as this node's storage. A joining
    /// storage may vote only if the configuration names it: the removal of a former member with this id ended that member's
    /// promises.
    pub(crate) fn may_vote(&self, known: Option<StorageId>) -> bool {
        known.map_or(!self.is_joining(), |known| known == self.storage)
    }

    /// Records the commit index that a joining log has to reach: the first one reported by a leader that has committed an
    /// entry of its own term. The commit index of a new leader before that may lack entries committed under earlier leaders.
    pub(crate) fn record_leader_commit(&mut self, append: &Append) {
        if self.hard.joining == Some(LogIndex::ZERO)
            && self.log.id_at(append.commit).is_some_and(|id| id.term == append.term)
        {
            self.hard.joining = Some(append.commit);
            self.writes.hard_state();
        }
    }

    /// Votes for the current leader of the term. Before its disk was emptied this node may have voted in this term; a vote
    /// for the leader that was elected cannot elect another one (I1).
    pub(crate) fn vote_while_joining(&mut self, leader: NodeId) {
        if self.is_joining() && self.hard.voted_for.is_none() && matches!(self.role, Role::Follower) {
            self.hard.voted_for = Some(leader);
            self.writes.hard_state();
        }
    }

    /// Ends joining when the node's disk holds the entries that were committed when it joined.
    pub(crate) fn finish_joining(&mut self) {
        let Some(index) = self.hard.joining.filter(|index| *index > LogIndex::ZERO) else { return };
        if self.durable >= index && self.commit >= index {
            self.hard.joining = None;
            self.writes.hard_state();
            self.record_cluster();
        }
    }
}
