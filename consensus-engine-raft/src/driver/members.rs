//! Members and leaders that change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use consensus_core::{ChangeError, ClusterId, Role, TransferError};
use consensus_raft_protocol::{Event, Refusal};
use tokio::sync::oneshot;

use super::{Driver, Stop};
use crate::inbox::{ChangeReply, TransferReply};

/// Changes of the membership and transfers on their way through the protocol, by token.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) next_token: u64,
    pub(super) changes: BTreeMap<u64, ChangeReply>,
    pub(super) transfers: BTreeMap<u64, TransferReply>,
    /// Transfers that ended with the loss of the lead: until when they wait to hear who has it.
    pub(super) ended: Vec<(Duration, TransferReply)>,
}

impl Asked {
    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

impl Driver {
    /// Stops; a leader first sees to it that there is another, so that nobody waits for an election timeout.
    pub(super) fn leave(&mut self, reply: Option<oneshot::Sender<()>>) {
        if self.raft.role() != Role::Leader || self.leaving.is_some() {
            self.stop = Some(Stop::Asked(reply));
            return;
        }
        self.leaving = Some((self.now + self.config.protocol.election_timeout, reply));
        let token = self.asked.token();
        self.step(Event::Transfer { token, to: None });
    }

    /// Whether this node is leaving, leads, and may yet find somebody to hand over to: one elected just now has not heard of
    /// anybody whether it follows.
    fn seeks_successor(&self) -> bool {
        let fit = |id| id != self.raft.id() && self.raft.membership().can_lead(id);
        self.leaving.is_some()
            && self.raft.role() == Role::Leader
            && self.raft.transferring_to().is_none()
            && self.raft.peer_statuses().any(|(id, peer)| peer.active && fit(id))
    }

    /// Ends what waited for another leader to show.
    pub(super) fn conclude(&mut self, now: Duration) {
        if self.seeks_successor() {
            let token = self.asked.token();
            self.step(Event::Transfer { token, to: None });
        }
        let seeks_successor = self.seeks_successor();
        let successor = self.raft.leader().filter(|leader| *leader != self.raft.id());
        for (_, reply) in self.asked.ended.extract_if(.., |(until, _)| successor.is_some() || *until <= now) {
            let _ = reply.send(successor.ok_or(TransferError::Unknown));
        }
        let has_left = |(until, _): &mut (Duration, _)| {
            successor.is_some()
                || *until <= now
                || (self.raft.role() == Role::Leader
                    && self.raft.transferring_to().is_none()
                    && !seeks_successor)
        };
        if let Some((_, reply)) = self.leaving.take_if(has_left) {
            self.stop.get_or_insert(Stop::Asked(reply));
        }
    }

    pub(super) fn end_transfer(&mut self, token: u64, result: Result<(), Refusal>) {
        let Some(reply) = self.asked.transfers.remove(&token) else { return };
        let error = match result {
            Ok(()) => {
                let until = self.now + 2 * self.config.protocol.election_timeout;
                return self.asked.ended.push((until, reply));
            }
            Err(Refusal::Busy) => TransferError::Busy,
            Err(Refusal::CannotLead(id)) => TransferError::CannotLead(id),
            Err(Refusal::NoSuccessor) => TransferError::NoSuccessor,
            Err(Refusal::TimedOut) => TransferError::TimedOut,
            Err(_) => TransferError::NotLeader { leader: self.raft.leader() },
        };
        let _ = reply.send(Err(error));
    }

    pub(super) fn refuse_change(&mut self, token: u64, refusal: Refusal) {
        let Some(reply) = self.asked.changes.remove(&token) else { return };
        let _ = reply.send(Err(match refusal {
            Refusal::Invalid(why) => ChangeError::Invalid(why),
            Refusal::LostLeadership => {
                ChangeError::Unknown { why: "this node lost the lead before it was committed" }
            }
            Refusal::NotLeader => ChangeError::NotLeader { leader: self.raft.leader() },
            _ => ChangeError::Busy,
        }));
    }

    /// Tells the transport where everybody is. Who is no longer a member is still reached for a while: it has to hear that it
    /// was removed.
    pub(super) fn address_members(&mut self) {
        let membership = self.raft.membership().clone();
        if Arc::ptr_eq(&membership, &self.addressed) {
            return;
        }
        let own = self.raft.id();
        if self.addressed.get(own).is_some() && membership.get(own).is_none() {
            tracing::warn!("no longer a member: it was removed; its server may be stopped");
        }
        for (id, member) in membership.all_members().filter(|(id, _)| *id != own) {
            let known = self.addressed.get(id).and_then(|member| member.endpoint.as_ref());
            if let Some(endpoint) = member.endpoint.as_ref().filter(|endpoint| Some(*endpoint) != known) {
                let moved = self.config.moved_endpoints.remove(&id);
                self.transport.set_endpoint(id, moved.unwrap_or_else(|| endpoint.clone()));
            }
        }
        let until = self.now + RETIREMENT * self.config.protocol.election_timeout;
        for (id, member) in self.addressed.all_members().filter(|(id, _)| *id != own) {
            // Addresses that do not come from the configuration are not this engine's to remove.
            if membership.get(id).is_none() && member.endpoint.is_some() {
                self.retired.entry(id).or_insert(until);
            }
        }
        self.retired.retain(|id, _| membership.get(*id).is_none());
        self.addressed = membership;
    }

    /// Tells the transport to which cluster this node belongs. It stays so once that is committed.
    pub(super) fn tell_cluster(&mut self) {
        let cluster = self.raft.cluster();
        if cluster == self.cluster {
            return;
        }
        self.cluster = cluster;
        self.transport.set_cluster(cluster);
        if cluster != ClusterId::NONE {
            tracing::info!(%cluster, "the cluster has an identity");
        }
    }

    /// Has the transport forget those who had time enough to hear that they were removed.
    pub(super) fn forget_retired(&mut self) {
        self.retired.retain(|gone, until| {
            let is_due = *until <= self.now;
            if is_due {
                self.transport.remove_endpoint(*gone);
            }
            !is_due
        });
    }
}

/// A member that was removed is reached for so many election timeouts more. The leader tells it once, when the change is
/// committed; a node that did not hear it asks by itself.
const RETIREMENT: u32 = 4;
