//! Disks that are not what they are taken for: copies of old ones, emptied ones, those of another cluster (I17 to I20).
//!
//! * What is committed here is compared with what every leader sends (I17): a node that differs ends.
//! * A log that began empty may be that of a former member whose disk was emptied, which voted and acknowledged what it
//!   no longer knows. It takes the log, but does not campaign, and as a founding member it neither votes nor counts, until it
//!   holds what was committed at that time (I18). One that a change has added votes and counts as soon as the configuration
//!   names its disk: what a former member of its id promised ended with its removal. Before that it is no voter
//!   ([`Member::votes`](consensus_core::Member::votes)):
//!   1. node 2 is added, and acknowledges an entry, which is committed with that;
//!   2. before the leader has noted its disk, that is emptied;
//!   3. a candidate that lacks the entry knows of no other disk of node 2, and would be elected with the vote of the empty one.
//!
//!   The joining of an empty log ends so:
//!   1. it starts with an empty log and no configuration: [`HardState::joining`](consensus_core::HardState::joining) is 0;
//!   2. a leader tells it a commit index at which the entry is of the leader's own term, which is written down;
//!   3. its own disk holds that much, and it knows that it is committed: it is a member like any other.
//! * The first leader draws the identity of the cluster (I20).

use consensus_core::{ClusterId, LogId, LogIndex, Membership, NodeId, SnapshotMeta, StorageId, Term};

use crate::{Append, Contradiction, EntryInfo, Output, Raft, TwoLeaders, raft::Role};

impl Raft {
    /// Identity of the cluster, as this node is to tell it to others: what it has known to be committed, or on a leader what its
    /// log has. Nobody who knows a committed identity takes anything from a leader that has another one.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        match self.role {
            // A leader has all committed entries, so that no member of its cluster can know another one. An identity that is
            // not committed may yet be replaced: a follower that held to it would refuse the next leader.
            Role::Leader(_) => self.log.membership().cluster(),
            _ => self.hard.cluster,
        }
    }

    /// The identity that is committed is the one of this node from now on. A log that began empty is read to its end first: it
    /// may tell of the cluster that this one was recovered from.
    pub(crate) fn note_cluster(&mut self) {
        if self.hard.cluster != ClusterId::NONE || self.is_joining() {
            return;
        }
        let cluster = self.log.membership_at(self.commit).cluster();
        if cluster != ClusterId::NONE {
            self.hard.cluster = cluster;
            self.writes.hard_state();
        }
    }

    /// Whether the log holds this very entry at `index`: the same term, and as far as it can be seen the same content.
    pub(crate) fn holds(&self, index: LogIndex, entry: &EntryInfo) -> bool {
        self.log.contains(LogId { term: entry.term, index }) && self.has_content_of(index, entry)
    }

    /// Two histories may have given one id to two entries. The protocol sees no payloads; it compares configurations, which
    /// tell two first configurations apart. What is purged is not compared.
    fn has_content_of(&self, index: LogIndex, entry: &EntryInfo) -> bool {
        index <= self.log.purged().index || self.log.membership_entry(index) == entry.membership
    }

    /// An entry of a leader's message that differs from one that is committed here, or a configuration of another cluster
    /// (I17). What is not committed here is not looked up.
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
            let committed = self.commit.since(append.prev.index) as usize;
            for (index, entry) in (append.prev.index.0 + 1..).map(LogIndex).zip(entries).take(committed) {
                let theirs = LogId { term: entry.term, index };
                let differs = |own: &LogId| *own != theirs || !self.has_content_of(index, entry);
                if let Some(own) = self.log.id_at(index).filter(differs) {
                    return contradiction(own, theirs);
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

    /// The same for a snapshot.
    pub(crate) fn contradicts_snapshot(&self, leader: NodeId, meta: &SnapshotMeta) -> Option<Contradiction> {
        let own = if meta.last.index <= self.commit {
            self.log.id_at(meta.last.index).filter(|own| *own != meta.last)?
        } else if !self.is_own_cluster(&meta.membership) {
            self.log.id_at(self.commit).unwrap_or_default()
        } else {
            return None;
        };
        Some(Contradiction { own, theirs: meta.last, leader })
    }

    fn is_own_cluster(&self, membership: &Membership) -> bool {
        self.hard.cluster.is_compatible_with(membership.cluster())
    }

    /// Ends this node's part in the protocol.
    pub(crate) fn contradict(&mut self, contradiction: Contradiction) {
        self.contradicted = true;
        self.outputs.push(Output::Contradicted(contradiction));
    }

    /// Whether `from` is the only leader of its `term`, this node's term, that this node has heard of. Ends this node's part in
    /// the protocol if not.
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

    /// The configuration that the first leader of a cluster begins its term with: the one in force, with an identity (I20).
    pub(crate) fn founding_membership(&self) -> Option<Membership> {
        let membership = self.log.membership();
        let is_founded =
            membership.cluster() != ClusterId::NONE || self.config.new_cluster == ClusterId::NONE;
        (!is_founded).then(|| Membership::clone(membership).with_cluster(self.config.new_cluster))
    }

    /// A log that begins empty has to be caught up with what was committed before it (I18).
    pub(crate) fn begin_joining(&mut self) {
        self.hard.joining = Some(LogIndex::ZERO);
    }

    /// Whether the log still lacks what was committed when it joined.
    pub(crate) fn is_joining(&self) -> bool {
        self.hard.joining.is_some()
    }

    /// Whether this node may vote for a candidate whose configuration knows this of its storage. A storage that joins may
    /// vote if the configuration names it: what a former member of its id promised ended with its removal.
    pub(crate) fn may_vote(&self, known: Option<StorageId>) -> bool {
        known.map_or(!self.is_joining(), |known| known == self.storage)
    }

    /// The first commit index of a leader that has committed an entry of its own term is the one to reach. What a new leader
    /// tells before may be less than what was committed under earlier ones.
    pub(crate) fn note_commit_of_leader(&mut self, append: &Append) {
        if self.hard.joining == Some(LogIndex::ZERO)
            && self.log.id_at(append.commit).is_some_and(|id| id.term == append.term)
        {
            self.hard.joining = Some(append.commit);
            self.writes.hard_state();
        }
    }

    /// A former self may have voted in the leader's term; to vote for its leader gives nobody else a vote in it (I1).
    pub(crate) fn note_vote_while_joining(&mut self, leader: NodeId) {
        if self.is_joining() && self.hard.voted_for.is_none() && matches!(self.role, Role::Follower) {
            self.hard.voted_for = Some(leader);
            self.writes.hard_state();
        }
    }

    /// Ends the joining of a log that holds, on its disk, what was committed when it joined.
    pub(crate) fn finish_joining(&mut self) {
        let Some(index) = self.hard.joining.filter(|index| *index > LogIndex::ZERO) else { return };
        if self.durable >= index && self.commit >= index {
            self.hard.joining = None;
            self.writes.hard_state();
            self.note_cluster();
        }
    }
}
