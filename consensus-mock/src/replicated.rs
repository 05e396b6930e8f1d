//! Replication from a fixed leader.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use consensus_core::{
    AppendEntries, AppendOutcome, AppendResponse, CommitNotification, EngineStatus, Entry, LeadershipId,
    LogId, LogIndex, Membership, Message, MessageHandler, NetworkTransport, NodeId, SnapshotAck,
    SnapshotChunk, SnapshotOutcome, StorageId, TransportError,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::machine::{Jobs, Reply, TERM};

#[derive(Debug)]
pub(crate) enum Input {
    Message(NodeId, Message),
    Propose(Bytes, Reply),
    Shutdown(oneshot::Sender<()>),
}

/// Replication state of one node.
pub(crate) struct Replication {
    node: NodeId,
    leader: NodeId,
    membership: Membership,
    transport: Arc<dyn NetworkTransport>,
    machine: Jobs,
    /// All entries since the start, so that a member can get everything that it missed.
    log: Vec<Entry>,
    commit: LogIndex,
    /// On the leader: last index that each other member has acknowledged.
    matched: BTreeMap<NodeId, LogIndex>,
    replies: VecDeque<(LogIndex, Reply)>,
}

struct Handler(mpsc::Sender<Input>);

#[async_trait]
impl MessageHandler for Handler {
    fn on_message(&self, from: NodeId, message: Message) {
        // A message that does not fit in the queue is lost, as on a network, and sent again later.
        let _ = self.0.try_send(Input::Message(from, message));
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused }
    }
}

impl Replication {
    pub(crate) async fn start(
        node: NodeId,
        leader: NodeId,
        members: Vec<NodeId>,
        transport: Arc<dyn NetworkTransport>,
        machine: Jobs,
        status: watch::Receiver<Arc<EngineStatus>>,
    ) -> Result<mpsc::Sender<Input>, TransportError> {
        let (inputs, queue) = mpsc::channel(INPUTS_MAX);
        transport.start(Arc::new(Handler(inputs.clone()))).await?;
        let others = members.iter().filter(|id| **id != node).map(|id| (*id, LogIndex::ZERO)).collect();
        let replication = Self {
            node,
            leader,
            membership: Membership::of_voters(members.iter().map(|id| id.0)),
            transport,
            machine,
            log: Vec::new(),
            commit: status.borrow().applied,
            matched: others,
            replies: VecDeque::new(),
        };
        tokio::spawn(replication.run(queue));
        Ok(inputs)
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Input>) {
        let mut resend = tokio::time::interval(RESEND_INTERVAL);
        resend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                input = queue.recv() => match input {
                    Some(Input::Message(from, message)) => self.on_message(from, message),
                    Some(Input::Propose(command, reply)) => self.on_propose(command, reply),
                    Some(Input::Shutdown(done)) => {
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                _ = resend.tick() => self.resend(),
            }
        }
    }

    fn last(&self) -> LogIndex {
        LogIndex(self.log.len() as u64)
    }

    fn id_at(&self, index: LogIndex) -> LogId {
        if index == LogIndex::ZERO { LogId::ZERO } else { LogId { term: TERM, index } }
    }

    fn others(&self) -> Vec<NodeId> {
        self.matched.keys().copied().collect()
    }

    fn on_propose(&mut self, command: Bytes, reply: Reply) {
        let id = LogId { term: TERM, index: self.last().next() };
        self.log.push(Entry::command(id, command));
        self.replies.push_back((id.index, reply));
        for to in self.others() {
            self.append(to, id.index.prev());
        }
        self.advance();
    }

    /// Sends the entries after `after` to `to`.
    fn append(&self, to: NodeId, after: LogIndex) {
        let prev = self.id_at(after);
        let commit = self.commit;
        let entries = self.log[after.0 as usize..].iter().take(APPEND_ENTRIES_MAX).cloned().collect();
        // An error is ignored, because lost entries are sent again.
        let _ = self.transport.send(
            to,
            Message::AppendEntries(AppendEntries {
                term: TERM,
                prev,
                prev_leadership: LeadershipId::NONE,
                entries,
                commit,
                round: 0,
            }),
        );
    }

    fn resend(&self) {
        if self.node != self.leader {
            return;
        }
        for (to, matched) in &self.matched {
            if *matched < self.last() {
                self.append(*to, *matched);
            }
            self.notify(*to);
        }
    }

    fn notify(&self, to: NodeId) {
        let _ = self
            .transport
            .send(to, Message::CommitNotification(CommitNotification { term: TERM, commit: self.commit }));
    }

    /// Commits the entries that a majority has, on the leader.
    fn advance(&mut self) {
        let last = self.last();
        let reached = |id| self.matched.get(&id).copied().unwrap_or(last);
        let commit = self.membership.quorum_value(reached).unwrap_or_default();
        if commit > self.commit {
            self.apply(commit);
            self.others().into_iter().for_each(|to| self.notify(to));
        }
    }

    fn apply(&mut self, commit: LogIndex) {
        let commit = commit.min(self.last());
        while self.commit < commit {
            let entry = self.log[self.commit.0 as usize].clone();
            self.commit = entry.id.index;
            let waits = self.replies.front().is_some_and(|(index, _)| *index == entry.id.index);
            let reply = if waits { self.replies.pop_front().map(|(_, reply)| reply) } else { None };
            self.machine.apply(entry, reply);
        }
    }

    fn on_message(&mut self, from: NodeId, message: Message) {
        let is_leader = self.node == self.leader;
        match message {
            Message::AppendEntries(append) if from == self.leader => self.on_append(append),
            Message::CommitNotification(notification) if from == self.leader => {
                self.apply(notification.commit);
            }
            Message::AppendResponse(AppendResponse { outcome, .. }) if is_leader => {
                let Some(matched) = self.matched.get_mut(&from) else { return };
                match outcome {
                    AppendOutcome::Accepted { matched: index } => *matched = index.max(*matched),
                    // The member lacks earlier entries; the next resend starts at the end of its log.
                    AppendOutcome::Rejected { hint, .. } => *matched = hint.index.min(*matched),
                }
                self.advance();
            }
            other => tracing::debug!(%from, ?other, "ignored an unexpected message"),
        }
    }

    fn on_append(&mut self, append: AppendEntries) {
        let prev = append.prev.index;
        let outcome = if prev > self.last() {
            AppendOutcome::Rejected { prev, hint: self.id_at(self.last()) }
        } else {
            let matched = LogIndex(prev.0 + append.entries.len() as u64);
            let known = self.last().since(prev) as usize;
            self.log.extend(append.entries.into_iter().skip(known));
            AppendOutcome::Accepted { matched }
        };
        let response = AppendResponse {
            term: TERM,
            round: append.round,
            outcome,
            storage: StorageId::default(),
            joining: false,
        };
        let _ = self.transport.send(self.leader, Message::AppendResponse(response));
        self.apply(append.commit);
    }
}

/// Interval in which unacknowledged entries are sent again.
const RESEND_INTERVAL: Duration = Duration::from_millis(50);
/// Most entries in one message.
const APPEND_ENTRIES_MAX: usize = 1024;
/// Most queued messages and proposals.
pub(crate) const INPUTS_MAX: usize = 65_536;
