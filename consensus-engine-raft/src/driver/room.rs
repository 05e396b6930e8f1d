//! Entries that have no room on a disk, of this node or of others.

use std::{collections::BTreeMap, time::Duration};

use consensus_core::{NodeId, ProposeError, Role};
use consensus_raft_protocol::Event;

use super::{Driver, forward::Forwarded};

/// Entries that found no room on the disk.
pub(super) struct NoRoom {
    pub(super) why: String,
    /// When they are tried again.
    retry_at: Duration,
}

/// Members that told this leader that they have no room: why, and until when that counts.
#[derive(Default)]
pub(super) struct FullMembers {
    members: BTreeMap<NodeId, (String, Duration)>,
    /// Those with room were no quorum the last time. Clients in flight were told.
    is_known: bool,
}

impl Driver {
    /// The entries of the write in flight have no room, for how long nobody knows. Who has room should lead.
    pub(super) fn on_no_room(&mut self, why: String) {
        self.write_returned();
        if self.no_room.is_none() {
            tracing::warn!(why, "no room on the disk: no commands are taken until there is");
            self.waiters.fail_all(&ProposeError::Unknown { why: "it waits for room on the disk" });
        }
        if let Some(leader) = self.raft.leader().filter(|leader| *leader != self.raft.id()) {
            self.send_forwarded(leader, &Forwarded::NoRoom(why.clone()));
        }
        self.no_room = Some(NoRoom { why, retry_at: self.now + ROOM_RETRY });
        self.step(Event::NoRoom);
    }

    pub(super) fn next_room_deadline(&self) -> Option<Duration> {
        self.no_room.as_ref().filter(|_| self.raft.lacks_room()).map(|no_room| no_room.retry_at)
    }

    /// Has entries that had no room written again, when it is time.
    pub(super) fn retry_entries(&mut self) {
        let is_due = self.no_room.as_ref().is_some_and(|no_room| no_room.retry_at <= self.now);
        if is_due && self.raft.lacks_room() {
            self.step(Event::RetryEntries);
        }
    }

    /// Entries were written, or none are left to be written.
    pub(super) fn room_is_back(&mut self) {
        if self.no_room.take().is_some() {
            tracing::info!("there is room on the disk again");
        }
    }

    /// A member has no room for what this node sent it.
    pub(super) fn on_member_without_room(&mut self, from: NodeId, why: String) {
        if self.raft.role() != Role::Leader || !self.raft.membership().is_voter(from) {
            return;
        }
        self.full_members.members.insert(from, (why, self.now + TOLD_LASTS));
        if self.why_quorum_has_no_room().is_none() {
            self.full_members.is_known = false;
        } else if !std::mem::replace(&mut self.full_members.is_known, true) {
            tracing::warn!("a majority has no room on its disks: no commands are taken until there is");
            self.waiters
                .fail_all(&ProposeError::Unknown { why: "it waits for room on the disks of a majority" });
        }
    }

    /// Why this leader takes no commands: it has no room, or so many others that the rest is no quorum.
    pub(super) fn why_no_room(&self) -> Option<String> {
        let own = self.no_room.as_ref().map(|no_room| no_room.why.clone());
        own.or_else(|| self.why_quorum_has_no_room())
    }

    fn why_quorum_has_no_room(&self) -> Option<String> {
        let full: BTreeMap<NodeId, &String> = self
            .full_members
            .members
            .iter()
            .filter(|(_, (_, until))| *until > self.now)
            .map(|(id, (why, _))| (*id, why))
            .collect();
        let (id, why) = full.first_key_value()?;
        let peers = self.raft.peers();
        let can_write = |id: NodeId| {
            id == self.raft.id()
                || (!full.contains_key(&id) && peers.get(&id).is_some_and(|peer| peer.active))
        };
        let is_quorum = self.raft.membership().quorum_value(can_write) == Some(true);
        (!is_quorum).then(|| format!("node {id}, without which there is no majority, has none: {why}"))
    }
}

/// How often a full disk is looked at.
const ROOM_RETRY: Duration = Duration::from_millis(200);
/// How long it counts that a member said that it has no room; it says so each time that it looks.
const TOLD_LASTS: Duration = Duration::from_millis(600);
