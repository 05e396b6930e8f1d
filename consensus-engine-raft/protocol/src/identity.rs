//! Disks that are not what they are taken for: copies of old ones, emptied ones, those of another cluster (I17 to I20).
//!
//! * What is committed here is compared with what every leader sends (I17): a node that differs ends.
//! * A log that began empty may be that of a former member whose disk was emptied, which voted and acknowledged what it
//!   no longer knows. It takes the log, but does not campaign, and as a founding member it neither votes nor counts, until it
//!   holds what was committed at that time (I18). One that a change has added votes and counts at once: without that a
//!   cluster of one voter could not grow, as new members may be needed to commit anything.
//!   1. it starts with an empty log and no configuration: [`HardState::joining`](consensus_core::HardState::joining) is 0;
//!   2. the first leader with a commit index tells it that index, which is written down;
//!   3. its own disk holds that much, and it knows that it is committed: it is a member like any other.
//! * The first leader draws the identity of the cluster (I20).

use consensus_core::{ClusterId, LogId, LogIndex, Membership, NodeId, SnapshotMeta, StorageId};

use crate::{Append, Contradiction, EntryInfo, Output, Raft, raft::Role};

impl Raft {
    /// Identity of the cluster as far as it is committed on this node. None while the log is joining: the history of a
    /// recovered cluster begins with the identity that it had before, and the node may have that part of it alone.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        if self.is_joining() { ClusterId::NONE } else { self.log.membership_at(self.commit).cluster() }
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

    /// An entry of a leader's message that differs from one that is committed here (I17).
    pub(crate) fn find_contradiction(
        &self,
        leader: NodeId,
        append: &Append,
        entries: &[EntryInfo],
    ) -> Option<Contradiction> {
        let contradiction = |own, theirs| Some(Contradiction { own, theirs, leader });
        if append.prev.index <= self.commit
            && let Some(own) = self.log.id_at(append.prev.index).filter(|own| *own != append.prev)
        {
            return contradiction(own, append.prev);
        }
        for (index, entry) in (append.prev.index.0 + 1..).map(LogIndex).zip(entries) {
            let theirs = LogId { term: entry.term, index };
            // Most entries are new: those are not looked up.
            let own = if index <= self.commit { self.log.id_at(index) } else { None };
            if let Some(own) = own.filter(|own| *own != theirs || !self.has_content_of(index, entry)) {
                return contradiction(own, theirs);
            }
            if entry.membership.as_ref().is_some_and(|membership| !self.is_own_cluster(membership)) {
                return contradiction(self.log.id_at(self.commit).unwrap_or_default(), theirs);
            }
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
        self.cluster().is_compatible_with(membership.cluster())
    }

    /// Ends this node's part in the protocol.
    pub(crate) fn contradict(&mut self, contradiction: Contradiction) {
        self.contradicted = true;
        self.outputs.push(Output::Contradicted(contradiction));
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
    /// vote as a member that a change has just added: what a former member of its id promised ended with its removal.
    pub(crate) fn may_vote(&self, known: Option<StorageId>) -> bool {
        match known {
            None => !self.is_joining(),
            Some(known) => known == StorageId::UNHEARD || known == self.storage,
        }
    }

    /// The first commit index that a leader tells is the one to reach.
    pub(crate) fn note_commit_of_leader(&mut self, commit: LogIndex) {
        if self.hard.joining == Some(LogIndex::ZERO) && commit > LogIndex::ZERO {
            self.hard.joining = Some(commit);
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
        }
    }
}
