//! The task that owns the protocol: feeds it events, carries out what it says.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, mpsc as threads},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{
    AppendEntries, ChangeError, EngineStatus, Entry, Health, LogBatch, LogId, LogIndex, LogStorage,
    MemberKind, Membership, Message, NetworkTransport, NodeId, Payload, ProposeError, ReadConsistency,
    ReadError, Role, Snapshot, SnapshotAck, SnapshotError, SnapshotMeta, SnapshotOutcome, StorageError,
    TransferError,
};
use consensus_raft_protocol::{Append, EntryInfo, Event, Output, Raft, Refusal, Reply, SnapshotVerdict};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    RaftConfig,
    admission::Permit,
    apply_thread::Job,
    cache::EntryCache,
    inbox::{Arrival, ChangeReply, Inbox, Input, TransferReply},
    snapshot_send::Transfer,
    waiters::{Waiter, Waiters},
    witness::NoCommands,
};

type ReadReply = oneshot::Sender<Result<LogIndex, ReadError>>;

/// A thread and the way to it.
type Worker<T> = (threads::Sender<T>, JoinHandle<()>);

pub(crate) struct Driver {
    config: RaftConfig,
    raft: Raft,
    started: Instant,
    transport: Arc<dyn NetworkTransport>,
    storage: Arc<dyn LogStorage>,
    inbox: Inbox,
    status: watch::Sender<Arc<EngineStatus>>,
    writer: Worker<LogBatch>,
    applier: Worker<Job>,
    cache: EntryCache,
    /// The entries of the message in hand.
    incoming: Vec<Entry>,
    /// The command in hand.
    proposal: Option<(Bytes, Waiter)>,
    waiters: Waiters,
    reads: Reads,
    asked: Asked,
    /// Since when this node is leaving, and who waits for it.
    leaving: Option<(Duration, Option<oneshot::Sender<()>>)>,
    /// For which configuration the transport has the endpoints, and who left with it.
    addressed: Arc<Membership>,
    retired: BTreeSet<NodeId>,
    freshness: Freshness,
    apply: Apply,
    compaction: Compaction,
    /// Appends that wait for entries from disk, in order, per peer; the first of each is being loaded.
    loading: BTreeMap<NodeId, VecDeque<Append>>,
    transfers: BTreeMap<NodeId, tokio::task::JoinHandle<()>>,
    transfers_begun: u64,
    arrivals: VecDeque<Arrival>,
    stop: Option<Stop>,
}

/// Reads on their way: at the protocol by token, then waiting for an index to be applied.
#[derive(Default)]
struct Reads {
    next_token: u64,
    asked: BTreeMap<u64, (ReadReply, Permit)>,
    ready: Vec<(LogIndex, ReadReply, Permit)>,
}

/// What the apply thread has done, does and is to do.
struct Apply {
    done: LogIndex,
    handed: LogIndex,
    target: LogIndex,
}

#[derive(Default)]
struct Compaction {
    flushing: bool,
    last_at: LogIndex,
    asked: Vec<oneshot::Sender<Result<LogIndex, SnapshotError>>>,
}

/// Changes of the membership and transfers on their way through the protocol, by token.
#[derive(Default)]
struct Asked {
    next_token: u64,
    changes: BTreeMap<u64, ChangeReply>,
    transfers: BTreeMap<u64, TransferReply>,
    /// Transfers that ended with the loss of the lead: until when they wait to hear who has it.
    ended: Vec<(Duration, TransferReply)>,
}

/// How old what is applied here may be.
#[derive(Default)]
struct Freshness {
    /// What was committed, and when that was heard.
    heard: Option<(LogIndex, Duration)>,
    /// The latest such moment that is applied.
    at: Option<Duration>,
}

/// Why the task ends.
enum Stop {
    Asked(Option<oneshot::Sender<()>>),
    Fatal(String),
}

impl Asked {
    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "the parts of an engine, put together in one place")]
    pub(crate) fn new(
        config: RaftConfig,
        raft: Raft,
        applied: LogIndex,
        transport: Arc<dyn NetworkTransport>,
        storage: Arc<dyn LogStorage>,
        inbox: Inbox,
        writer: Worker<LogBatch>,
        applier: Worker<Job>,
    ) -> (Self, watch::Receiver<Arc<EngineStatus>>) {
        let (status, watching) = watch::channel(Arc::new(initial_status(&raft, applied)));
        let driver = Self {
            cache: EntryCache::new(raft.last_log().index),
            config,
            started: Instant::now(),
            transport,
            storage,
            inbox,
            status,
            writer,
            applier,
            incoming: Vec::new(),
            proposal: None,
            waiters: Waiters::default(),
            reads: Reads::default(),
            asked: Asked::default(),
            leaving: None,
            addressed: Arc::default(),
            retired: BTreeSet::new(),
            freshness: Freshness::default(),
            apply: Apply { done: applied, handed: applied, target: raft.commit() },
            compaction: Compaction { last_at: applied, ..Compaction::default() },
            loading: BTreeMap::new(),
            transfers: BTreeMap::new(),
            transfers_begun: 0,
            arrivals: VecDeque::new(),
            stop: None,
            raft,
        };
        (driver, watching)
    }

    pub(crate) async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        let mut turn = Vec::with_capacity(TURN_INPUTS_MAX);
        self.step(Event::Tick); // The only voter of a cluster leads at once.
        self.end_turn();
        while self.stop.is_none() {
            let deadline = self.next_deadline().map(|at| self.started + at);
            tokio::select! {
                _ = inputs.recv_many(&mut turn, TURN_INPUTS_MAX) => {}
                () = sleep_until(deadline) => {}
            }
            for input in turn.drain(..) {
                self.take(input);
            }
            if self.raft.next_deadline().is_some_and(|at| at <= self.now()) {
                self.step(Event::Tick);
            }
            let now = self.now();
            self.waiters.expire(now);
            self.end_turn();
            self.conclude(now);
        }
        inputs.close();
        self.farewell(inputs).await;
    }

    fn next_deadline(&self) -> Option<Duration> {
        let leaving = self.leaving.as_ref().map(|(until, _)| *until);
        let transfers = self.asked.ended.iter().map(|(until, _)| *until).min();
        [self.raft.next_deadline(), self.waiters.next_deadline(), leaving, transfers]
            .into_iter()
            .flatten()
            .min()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn take(&mut self, input: Input) {
        if self.stop.is_some() {
            return self.refuse(input);
        }
        match input {
            Input::Message(from, message, permit) => {
                drop(permit);
                self.on_message(from, message);
            }
            Input::Propose(command, waiter) => {
                let size_bytes = Entry::command(LogId::ZERO, command.clone()).size_bytes();
                self.proposal = Some((command, waiter));
                self.step(Event::Propose { token: 0, size_bytes });
            }
            Input::Read(consistency, reply, permit) => self.read(consistency, reply, permit),
            Input::ChangeMembership(changes, reply) => {
                let token = self.asked.token();
                self.asked.changes.insert(token, reply);
                self.step(Event::ChangeMembership { token, changes });
            }
            Input::Transfer(to, reply) => {
                let token = self.asked.token();
                self.asked.transfers.insert(token, reply);
                self.step(Event::Transfer { token, to });
            }
            Input::Persisted(Ok(())) => self.step(Event::Persisted),
            Input::Persisted(Err(error)) => self.fail(error.to_string()),
            Input::Applied(Ok(index)) => self.on_applied(index),
            Input::Flushed(Ok(durable)) => self.on_flushed(durable),
            Input::Installed(Ok(())) => self.on_installed(),
            Input::SnapshotTaken(to, Ok((last, picture))) => self.send_snapshot(to, last, picture),
            Input::Applied(Err(error)) | Input::Flushed(Err(error)) | Input::Installed(Err(error)) => {
                self.fail(error.to_string());
            }
            Input::SnapshotTaken(_, Err(error)) => self.fail(error.to_string()),
            Input::SnapshotSent(to, last) => {
                self.transfers.remove(&to);
                self.step(Event::SnapshotSent(to, last));
            }
            Input::SnapshotArrived(arrival) => {
                let event = Event::SnapshotArrived {
                    from: arrival.from,
                    term: arrival.term,
                    meta: arrival.meta.clone(),
                };
                self.arrivals.push_back(arrival);
                self.step(event);
            }
            Input::Loaded(to, append, entries) => self.on_loaded(to, append, entries),
            Input::Compact(reply) => {
                self.compaction.asked.push(reply);
                self.flush_machine();
            }
            Input::Shutdown(reply) => self.leave(reply),
        }
    }

    fn read(&mut self, consistency: ReadConsistency, reply: ReadReply, permit: Permit) {
        if let ReadConsistency::StaleWithin(max) = consistency {
            let _ = reply.send(self.stale_read(max));
            return;
        }
        let token = self.reads.next_token;
        self.reads.next_token += 1;
        self.reads.asked.insert(token, (reply, permit));
        self.step(Event::Read { token, lease: consistency == ReadConsistency::Lease });
    }

    fn stale_read(&mut self, max: Duration) -> Result<LogIndex, ReadError> {
        self.note_freshness();
        let age = self.freshness.at.map(|at| self.now().saturating_sub(at));
        if age.is_some_and(|age| age <= max) {
            return Ok(self.apply.done);
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Err(ReadError::TooStale { age_ms: age.map(ms), max_ms: ms(max) })
    }

    /// A leader knows what is committed from when a quorum last confirmed that it leads, a follower from when it last
    /// heard from it.
    fn note_freshness(&mut self) {
        if let Some(at) = self.raft.confirmed_at() {
            self.freshness.heard = Some((self.raft.commit(), at));
        }
        if let Some((_, at)) = self.freshness.heard.take_if(|(commit, _)| *commit <= self.apply.done) {
            self.freshness.at = Some(at);
        }
    }

    /// Stops; a leader first sees to it that there is another, so that nobody waits for an election timeout.
    fn leave(&mut self, reply: Option<oneshot::Sender<()>>) {
        if self.raft.role() != Role::Leader || self.leaving.is_some() {
            self.stop = Some(Stop::Asked(reply));
            return;
        }
        self.leaving = Some((self.now() + self.config.protocol.election_timeout, reply));
        let token = self.asked.token();
        self.step(Event::Transfer { token, to: None });
    }

    /// Ends what waited for another leader to show.
    fn conclude(&mut self, now: Duration) {
        let successor = self.raft.leader().filter(|leader| *leader != self.raft.id());
        for (_, reply) in self.asked.ended.extract_if(.., |(until, _)| successor.is_some() || *until <= now) {
            let _ = reply.send(successor.ok_or(TransferError::Unknown));
        }
        let has_left = |(until, _): &mut (Duration, _)| {
            successor.is_some()
                || *until <= now
                || (self.raft.role() == Role::Leader && self.raft.transferring_to().is_none())
        };
        if let Some((_, reply)) = self.leaving.take_if(has_left) {
            self.stop.get_or_insert(Stop::Asked(reply));
        }
    }

    fn end_transfer(&mut self, token: u64, result: Result<(), Refusal>) {
        let Some(reply) = self.asked.transfers.remove(&token) else { return };
        let error = match result {
            Ok(()) => {
                let until = self.now() + 2 * self.config.protocol.election_timeout;
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

    fn refuse_change(&mut self, token: u64, refusal: Refusal) {
        let Some(reply) = self.asked.changes.remove(&token) else { return };
        let _ = reply.send(Err(match refusal {
            Refusal::Invalid(why) => ChangeError::Invalid(why),
            Refusal::LostLead => {
                ChangeError::Unknown { why: "this node lost the lead before it was committed" }
            }
            Refusal::NotLeader => ChangeError::NotLeader { leader: self.raft.leader() },
            _ => ChangeError::Busy,
        }));
    }

    /// Tells the transport where everybody is. Who is no longer a member may still have to hear so; its endpoint goes
    /// with the next change.
    fn address_members(&mut self) {
        let membership = self.raft.membership().clone();
        if Arc::ptr_eq(&membership, &self.addressed) {
            return;
        }
        let own = self.raft.id();
        for (id, member) in membership.everybody().filter(|(id, _)| *id != own) {
            let known = self.addressed.get(id).and_then(|member| member.endpoint.as_ref());
            if let Some(endpoint) = member.endpoint.as_ref().filter(|endpoint| Some(*endpoint) != known) {
                self.transport.set_endpoint(id, endpoint.clone());
            }
        }
        let before: BTreeSet<NodeId> = self.addressed.everybody().map(|(id, _)| id).collect();
        for gone in self.retired.iter().filter(|id| membership.get(**id).is_none()) {
            self.transport.remove_endpoint(*gone);
        }
        self.retired = before.into_iter().filter(|id| *id != own && membership.get(*id).is_none()).collect();
        self.addressed = membership;
    }

    /// Steps the protocol and does what it says, in order; what that brings about is stepped too.
    fn step(&mut self, event: Event) {
        let now = self.now();
        let was = (self.raft.role() == Role::Leader, self.raft.term());
        let outputs = self.raft.step(now, event);
        self.carry_out(outputs.into());
        if was.0 && (self.raft.role() != Role::Leader || self.raft.term() != was.1) {
            self.waiters.orphan(now + 2 * self.config.protocol.election_timeout);
            for (_, transfer) in std::mem::take(&mut self.transfers) {
                transfer.abort();
            }
            self.loading.clear();
        }
    }

    fn carry_out(&mut self, mut outputs: VecDeque<Output>) {
        while let Some(output) = outputs.pop_front() {
            let failed = match output {
                Output::Send(to, reply) => self.send(to, message_of(reply)),
                Output::SendAppend(to, append) => self.send_append(to, append),
                Output::SendSnapshot(to) => {
                    self.give(Job::TakeSnapshot(to));
                    None
                }
                other => {
                    self.carry_out_locally(other);
                    None
                }
            };
            if let Some(to) = failed {
                outputs.extend(self.raft.step(self.now(), Event::SendFailed(to)));
            }
        }
    }

    fn carry_out_locally(&mut self, output: Output) {
        match output {
            Output::AppendedBlank(id) => self.cache.push(Entry { id, payload: Payload::Blank }),
            Output::AppendedMembership(id, membership) => {
                tracing::info!(node = %self.raft.id(), %id, members = %membership, "membership");
                let payload = Payload::Membership(Membership::clone(&membership));
                self.cache.push(Entry { id, payload });
            }
            Output::Changed(token, _) => {
                if let Some(reply) = self.asked.changes.remove(&token) {
                    let _ = reply.send(Ok(self.raft.membership().clone()));
                }
            }
            Output::ChangeRefused(token, refusal) => self.refuse_change(token, refusal),
            Output::TransferEnded(token, result) => self.end_transfer(token, result),
            Output::Replaced(after) => {
                self.cache.truncate_after(after);
                let new =
                    std::mem::take(&mut self.incoming).into_iter().filter(|entry| entry.id.index > after);
                new.for_each(|entry| self.cache.push(entry));
            }
            Output::Accepted(_, id) => {
                if let Some((command, waiter)) = self.proposal.take() {
                    self.cache.push(Entry::command(id, command));
                    self.waiters.push(id, waiter);
                }
            }
            Output::Refused(_) => {
                if let Some((_, waiter)) = self.proposal.take() {
                    waiter.answer(Err(match self.raft.transferring_to() {
                        Some(to) => ProposeError::HandingOver { to },
                        None => ProposeError::NotLeader { leader: self.raft.leader() },
                    }));
                }
            }
            Output::ReadReady(token, index) => {
                if let Some((reply, permit)) = self.reads.asked.remove(&token) {
                    self.reads.ready.push((index, reply, permit));
                }
            }
            Output::ReadRefused(token) => {
                if let Some((reply, _)) = self.reads.asked.remove(&token) {
                    let _ = reply.send(Err(ReadError::NotLeader { leader: self.raft.leader() }));
                }
            }
            Output::Apply(through) => self.apply.target = through,
            Output::Install(meta) => self.install(&meta),
            Output::SnapshotSettled(verdict) => self.settle_arrival(verdict),
            Output::Send(..) | Output::SendAppend(..) | Output::SendSnapshot(..) => {
                unreachable!("carried out above")
            }
        }
    }

    fn end_turn(&mut self) {
        let outputs = self.raft.finish_turn(self.now());
        self.carry_out(outputs.into());
        self.address_members();
        self.answer_reads();
        self.start_write();
        self.start_apply();
        let (needed, max) = (self.raft.durable().min(self.apply.handed), self.config.cache_bytes_max);
        self.cache.evict(max, needed);
        self.publish_status();
    }

    fn start_write(&mut self) {
        let Some(persist) = self.raft.take_persist() else { return };
        let (after, last) = persist.append;
        let entries = self.cache.get(after, last).expect("what is not yet durable is in the cache");
        let (hard_state, purge, truncate_after) = (persist.hard_state, persist.purge, persist.truncate_after);
        if self.writer.0.send(LogBatch { hard_state, purge, truncate_after, entries }).is_err() {
            self.fail("the log thread ended".to_owned());
        }
    }

    /// One batch at a time; the next one gathers meanwhile.
    fn start_apply(&mut self) {
        let Apply { done, handed, target } = self.apply;
        if done < handed || target <= handed {
            return;
        }
        let last = LogIndex(target.0.min(handed.0 + APPLY_ENTRIES_MAX));
        let raft = &self.raft;
        let waiters = self.waiters.take(last, raft.leader(), |i| raft.id_at(i).map(|id| id.term));
        let entries = self.cache.get(handed, last);
        self.apply.handed = last;
        self.give(Job::Apply { after: handed, last, entries, waiters });
    }

    fn on_applied(&mut self, index: LogIndex) {
        self.apply.done = self.apply.done.max(index);
        let every = self.config.compact_after_entries;
        if every > 0 && self.apply.done.since(self.compaction.last_at) >= every {
            self.flush_machine();
        }
    }

    fn answer_reads(&mut self) {
        let done = self.apply.done;
        for (index, reply, _) in self.reads.ready.extract_if(.., |(index, ..)| *index <= done) {
            let _ = reply.send(Ok(index));
        }
    }

    fn flush_machine(&mut self) {
        if !self.compaction.flushing {
            self.compaction.flushing = true;
            self.compaction.last_at = self.apply.done;
            self.give(Job::Flush);
        }
    }

    /// Removes the log up to what the machine answers for, less a tail; without one if somebody asked.
    fn on_flushed(&mut self, durable: LogId) {
        self.compaction.flushing = false;
        let asked = std::mem::take(&mut self.compaction.asked);
        let keep = if asked.is_empty() { self.config.compact_keep_entries } else { 0 };
        self.step(Event::Compact(LogIndex(durable.index.0.saturating_sub(keep))));
        for reply in asked {
            let _ = reply.send(Ok(self.raft.purged().index));
        }
    }

    fn give(&mut self, job: Job) {
        // The thread ends only after it reported an error, which is on its way to this task.
        let _ = self.applier.0.send(job);
    }

    fn fail(&mut self, why: String) {
        tracing::error!(node = %self.raft.id(), why, "the engine stops");
        self.stop = Some(Stop::Fatal(why));
    }

    fn publish_status(&mut self) {
        let new = self.current_status(Health::Running);
        self.status.send_if_modified(|old| {
            let changed = **old != new;
            if changed {
                if (old.role, old.term, old.leader) != (new.role, new.term, new.leader) {
                    tracing::info!(node = %new.node_id, role = %new.role, term = %new.term, leader = ?new.leader.map(|n| n.0), "role");
                }
                *old = Arc::new(new);
            }
            changed
        });
    }

    fn current_status(&self, health: Health) -> EngineStatus {
        EngineStatus { health, ..initial_status(&self.raft, self.apply.done) }
    }

    /// Nothing more is done; everybody who waits is told.
    async fn farewell(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        for (_, transfer) in std::mem::take(&mut self.transfers) {
            transfer.abort();
        }
        let (health, reply) = match &mut self.stop {
            Some(Stop::Fatal(why)) => (Health::Fatal(why.clone()), None),
            Some(Stop::Asked(reply)) => (Health::ShutDown, reply.take()),
            None => (Health::ShutDown, None),
        };
        let reply = reply.into_iter().chain(self.leaving.take().and_then(|(_, reply)| reply));
        let status = self.current_status(health.clone());
        self.status.send_replace(Arc::new(status));
        self.waiters.fail_all(&match health {
            Health::Fatal(why) => ProposeError::Fatal { why },
            _ => ProposeError::Unknown { why: "the node was shut down before it was committed" },
        });
        // Dropping a read's sender tells its caller to look at the status.
        self.reads = Reads::default();
        self.asked = Asked::default();
        while let Ok(input) = inputs.try_recv() {
            self.refuse(input);
        }
        let (writer, applier) = (self.writer, self.applier);
        drop((writer.0, applier.0));
        let join = move || (writer.1.join(), applier.1.join());
        if let Ok((Err(_), _) | (_, Err(_))) = tokio::task::spawn_blocking(join).await {
            tracing::error!("a thread of the engine panicked");
        }
        for reply in reply {
            let _ = reply.send(());
        }
    }

    /// After the stop.
    fn refuse(&mut self, input: Input) {
        match input {
            Input::Propose(_, waiter) => waiter.answer(Err(match &self.stop {
                Some(Stop::Fatal(why)) => ProposeError::Fatal { why: why.clone() },
                _ => ProposeError::ShutDown,
            })),
            Input::Shutdown(Some(reply)) => {
                let _ = reply.send(());
            }
            _ => {}
        }
    }
}

// Messages.
impl Driver {
    fn on_message(&mut self, from: NodeId, message: Message) {
        match message {
            Message::VoteRequest(request) => self.step(Event::VoteRequest(from, request)),
            Message::VoteResponse(response) => self.step(Event::VoteResponse(from, response)),
            Message::AppendResponse(response) => self.step(Event::AppendResponse(from, response)),
            Message::AppendEntries(append) => self.on_append(from, append),
            Message::TimeoutNow(request) => self.step(Event::TimeoutNow(from, request)),
            Message::ReadIndexRequest(request) => self.step(Event::ReadIndexRequest(from, request)),
            Message::ReadIndexResponse(response) => self.step(Event::ReadIndexResponse(from, response)),
            other => tracing::debug!(%from, ?other, "not a message of Raft; ignored"),
        }
    }

    fn on_append(&mut self, from: NodeId, message: AppendEntries) {
        let AppendEntries { term, prev, entries, commit, round } = message;
        let contiguous =
            (1..).zip(&entries).all(|(n, entry)| Some(entry.id.index.0) == prev.index.0.checked_add(n));
        if !contiguous {
            tracing::warn!(%from, %prev, "a message with a gap between its entries; ignored");
            return;
        }
        let last = entries.last().map_or(prev.index, |entry| entry.id.index);
        let infos = entries.iter().map(info_of).collect();
        self.incoming = entries;
        self.step(Event::Append { from, append: Append { term, prev, last, commit, round }, entries: infos });
        self.incoming = Vec::new();
        if self.raft.leader() == Some(from) && self.raft.term() == term {
            self.note_freshness(); // What was heard before, if it is applied by now.
            let now = self.now();
            self.freshness.heard.get_or_insert((commit, now));
        }
    }

    /// Returns the peer if the message was not taken.
    fn send(&mut self, to: NodeId, message: Message) -> Option<NodeId> {
        match self.transport.send(to, message) {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%to, %error, "not sent");
                Some(to)
            }
        }
    }

    fn send_append(&mut self, to: NodeId, append: Append) -> Option<NodeId> {
        if let Some(queue) = self.loading.get_mut(&to) {
            queue.push_back(append);
            return None;
        }
        let (after, last) = (append.prev.index, append.last);
        if after == last {
            return self.send(to, Message::AppendEntries(with_entries(append, Vec::new())));
        }
        if let Some(entries) = self.cache.get(after, last) {
            return self.send_entries(to, append, entries);
        }
        self.loading.insert(to, VecDeque::new());
        self.load(to, append);
        None
    }

    /// A witness is not told the commands.
    fn send_entries(&mut self, to: NodeId, append: Append, mut entries: Vec<Entry>) -> Option<NodeId> {
        if is_witness(self.raft.membership(), to) {
            for entry in &mut entries {
                if matches!(entry.payload, Payload::Command(_)) {
                    entry.payload = Payload::Withheld;
                }
            }
        }
        self.send(to, Message::AppendEntries(with_entries(append, entries)))
    }

    fn load(&mut self, to: NodeId, append: Append) {
        let (storage, inbox) = (self.storage.clone(), self.inbox.clone());
        let (after, last) = (append.prev.index, append.last);
        tokio::task::spawn_blocking(move || {
            let entries = storage.read(after, last, u64::MAX);
            let _ = inbox.send(Input::Loaded(to, append, entries));
        });
    }

    fn on_loaded(&mut self, to: NodeId, append: Append, entries: Result<Vec<Entry>, StorageError>) {
        let Some(queue) = self.loading.remove(&to) else { return };
        let failed = match entries {
            _ if append.term != self.raft.term() => None,
            Ok(entries) => self.send_entries(to, append, entries),
            Err(StorageError::Missing { .. }) => Some(to),
            Err(error) => return self.fail(error.to_string()),
        };
        if let Some(to) = failed {
            self.step(Event::SendFailed(to));
        }
        // In the order in which the protocol said; if one needs the disk again, the rest wait behind it.
        let outputs = queue.into_iter().map(|append| Output::SendAppend(to, append)).collect();
        self.carry_out(outputs);
    }
}

// Snapshots.
impl Driver {
    fn send_snapshot(&mut self, to: NodeId, last: LogId, picture: Box<dyn Snapshot>) {
        if self.raft.role() != Role::Leader || self.transfers.contains_key(&to) {
            return;
        }
        let membership = Membership::clone(&self.raft.membership_at(last.index));
        // Of a snapshot a witness needs only what it covers.
        let picture = if is_witness(&membership, to) { Box::new(NoCommands) } else { picture };
        self.transfers_begun += 1;
        // Distinct among the transfers of this process by count, from those of an earlier one by term: a node that leads
        // again after a restart does so in a later term.
        let number = (self.raft.term().0 << 32) | self.transfers_begun;
        let transfer = Transfer {
            transport: self.transport.clone(),
            to,
            term: self.raft.term(),
            number,
            meta: SnapshotMeta { last, membership },
            chunk_bytes: self.config.snapshot_chunk_bytes,
            retry: self.config.snapshot_retry,
        };
        tracing::info!(%to, %last, "sending a snapshot");
        let inbox = self.inbox.clone();
        let task = tokio::spawn(async move {
            let _ = inbox.send(Input::SnapshotSent(to, transfer.run(picture).await));
        });
        self.transfers.insert(to, task);
    }

    fn install(&mut self, meta: &SnapshotMeta) {
        let Some(arrival) = self.arrivals.front_mut() else { return };
        tracing::info!(last = %meta.last, "installing a snapshot");
        match arrival.file.try_clone() {
            Ok(file) => self.give(Job::Install(file, meta.last)),
            Err(error) => self.fail(format!("the snapshot that arrived cannot be read: {error}")),
        }
    }

    fn on_installed(&mut self) {
        let Some(last) = self.raft.hard_state().installing.as_ref().map(|meta| meta.last.index) else {
            return;
        };
        self.cache = EntryCache::new(last);
        self.apply = Apply { done: last, handed: last, target: last };
        self.compaction.last_at = last;
        self.step(Event::SnapshotInstalled);
    }

    /// The newest arrival is the one refused; those that are held are settled in the order of their arrival.
    fn settle_arrival(&mut self, verdict: SnapshotVerdict) {
        let (arrival, outcome) = match verdict {
            SnapshotVerdict::Held => (self.arrivals.pop_front(), SnapshotOutcome::Installed),
            SnapshotVerdict::Refused => (self.arrivals.pop_back(), SnapshotOutcome::Refused),
        };
        if let Some(arrival) = arrival {
            let _ = arrival.reply.send(SnapshotAck { term: self.raft.term(), outcome });
        }
    }
}

pub(crate) fn initial_status(raft: &Raft, applied: LogIndex) -> EngineStatus {
    EngineStatus {
        node_id: raft.id(),
        health: Health::Running,
        role: raft.role(),
        term: raft.term(),
        leader: raft.leader(),
        last_log: raft.last_log(),
        first_index: raft.purged().index.next(),
        commit: raft.commit(),
        applied,
        membership: raft.membership().clone(),
        peers: raft.peers(),
    }
}

fn message_of(reply: Reply) -> Message {
    match reply {
        Reply::VoteRequest(request) => Message::VoteRequest(request),
        Reply::VoteResponse(response) => Message::VoteResponse(response),
        Reply::AppendResponse(response) => Message::AppendResponse(response),
        Reply::TimeoutNow(request) => Message::TimeoutNow(request),
        Reply::ReadIndexRequest(request) => Message::ReadIndexRequest(request),
        Reply::ReadIndexResponse(response) => Message::ReadIndexResponse(response),
    }
}

fn with_entries(append: Append, entries: Vec<Entry>) -> AppendEntries {
    let Append { term, prev, commit, round, .. } = append;
    AppendEntries { term, prev, entries, commit, round }
}

fn is_witness(membership: &Membership, node: NodeId) -> bool {
    membership.get(node).is_some_and(|member| member.kind == MemberKind::Witness)
}

fn info_of(entry: &Entry) -> EntryInfo {
    let membership = match &entry.payload {
        Payload::Membership(membership) => Some(Arc::new(membership.clone())),
        _ => None,
    };
    EntryInfo { term: entry.id.term, size_bytes: entry.size_bytes(), membership }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Inputs taken in one turn; bounds the time between two looks at the clock.
const TURN_INPUTS_MAX: usize = 4096;
/// Entries applied in one call; bounds how long a snapshot or a shutdown waits.
const APPLY_ENTRIES_MAX: u64 = 4096;
