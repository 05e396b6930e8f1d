//! Entries that have no room on a disk, of this node or of other members.

use std::{collections::BTreeMap, time::Duration};

use consensus_core::{NodeId, ProposeError, Role};
use consensus_raft_protocol::Event;

use super::{Driver, forward::Forwarded};

/// A write, usually of entries, for which the disk of this node has no room.
pub(super) struct NoRoom {
    pub(super) why: String,
    /// When the write is retried.
    retry_at: Duration,
}

/// Members that reported to this leader that their disks have no room: the reason, and until when the report counts.
#[derive(Default)]
pub(super) struct FullMembers {
    members: BTreeMap<NodeId, (String, Duration)>,
    /// Whether the members with room were no quorum at the last report. Waiting clients were told.
    is_known: bool,
}

impl Driver {
    /// Handles a write that has no room. A node with room should become leader, because it is unknown how long
    /// this lasts.
    pub(super) fn on_no_room(&mut self, why: String) {
        self.write_returned();
        if self.no_room.is_none() {
            tracing::warn!(why, "the disk has no room: this node accepts no commands until it has");
            self.waiters.fail_all(&ProposeError::Unknown {
                why: "the command waits for room on the disk of this node",
            });
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

    /// Lets the protocol write again when the pause is over.
    pub(super) fn retry_entries(&mut self) {
        let is_due = self.no_room.as_ref().is_some_and(|no_room| no_room.retry_at <= self.now);
        if is_due && self.raft.lacks_room() {
            self.step(Event::RetryEntries);
        }
    }

    /// Must be called when entries were written, or none are left to be written.
    pub(super) fn room_returned(&mut self) {
        if self.no_room.take().is_some() {
            tracing::info!("the disk has room again");
        }
    }

    /// Records that a member has no room for entries that this node sent.
    pub(super) fn on_member_without_room(&mut self, from: NodeId, why: String) {
        if self.raft.role() != Role::Leader || !self.raft.membership().is_voter(from) {
            return;
        }
        self.full_members.members.insert(from, (why, self.now + REPORT_LIFETIME));
        if self.why_quorum_has_no_room().is_none() {
            self.full_members.is_known = false;
        } else if !std::mem::replace(&mut self.full_members.is_known, true) {
            tracing::warn!(
                "the disks of a majority have no room: this leader accepts no commands until they have"
            );
            self.waiters.fail_all(&ProposeError::Unknown {
                why: "the command waits for room on the disks of a majority",
            });
        }
    }

    /// Why this leader accepts no commands: its disk has no room, or the members with room are no quorum.
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
        (!is_quorum).then(|| format!("node {id}, without which there is no majority, has no room: {why}"))
    }
}

/// Interval of retries on a full disk.
const ROOM_RETRY: Duration = Duration::from_millis(200);
/// How long a member's report counts; the member reports at each retry.
const REPORT_LIFETIME: Duration = Duration::from_millis(600);
