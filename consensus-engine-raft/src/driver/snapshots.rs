//! Sending and installing snapshots.

use std::sync::Arc;

use consensus_core::{
    LEADERSHIPS_MAX, LogId, Membership, NodeId, Role, Snapshot, SnapshotAck, SnapshotMeta, SnapshotOutcome,
    StateMachineError,
};
use consensus_raft_protocol::{ArrivalOutcome, Event};

use tracing::Instrument;

use super::{Apply, Driver, SnapshotTransfer, messages::is_witness};
use crate::{
    apply_thread::Job, cache::EntryCache, inbox::Input, snapshot_send::Transfer, witness::NoCommands,
};

impl Driver {
    pub(super) fn send_snapshot(&mut self, to: NodeId, last: LogId, snapshot: Box<dyn Snapshot>) {
        if self.raft.role() != Role::Leader || self.snapshot_transfers.contains_key(&to) {
            return;
        }
        let membership = Membership::clone(&self.raft.membership_at(last.index));
        // A witness needs only the position and the configuration.
        let snapshot = if is_witness(&membership, to) { Box::new(NoCommands) } else { snapshot };
        self.snapshot_transfers_started += 1;
        // The count distinguishes transfers of this incarnation, the term those of earlier ones: a node that becomes leader
        // again after a restart does so in a later term.
        let number = (self.raft.term().0 << 32) | self.snapshot_transfers_started;
        let transfer = Transfer {
            transport: self.transport.clone(),
            to,
            term: self.raft.term(),
            number,
            meta: SnapshotMeta { last, membership },
            chunk_bytes: self.config.snapshot_chunk_bytes,
            threads: self.config.threads,
            retry: self.config.snapshot_retry,
            resume: self.config.snapshot_resume,
            bytes_per_second: self.config.snapshot_bytes_per_second,
            progress: Arc::default(),
        };
        let span = tracing::info_span!(parent: &self.span, "snapshot", %to, %last);
        span.in_scope(|| tracing::info!("sending a snapshot"));
        let (inbox, progress) = (self.inbox.clone(), transfer.progress.clone());
        let task = tokio::spawn(async move {
            let sent = transfer.run(snapshot).instrument(span).await;
            let _ = inbox.send(Input::SnapshotSent(to, sent));
        });
        self.snapshot_transfers.insert(to, SnapshotTransfer { task, last: last.index, progress });
    }

    pub(super) fn install(&mut self, meta: &SnapshotMeta) {
        // An earlier arrival may be waiting for a write of entries that it covers.
        let Some(arrival) = self.arrivals.iter_mut().rfind(|arrival| arrival.meta == *meta) else { return };
        if self.apply.handed >= meta.last.index {
            // After its log was truncated the state machine may be ahead of the snapshot; its state must not go back (I16).
            let _ = self.inbox.send(Input::Installed(Ok(())));
            return;
        }
        tracing::info!(last = %meta.last, "installing a snapshot");
        if !self.raft.was_compared_with(meta) {
            tracing::warn!(
                committed = %self.raft.commit(),
                "over {LEADERSHIPS_MAX} leaders were elected since this node was last in touch: whether the cluster has the \
                 entries that were committed here could not be checked"
            );
        }
        match arrival.file.try_clone() {
            Ok(file) => self.give(Job::Install(file, meta.last)),
            Err(error) => {
                let why = format!("the snapshot that arrived cannot be read: {error}");
                let _ = self.inbox.send(Input::Installed(Err(StateMachineError::Other(why))));
            }
        }
    }

    /// State machine and log are unchanged. The leader sends a snapshot again later.
    pub(super) fn on_not_installed(&mut self, why: &str) {
        let Some(meta) = self.raft.hard_state().installing.clone() else { return };
        let why = format!("the snapshot up to {} was not installed: {why}", meta.last);
        if self.snapshot_blocked.is_none() {
            tracing::warn!(why, "a snapshot was refused; the leader will send another one");
        }
        self.snapshot_blocked = Some((why, self.raft.commit()));
        if let Some(at) = self.arrivals.iter().rposition(|arrival| arrival.meta == meta)
            && let Some(arrival) = self.arrivals.remove(at)
        {
            let (term, outcome) = (self.raft.term(), SnapshotOutcome::Refused);
            let _ = arrival.reply.send(SnapshotAck { term, outcome });
        }
        self.step(Event::SnapshotNotInstalled);
    }

    pub(super) fn on_installed(&mut self) {
        let Some(last) = self.raft.hard_state().installing.as_ref().map(|meta| meta.last.index) else {
            return;
        };
        self.cache = EntryCache::new(last);
        let Apply { done, handed, target, .. } = &mut self.apply;
        (*done, *handed, *target) = ((*done).max(last), (*handed).max(last), (*target).max(last));
        self.step(Event::SnapshotInstalled);
        self.log_replaced(last);
    }

    /// Responds to the sender of a snapshot. The refused one is always the latest arrival; accepted ones are in order of
    /// arrival.
    pub(super) fn settle_arrival(&mut self, outcome: ArrivalOutcome) {
        let (arrival, outcome) = match outcome {
            ArrivalOutcome::Accepted => (self.arrivals.pop_front(), SnapshotOutcome::Installed),
            ArrivalOutcome::Refused => (self.arrivals.pop_back(), SnapshotOutcome::Refused),
        };
        if let Some(arrival) = arrival {
            let _ = arrival.reply.send(SnapshotAck { term: self.raft.term(), outcome });
        }
    }
}
