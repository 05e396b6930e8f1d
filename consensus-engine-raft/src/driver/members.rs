//! Changes of members and of the leader.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use consensus_core::{ChangeError, ClusterId, Role, TransferError};
use consensus_raft_protocol::{Event, Refusal};
use tokio::sync::oneshot;

use super::{Driver, Stop};
use crate::inbox::{ChangeReply, TransferReply};

/// Requests of configuration changes and leadership transfers that are in progress, by token.
#[derive(Default)]
pub(super) struct PendingRequests {
    pub(super) next_token: u64,
    pub(super) changes: BTreeMap<u64, ChangeReply>,
    pub(super) leadership_transfers: BTreeMap<u64, TransferReply>,
    /// Transfers after which this node is not leader any more, with the time until which they wait for the new leader to be
    /// known.
    pub(super) ended_transfers: Vec<(Duration, TransferReply)>,
}

impl PendingRequests {
    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

impl Driver {
    /// Starts the shutdown. A leader first transfers leadership, so that the cluster need not wait for an election timeout.
    pub(super) fn start_shutdown(&mut self, reply: Option<oneshot::Sender<()>>) {
        if self.raft.role() != Role::Leader || self.leaving.is_some() {
            self.stop = Some(Stop::Requested(reply));
            return;
        }
        self.leaving = Some((self.now + self.config.protocol.election_timeout, reply));
        let token = self.requests.token();
        self.step(Event::Transfer { token, to: None });
    }

    /// Whether this node is a leader that is shutting down and may still find a successor. A leader that was elected just
    /// now has not heard from any follower yet.
    fn seeks_successor(&self) -> bool {
        let fit = |id| id != self.raft.id() && self.raft.membership().can_lead(id);
        self.leaving.is_some()
            && self.raft.role() == Role::Leader
            && self.raft.transferring_to().is_none()
            && self.raft.peer_statuses().any(|(id, peer)| peer.active && fit(id))
    }

    /// Completes transfers and a shutdown that waited for another leader.
    pub(super) fn finish_transfers(&mut self, now: Duration) {
        if self.seeks_successor() {
            let token = self.requests.token();
            self.step(Event::Transfer { token, to: None });
        }
        let seeks_successor = self.seeks_successor();
        let successor = self.raft.leader().filter(|leader| *leader != self.raft.id());
        for (_, reply) in
            self.requests.ended_transfers.extract_if(.., |(until, _)| successor.is_some() || *until <= now)
        {
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
            self.stop.get_or_insert(Stop::Requested(reply));
        }
    }

    pub(super) fn end_transfer(&mut self, token: u64, result: Result<(), Refusal>) {
        let Some(reply) = self.requests.leadership_transfers.remove(&token) else { return };
        let error = match result {
            Ok(()) => {
                let until = self.now + 2 * self.config.protocol.election_timeout;
                return self.requests.ended_transfers.push((until, reply));
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
        let Some(reply) = self.requests.changes.remove(&token) else { return };
        let _ = reply.send(Err(match refusal {
            Refusal::Invalid(why) => ChangeError::Invalid(why),
            Refusal::LostLeadership => {
                ChangeError::Unknown { why: "this node lost leadership before the change was committed" }
            }
            Refusal::NotLeader => ChangeError::NotLeader { leader: self.raft.leader() },
            _ => ChangeError::Busy,
        }));
    }

    /// Passes the endpoints of all members to the transport. A removed member stays reachable for a while, so that it learns
    /// of its removal.
    pub(super) fn update_endpoints(&mut self) {
        let membership = self.raft.membership().clone();
        if Arc::ptr_eq(&membership, &self.addressed) {
            return;
        }
        let own = self.raft.id();
        if self.addressed.get(own).is_some() && membership.get(own).is_none() {
            tracing::warn!("this node was removed from the cluster; its server may be stopped");
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
            // Endpoints that did not come from the configuration belong to the transport's owner.
            if membership.get(id).is_none() && member.endpoint.is_some() {
                self.retired.entry(id).or_insert(until);
            }
        }
        self.retired.retain(|id, _| membership.get(*id).is_none());
        self.addressed = membership;
    }

    /// Passes the cluster's identity to the transport. Once committed, it does not change.
    pub(super) fn announce_cluster(&mut self) {
        let cluster = self.raft.cluster();
        if cluster == self.cluster {
            return;
        }
        self.cluster = cluster;
        self.transport.set_cluster(cluster);
        if cluster != ClusterId::NONE {
            tracing::info!(%cluster, "the cluster's identity is known");
        }
    }

    /// Removes the endpoints of removed members that had enough time to learn of their removal.
    pub(super) fn remove_retired_endpoints(&mut self) {
        self.retired.retain(|gone, until| {
            let is_due = *until <= self.now;
            if is_due {
                self.transport.remove_endpoint(*gone);
            }
            !is_due
        });
    }
}

/// Election timeouts for which a removed member stays reachable. The leader informs it once, when the change is committed; a
/// node that missed the message asks.
const RETIREMENT: u32 = 4;
